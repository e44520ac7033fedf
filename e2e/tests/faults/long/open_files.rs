//! A soft limit of open files that a service raises. `environment.rs` has the hard limit.

use anyhow::Result;

use crate::environment::assert_served_despite_connections;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute: make faults"]
async fn clients_leave_a_service_its_files_where_the_soft_limit_can_be_raised() -> Result<()> {
    assert_served_despite_connections(1_024, 8_192).await
}
