//! The launcher of a native stack, which kills and starts its components for the demo.

use std::time::Duration;

use ops_client::describe;
use reqwest::{Client, Url};
use serde::Deserialize;

use crate::settings::Settings;

/// A start returns when the component is ready.
const ACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// The control server of the launcher.
pub struct Launcher {
    url: Url,
    token: String,
    http: Client,
}

#[derive(Deserialize)]
pub struct Component {
    pub name: String,
    pub state: String,
}

impl Launcher {
    /// The server that the settings name, if they do.
    pub fn from_settings(settings: &Settings) -> anyhow::Result<Option<Launcher>> {
        let (Some(url), Some(token)) = (&settings.launcher_url, &settings.launcher_token) else {
            return Ok(None);
        };
        let http = Client::builder().timeout(ACTION_TIMEOUT).no_proxy().build()?;
        Ok(Some(Launcher { url: url.clone(), token: token.expose().to_string(), http }))
    }

    pub async fn components(&self) -> Result<Vec<Component>, String> {
        let answer = self.http.get(self.url.clone()).bearer_auth(&self.token).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        match answer {
            Ok(answer) => answer.json().await.map_err(|error| describe(&error)),
            Err(error) => Err(describe(&error)),
        }
    }

    pub async fn act(&self, action: &str, name: &str) -> Result<(), String> {
        let url = self.url.join(&format!("/{action}/{name}")).map_err(|error| error.to_string())?;
        let answer = self.http.post(url).bearer_auth(&self.token).send().await;
        let answer = answer.map_err(|error| describe(&error))?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(answer.text().await.unwrap_or_default()),
        }
    }
}
