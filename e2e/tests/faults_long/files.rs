//! A soft limit of open files that a service raises. `surroundings` has the hard one.

use anyhow::Result;

use crate::surroundings::crowded;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute: make faults"]
async fn clients_leave_a_service_its_files_where_the_soft_limit_can_be_raised() -> Result<()> {
    crowded(1_024, 8_192).await
}
