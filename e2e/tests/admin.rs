//! The admin port.

use anyhow::{Result, ensure};

use crate::fixture::{Fixture, with_shared_fixture};

/// The port is on loopback and knows no passwords: what a page in a browser there asks has to be told from
/// what people ask.
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
