//! Tests of the admin port.

use anyhow::{Result, ensure};

use crate::fixture::*;

/// The admin port is on loopback and has no password, so requests of a web page in a local browser
/// must be distinguished from those of an operator.
#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_answers_operators_and_rejects_browser_requests() -> Result<()> {
    with_shared_fixture(async |Fixture { client, .. }| {
        for (service, url) in &client.addresses.admins {
            let ask = |header, value| {
                let request = reqwest::Client::new().post(format!("{url}/consumer/resume"));
                async move {
                    Ok::<_, anyhow::Error>(request.header(header, value).send().await?.status())
                }
            };
            ensure!(ask("accept", "*/*").await?.is_success(), "{service} rejects an operator");
            for (header, value) in [("origin", "https://example.com"), ("host", "example.com")] {
                let status = ask(header, value).await?;
                ensure!(status == 403, "{service} answers a page's {header}: {status}");
            }
        }
        Ok(())
    })
    .await
}
