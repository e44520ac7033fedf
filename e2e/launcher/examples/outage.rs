//! Starts the example `shop` with its database, kills both, and starts them again. A test of your
//! own service does the same with the program that cargo builds beside it.

use anyhow::{Context, Result};
use launcher::{Stack, StackDescription};
use sqlx::{Connection, PgConnection};

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
    // Examples are in a directory of their own, beside those of the programs.
    let program = std::env::current_exe()?;
    let programs = program.parent().context("a program lies in a directory")?;
    stack.set_programs("shop", programs)?;

    stack.start("shop-db").await?;
    stack.migrate_with(programs, "shop").await?;
    stack.start("shop").await?;
    for victim in ["shop", "shop-db"] {
        stack.kill(victim).await?;
        stack.start(victim).await?;
        println!("{victim} was killed, and is ready again");
    }
    stack.stop_gracefully("shop").await?;

    let mut db = PgConnection::connect(&stack.database_url("shop")?).await?;
    let starts: i64 = sqlx::query_scalar("select count(*) from starts").fetch_one(&mut db).await?;
    println!("shop has started {starts} times");
    for exit in stack.exits().await? {
        println!("{} {exit}", exit.name);
    }
    Ok(())
}
