//! Rebuilds the order service's read model of items from its topic, or the row of an order from its history.

use anyhow::Result;
use checker::group_digits;
use ops_client::Port;
use serde_json::Value;
use uuid::Uuid;

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

/// Rebuilds the row of an order, and prints whether it was other than its history says.
pub async fn order(operator: &Operator, order_id: Uuid) -> Result<()> {
    let path = format!("/orders/{order_id}/rebuild");
    let rebuilt: Value = operator.ask()?.post(("order", Port::Admin), &path, None::<&()>).await?;
    let row = if rebuilt["repaired"] == true { "was repaired" } else { "was as its history says" };
    println!("  the row of order {order_id} {row}: {}", rebuilt["order"]["status"]);
    Ok(())
}
