//! A rule that no topic declares, added by hand with Kafka's own tool.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use launcher::Stack;
use launcher::directories::programs_directory;

const TOOL: &str = "org.apache.kafka.tools.AclCommand";

/// Gives a user the right of another one. The arguments are those that `contracts acls` prints.
pub async fn give_right_of(owner: &str, right: &str, user: &str, stack: &Stack) -> Result<()> {
    let printed = Command::new(programs_directory()?.join("contracts")).arg("acls").output()?;
    let printed = String::from_utf8(printed.stdout)?;
    let owned = format!("User:{owner} {right}");
    let line = printed.lines().find(|line| line.contains(&owned)).context("no such right")?;
    let line = line.replace(&format!("User:{owner} "), &format!("User:{user} "));
    let (java, classpath) = java_of_kafka(stack).await?;
    let settings = stack.directory().join("administrator.properties");
    fs::write(&settings, client_properties(stack)?)?;
    let (bootstrap, settings) = (stack.kafka_bootstrap()?, settings.display());
    let command = format!(
        "{java} -cp {classpath} {TOOL} --bootstrap-server {bootstrap} --command-config {settings} {line}"
    );
    let done = tokio::process::Command::new("sh").args(["-c", &command]).output().await?;
    let output = String::from_utf8_lossy(&done.stdout);
    ensure!(done.status.success(), "{line}: {output}{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// The Java and the class path of the running broker.
async fn java_of_kafka(stack: &Stack) -> Result<(String, String)> {
    let components = stack.status().await?;
    let kafka = components.iter().find(|it| it.name == "kafka").and_then(|it| it.pid);
    let command = fs::read_to_string(format!("/proc/{}/cmdline", kafka.context("no Kafka")?))?;
    let words: Vec<&str> = command.split('\0').collect();
    let classpath = words.iter().position(|word| *word == "-cp").context("no class path")? + 1;
    Ok((words[0].to_string(), words[classpath].to_string()))
}

/// The settings of the administrator for a client in Java.
fn client_properties(stack: &Stack) -> Result<String> {
    let client = stack.kafka_client()?;
    let of = |name: &str| client.get(name).with_context(|| format!("{name} is not set"));
    Ok(format!(
        "security.protocol=SSL\n\
         ssl.keystore.type=PEM\nssl.keystore.location={}\n\
         ssl.truststore.type=PEM\nssl.truststore.location={}\n",
        of("ssl.certificate.location")?,
        of("ssl.ca.location")?
    ))
}
