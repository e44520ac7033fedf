//! Starts the infrastructure of one service on free ports, prints its addresses, and ends. The first
//! run fetches Kafka, the registry and PostgreSQL.

use anyhow::Result;
use launcher::{Stack, StackDescription};

#[tokio::main]
async fn main() -> Result<()> {
    let description = StackDescription {
        project: "shop".to_string(),
        root: env!("CARGO_MANIFEST_DIR").into(),
        services: vec!["shop".to_string()],
        contracts_program: None,
        console: false,
        stream_processors: Vec::new(),
        optional_services: Vec::new(),
        secure: false,
    };
    let stack = Stack::ephemeral(&description)?;
    stack.up_infrastructure().await?;
    println!("PostgreSQL of shop  {}", stack.database_url("shop")?);
    println!("Kafka               {}", stack.kafka_bootstrap()?);
    println!("schema registry     {}", stack.registry_url()?);
    // The stack is killed and its directory deleted here, where the handle is dropped.
    Ok(())
}
