//! The program is killed, started again, and stopped.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use carrier::{Ledger, State};
use reqwest::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use uuid::Uuid;

const ORDER: Uuid = Uuid::from_u128(7);

/// The program, with the URL that it prints.
fn start(directory: &Path) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carrier"));
    let options = ["--collect-seconds", "3600", "--seed", "1", "--lie-phantom", "0", "--directory"];
    let mut child = command.args(options).arg(directory).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().to_string())
}

async fn book(url: &str) -> Value {
    let body = json!({ "reference": ORDER, "pieces": 1 });
    let request = Client::new().post(format!("{url}/parcels")).json(&body);
    request.header("idempotency-key", "key").send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn a_killed_program_keeps_its_ledger_and_sigterm_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, url) = start(directory.path());
    let booked = book(&url).await;
    child.kill().unwrap();
    child.wait().unwrap();

    let (mut child, url) = start(directory.path());
    assert_eq!(book(&url).await, booked);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());

    let ledger = Ledger::read(directory.path()).unwrap();
    let entry = &ledger.references[&ORDER];
    assert_eq!((entry.requests, entry.parcels.len()), (2, 1));
    assert_eq!(entry.parcels[0].state, State::Booked);
}

#[test]
fn a_rate_above_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_carrier"));
    let options = ["--lie-late", "1.1", "--directory"];
    let status = command.args(options).arg(directory.path()).stderr(Stdio::null()).status();
    assert!(!status.unwrap().success());
}
