//! The order service's read model of items, made anew from its topic at an operator's wish.

use anyhow::Result;
use reqwest::Method;
use serde_json::Value;

use crate::client::Client;
use crate::figures::grouped;

/// Has the order service rebuild; answers what that came to.
pub async fn run(client: &Client) -> Result<Value> {
    let url = format!("{}/items/rebuild", client.addresses.operators["order"]);
    client.send(Method::POST, &url, None, None).await?.accepted()
}

/// For people.
pub fn print(rebuilt: &Value) {
    let count = |name: &str| grouped(rebuilt[name].as_u64().unwrap_or_default());
    println!(
        "  {} items, as their topic has them: {} repaired, {} removed, {} kept; {} records are no items",
        count("items"),
        count("repaired"),
        count("removed"),
        count("kept"),
        count("unreadable")
    );
}
