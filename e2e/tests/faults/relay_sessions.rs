//! A relay that loses the session with its leader lock.

use std::time::Duration;

use anyhow::Result;
use e2e::stack_description::SERVICES;
use faults::database_faults;
use launcher::Stack;
use tokio::time::sleep;

use crate::fixture::*;

/// F32, the part that takes less than half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_session_is_ended_under_load_is_followed_by_another() -> Result<()> {
    with_exclusive_fixture(async |fixture| {
        start_two_of_each(fixture).await?;
        let Fixture { stack, client } = fixture;
        under_load_without_errors(client, 100, 8, async {
            for _ in 0..6 {
                sleep(Duration::from_secs(1)).await;
                for service in SERVICES {
                    end_one_relay_session(stack, service).await?;
                }
            }
            for service in SERVICES {
                active_relay_instance(fixture, service).await?;
            }
            Ok(())
        })
        .await
    })
    .await
}

/// Ends the one session of the active relay. If there is none, the previous one had no successor.
async fn end_one_relay_session(stack: &Stack, service: &str) -> Result<()> {
    let ended = async || database_faults::terminate_relay_session(stack, service).await;
    let what = format!("a session that relays for {service}");
    wait_for(&what, TIMEOUT, ended, |ended| *ended == 1).await.map(drop)
}
