//! Erases a customer in all services: one replacement id takes the place of the customer's id.

use std::io;

use anyhow::{Context, Result};
use chassis::db::erasure::{Erasure, ErasureRequest};
use checker::group_digits;
use launcher::Stack;
use uuid::Uuid;

/// The id of the customer comes from the environment or from standard input: no list of processes shows either.
const CUSTOMER: &str = "CUSTOMER";
const REPLACEMENT: &str = "REPLACEMENT";

/// Reads the id of the customer.
pub fn read_customer() -> Result<Uuid> {
    let text = match std::env::var(CUSTOMER).unwrap_or_default() {
        empty if empty.is_empty() => {
            eprintln!("the id of the customer, on a line:");
            let mut line = String::new();
            io::stdin().read_line(&mut line)?;
            line
        }
        text => text,
    };
    text.trim().parse().context("this is not the id of a customer")
}

/// The replacement of an earlier erasure, for a database that was restored from a backup of before.
pub fn read_replacement() -> Result<Option<Uuid>> {
    let text = std::env::var(REPLACEMENT).unwrap_or_default();
    let replacement = (!text.is_empty()).then(|| text.parse());
    replacement.transpose().context("REPLACEMENT is no id")
}

/// Erases a customer, and returns what each service changed. Order comes first: it refuses while a leg of an order is
/// open, and from then on no order of the customer is placed until the end.
///
/// # Errors
/// If order refuses, and then nothing was changed. If another step fails, a repeated run continues with the same
/// replacement.
pub async fn run(
    stack: &Stack,
    customer_id: Uuid,
    replacement: Option<Uuid>,
) -> Result<Vec<(String, Erasure)>> {
    let (replacement_id, actor) = (replacement.unwrap_or_else(Uuid::now_v7), std::env::var("USER"));
    let actor = actor.ok();
    let mut request = ErasureRequest { person_id: customer_id, replacement_id, actor };
    let mut erasures: Vec<(String, Erasure)> = Vec::new();
    let services = &stack.description().services;
    for service in services {
        let erased = run_command(stack, service, "erase", &request).await;
        let erased = match erasures.is_empty() {
            true => erased?,
            false => erased.context("the erasure is incomplete: run it again")?,
        };
        let erased: Erasure = serde_json::from_str(&erased)?;
        request.replacement_id = erased.replacement_id;
        erasures.push((service.clone(), erased));
    }
    // Order is the last one to go on: until then no event of the customer can meet a service that has not erased.
    for service in services.iter().rev() {
        let ended = run_command(stack, service, "end-erasure", &request).await;
        ended.context("the erasure has not ended: run it again")?;
    }
    Ok(erasures)
}

async fn run_command(
    stack: &Stack,
    service: &str,
    command: &str,
    request: &ErasureRequest,
) -> Result<String> {
    stack.run_service_command(service, command, &serde_json::to_string(request)?).await
}

/// What each service changed, as lines.
pub fn print(erasures: &[(String, Erasure)]) {
    for (service, erased) in erasures {
        println!("  {service:<13} {} values replaced", group_digits(erased.replaced));
    }
    if erasures.iter().all(|(_, erased)| erased.replaced == 0) {
        println!("  no service knows this customer");
    }
}
