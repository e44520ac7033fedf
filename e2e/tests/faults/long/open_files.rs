//! The limits of open files: a soft one that a service raises, and a hard one.

use anyhow::Result;

use crate::environment::assert_served_despite_connections;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute: make faults"]
async fn clients_leave_a_service_its_files_where_the_soft_limit_can_be_raised() -> Result<()> {
    assert_served_despite_connections(1_024, 8_192).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn clients_leave_a_service_its_files_where_the_hard_limit_is_1_024() -> Result<()> {
    assert_served_despite_connections(1_024, 1_024).await
}
