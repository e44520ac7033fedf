//! The smallest service that the launcher can start: `shop migrate` and `shop serve`. The example
//! `outage` kills it.

use anyhow::{Context, Result, bail};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("migrate") => migrate().await,
        Some("serve") => serve().await,
        _ => bail!("usage: shop migrate|serve"),
    }
}

/// Creates the table, as the role that owns it, and lets the role that serves write to it.
async fn migrate() -> Result<()> {
    let mut db = PgConnection::connect(&variable("MIGRATION_DATABASE_URL")?).await?;
    sqlx::query("create table if not exists starts (at timestamptz not null default now())")
        .execute(&mut db)
        .await?;
    sqlx::query("grant insert on starts to shop").execute(&mut db).await?;
    Ok(())
}

/// Records its start, and answers every request on its port for probes until SIGTERM.
async fn serve() -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut db = PgConnection::connect(&variable("DATABASE_URL")?).await?;
    sqlx::query("insert into starts default values").execute(&mut db).await?;
    let listener = TcpListener::bind(variable("PROBE_ADDR")?).await?;
    loop {
        let mut client = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = terminated.recv() => return Ok(()),
        };
        let _ = client.read(&mut [0; 1024]).await;
        let _ = client.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}
