//! The services, which the control room asks for everything that it shows.

use std::time::Duration;

use axum::http::{HeaderValue, header};
use ops_client::Services;
use reqwest::Client;

use crate::settings::Settings;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The stream processor. It is asked like a service, and is not one of their names.
pub const INSIGHTS: &str = "insights";

/// A client of the services that the settings name.
///
/// # Errors
/// If it can't be made.
pub fn connect(settings: &Settings) -> anyhow::Result<Services> {
    let http = Client::builder().connect_timeout(CONNECT_TIMEOUT).no_proxy();
    let http = http.redirect(reqwest::redirect::Policy::none());
    // Several consoles cost a service no more than one computation of its books a minute.
    let accepted = HeaderValue::from_static("max-age=60");
    let http = http.default_headers([(header::CACHE_CONTROL, accepted)].into_iter().collect());
    let mut api = settings.api_urls.clone();
    let insights =
        settings.insights_url.iter().map(|url| (INSIGHTS.to_string(), vec![url.clone()]));
    api.0.extend(insights);
    Ok(Services::new(http.build()?, settings.admin_urls.clone(), api))
}
