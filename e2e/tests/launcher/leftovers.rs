//! The remains of an earlier stack: pid files, ports in use, the stacks of killed tests.

use std::net::TcpListener;
use std::process::Command;

use super::processes_left_in;
use crate::fixture::*;
use anyhow::{Context, Result, ensure};
use e2e::stack_description::stack_description;
use launcher::{Stack, StopOutcome};

#[tokio::test]
async fn down_leaves_no_process_even_where_the_pid_file_is_lost() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    stack.start("order-db").await?;
    stack.start("kafka").await?;
    std::fs::remove_file(stack.directory().join("run/order-db.pid"))?;
    assert!(processes_left_in(stack.directory()) > 2);
    stack.down().await?;
    assert_eq!(processes_left_in(stack.directory()), 0);
    Ok(())
}

#[tokio::test]
async fn a_stale_pid_file_is_not_a_living_process() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    stack.start("order-db").await?;
    let pid_file = stack.directory().join("run/order-db.pid");
    let written = std::fs::read_to_string(&pid_file)?;
    stack.kill("order-db").await?;

    // The pid belongs to another process now, this test, as after a long time or a reboot.
    let own = std::process::id().to_string();
    let rest = written.split_once(' ').context("pid, start time, boot")?.1;
    std::fs::write(&pid_file, format!("{own} {rest}"))?;
    assert!(!stack.is_running("order-db").await?);
    assert_eq!(stack.stop("order-db").await?, StopOutcome::NotRunning);

    // PostgreSQL's own pid file contains a living process as well.
    let postmaster = stack.directory().join("order-db/data/postmaster.pid");
    std::fs::write(&postmaster, format!("{own}\n"))?;
    stack.start("order-db").await?;
    assert!(stack.is_running("order-db").await?);
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_is_named_with_the_variable_that_changes_it() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    let url = stack.database_url("stock")?;
    let port: u16 = url.rsplit([':', '/']).nth(1).context("a port")?.parse()?;
    let taken = TcpListener::bind(("127.0.0.1", port))?;
    let refusal = stack.start("stock-db").await.expect_err("the port is taken").to_string();
    assert!(refusal.contains(&port.to_string()), "{refusal}");
    assert!(refusal.contains("STOCK_DB_PORT"), "{refusal}");
    drop(taken);
    stack.start("stock-db").await
}

/// No other process would end the components that it had started.
#[tokio::test]
async fn the_stack_of_a_test_that_was_killed_is_removed_and_that_of_a_running_one_is_not()
-> Result<()> {
    let _permit = stack_permit().await?;
    let running = Stack::ephemeral(&stack_description())?;
    // It lives until its directory is complete: other tests search for such directories at the same
    // time.
    let mut killed = Command::new("sleep").arg("300").spawn()?;
    let left = std::env::temp_dir().join(format!("holdfast-{}-killed", killed.id()));
    // The state of a launcher, with the stack of one kind of run.
    let below = Stack::on_free_ports(&stack_description(), left.join("state/test"))?;
    below.start("order-db").await?;
    killed.kill()?;
    killed.wait()?;
    stack_description().clean_orphans().await?;
    ensure!(!left.exists(), "{} is still there", left.display());
    assert_eq!(processes_left_in(&left), 0);
    ensure!(running.directory().exists(), "a running test's stack is gone");
    Ok(())
}

#[tokio::test]
async fn a_removed_stack_is_not_recreated_by_a_change() -> Result<()> {
    let stack = Stack::ephemeral(&stack_description())?;
    stack.clean().await?;
    let refusal = stack.set_environment("order", "KEY", Some("value")).expect_err("it is gone");
    ensure!(refusal.to_string().contains("there is no stack"), "{refusal}");
    ensure!(!stack.directory().exists(), "{} is there again", stack.directory().display());
    Ok(())
}
