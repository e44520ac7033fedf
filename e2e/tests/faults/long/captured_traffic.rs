//! What a listener between two processes could read.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use launcher::StackDescription;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::*;

const RATE: u32 = 20;
const SECONDS: u64 = 10;

/// All traffic of a stack under load is captured and searched. A stack without the switch shows that the search finds
/// what is there. No password is searched for in it: both servers ask for a proof of the password, and the client
/// never sends it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tcpdump, as root: make faults"]
async fn the_traffic_of_a_secured_stack_shows_no_customer_no_item_and_no_password() -> Result<()> {
    if !Path::new("/usr/bin/tcpdump").is_file() {
        return skip_or_fail("there is no tcpdump (Debian: tcpdump)");
    }
    without_fixture(async || {
        let open = captured_words(false).await?;
        ensure!(
            open == ["customer", "customer in bytes", "item"],
            "the search finds only {open:?}"
        );
        let secured = captured_words(true).await?;
        ensure!(secured.is_empty(), "the traffic shows {secured:?}");
        Ok(())
    })
    .await
}

/// The words that the traffic of a stack shows.
async fn captured_words(secure: bool) -> Result<Vec<&'static str>> {
    let stack = Stack::ephemeral(&StackDescription { secure, ..stack_description() })?;
    let file = stack.directory().join("captured.pcap");
    let client = start_and_seed(&stack).await?;
    let tcpdump = start_capture(&stack, &file).await?;
    let customer = rich_customer();
    under_load_without_errors(&client, RATE, SECONDS, async {
        let order = client.place_until_accepted(customer, &basket()).await?;
        client.wait_until_ended(order.order_id, TIMEOUT).await
    })
    .await?;
    stop_capture(tcpdump).await?;
    let captured = std::fs::read(&file)?;
    ensure!(captured.len() > 1_000_000, "only {} bytes were captured", captured.len());
    let words = words_of(&stack, customer)?;
    let found = words
        .into_iter()
        .filter(|(_, word)| captured.windows(word.len()).any(|window| window == word));
    let found: BTreeSet<&str> = found.map(|(kind, _)| kind).collect();
    stack.clean().await?;
    Ok(found.into_iter().collect())
}

fn words_of(stack: &Stack, customer: Uuid) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut words = vec![
        ("customer", customer.to_string().into_bytes()),
        ("customer in bytes", customer.as_bytes().to_vec()),
    ];
    words.extend(basket().into_iter().map(|line| ("item", line.sku.into_bytes())));
    for service in SERVICES {
        for url in [stack.service_database_url(service)?, stack.owner_database_url(service)?] {
            let password = url.split([':', '@']).nth(2).context("a password")?;
            words.push(("password", password.as_bytes().to_vec()));
        }
        let kafka = stack.kafka_client_as(service)?;
        words.extend(kafka.get("sasl.password").map(|it| ("password", it.as_bytes().to_vec())));
    }
    words.extend(stack.registry_token()?.map(|token| ("token", token.into_bytes())));
    Ok(words)
}

/// Captures what passes the ports of a stack, until it is stopped.
async fn start_capture(stack: &Stack, file: &Path) -> Result<Child> {
    let mut ports = Vec::new();
    collect_ports(&serde_json::to_value(stack.ports()?)?, &mut ports);
    let ports: Vec<String> = ports.iter().map(|port| format!("tcp port {port}")).collect();
    let mut tcpdump = Command::new("/usr/bin/tcpdump")
        .args(["-i", "lo", "--immediate-mode", "-B", "65536", "-U", "-Z", "root", "-w"])
        .arg(file)
        .arg(ports.join(" or "))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut said = BufReader::new(tcpdump.stderr.take().context("its messages")?).lines();
    while let Some(line) = said.next_line().await? {
        if line.contains("listening on") {
            // Its later messages need a reader.
            tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
            return Ok(tcpdump);
        }
    }
    anyhow::bail!("tcpdump cannot capture")
}

fn collect_ports(value: &Value, ports: &mut Vec<u64>) {
    match value {
        Value::Number(port) => ports.extend(port.as_u64()),
        Value::Array(values) => values.iter().for_each(|value| collect_ports(value, ports)),
        Value::Object(fields) => fields.values().for_each(|value| collect_ports(value, ports)),
        _ => {}
    }
}

async fn stop_capture(mut tcpdump: Child) -> Result<()> {
    let id = tcpdump.id().context("tcpdump has ended")?;
    Command::new("kill").args(["-INT", &id.to_string()]).status().await?;
    tokio::time::timeout(TIMEOUT, tcpdump.wait()).await??;
    Ok(())
}
