//! Rebuilds the order service's read model of items from its topic.

use anyhow::Result;
use checker::group_digits;
use reqwest::Method;
use serde_json::Value;

use crate::client::http_client::Client;

/// Rebuilds the read model, and returns the result.
pub async fn run(client: &Client) -> Result<Value> {
    let url = format!("{}/items/rebuild", client.addresses.admins["order"]);
    client.send(Method::POST, &url, None, None).await?.accepted_json()
}

/// The result, as a line.
pub fn print(rebuilt: &Value) {
    let count = |name: &str| group_digits(rebuilt[name].as_u64().unwrap_or_default());
    println!(
        "  {} items, equal to their topic: {} repaired, {} removed, {} kept; {} undecodable records",
        count("items"),
        count("repaired"),
        count("removed"),
        count("kept"),
        count("undecodable")
    );
}
