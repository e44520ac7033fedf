//! Rebuilds the order service's read model of items from its topic.

use anyhow::Result;
use checker::group_digits;
use ops_client::Port;
use serde_json::Value;

use crate::client::operator::Operator;

/// Rebuilds the read model, and returns the result.
pub async fn run(operator: &Operator) -> Result<Value> {
    Ok(operator.ask()?.post(("order", Port::Admin), "/items/rebuild", None::<&()>).await?)
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
