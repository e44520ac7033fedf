//! A client of the admin port of a service.

use anyhow::{Result, bail, ensure};
use launcher::Stack;
use reqwest::Method;
use serde_json::Value;

use crate::client::http_client::Client;
use crate::client::outcome::HttpResponse;
use crate::console::printable;
use crate::stack_description::SERVICES;

/// The number of instances that are tried, one after the other.
const INSTANCES_MAX: usize = 9;

/// The admin port of the first instance of a service that answers.
pub struct AdminClient {
    pub client: Client,
    url: String,
}

impl AdminClient {
    pub async fn connect(stack: &Stack, service: &str) -> Result<AdminClient> {
        ensure!(
            SERVICES.contains(&service),
            "`{service}` is not a service: set SERVICE={}",
            SERVICES.join(" or ")
        );
        let client = Client::for_stack(stack)?;
        let further = (2..=INSTANCES_MAX).map(|nth| format!("{service}-{nth}"));
        let mut last_error = None;
        for name in std::iter::once(service.to_string()).chain(further) {
            let Ok(url) = stack.admin_url(&name) else { continue };
            match client.send(Method::GET, &format!("{url}/consumer"), None, None).await {
                Ok(_) => return Ok(AdminClient { client, url }),
                Err(error) => last_error = Some(error),
            }
        }
        let trouble = last_error.map_or("no instance exists".into(), |error| error.to_string());
        bail!("no instance of {service} answers at its admin port: {trouble}")
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.client.get_url(&format!("{}{path}", self.url)).await
    }

    pub async fn post(&self, path: &str, body: Option<&Value>) -> Result<HttpResponse> {
        let body = body.map(|body| body.to_string().into_bytes());
        self.client.send(Method::POST, &format!("{}{path}", self.url), None, body).await
    }

    pub async fn dead_letter(&self, id: i64) -> Result<Value> {
        self.get(&format!("/dead-letters/{id}")).await
    }
}

/// The detail of a problem response, as a terminal may show it.
pub fn detail(response: &HttpResponse) -> String {
    let problem: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    printable(problem["detail"].as_str().unwrap_or(&response.to_string()))
}
