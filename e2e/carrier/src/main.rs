//! The program: prints its URL when it listens, and ends at SIGTERM.

use anyhow::Result;
use carrier::{Carrier, Settings};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let carrier = Carrier::start(Settings::read()).await?;
    println!("{}", carrier.url());
    terminated.recv().await;
    Ok(())
}
