//! The machine and the effective settings of the stack.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Result, ensure};
use e2e::client::addresses::Addresses;
use launcher::{Stack, artifacts};
use sqlx::{Connection, PgConnection};

use crate::environment::BenchEnvironment;

/// Titles and descriptions.
pub async fn describe_environment(
    environment: &BenchEnvironment,
) -> Result<BTreeMap<String, String>> {
    let postgres = describe_postgres(&environment.client.addresses).await?;
    let machine = format!(
        "{} cores ({}) and {:.0} GB, shared by everything, the load too; Linux {}",
        std::fs::read_to_string("/proc/cpuinfo")?.matches("processor\t").count(),
        value("/proc/cpuinfo", "model name"),
        memory_gigabytes(),
        read("/proc/sys/kernel/osrelease").trim(),
    );
    let mut found = BTreeMap::from([("PostgreSQL", postgres), ("Machine", machine)]);
    found.extend(describe_java(&environment.stack).await?);
    Ok(found.into_iter().map(|(title, text)| (title.to_string(), text)).collect())
}

fn read(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default()
}

/// The rest of the first line that begins with this label.
fn value(file: &str, label: &str) -> String {
    let text = read(file);
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_string()
}

fn memory_gigabytes() -> f64 {
    let kib = value("/proc/meminfo", "MemTotal:");
    let kib: f64 = kib.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
    kib / 1e6
}

/// Kafka and the registry, with the options of Java that count.
async fn describe_java(stack: &Stack) -> Result<BTreeMap<&'static str, String>> {
    let (mut java, mut options) = (String::new(), BTreeMap::new());
    for component in stack.status().await? {
        let Some(pid) = component.pid else { continue };
        let words = read(&format!("/proc/{pid}/cmdline"));
        let chosen = words.split('\0').filter(|word| word.starts_with("-X"));
        // The class archives only matter for the start.
        let chosen: Vec<&str> = chosen.filter(|word| !word.contains("Archive")).collect();
        if let Some(home) = words.split('\0').next().and_then(|java| java.strip_suffix("/bin/java"))
        {
            java = value(&format!("{home}/release"), "JAVA_RUNTIME_VERSION=").replace('"', "");
        }
        options.insert(component.name, chosen.join(" "));
    }
    let described = artifacts::versions().filter_map(|(title, version)| match title {
        "Kafka" => Some((
            title,
            format!(
                "{version} on Java {java}, {}; acks=all, of one broker: one copy, which it leaves to the \
                 system to sync",
                options["kafka"]
            ),
        )),
        "PostgreSQL" => None,
        _ => Some((title, format!("{version} on Java {java}, {}", options["registry"]))),
    });
    Ok(described.collect())
}

/// Versions compiled with different optimisation cannot be compared.
const POSTGRES_DESCRIPTION: &str = "
    select format('%s in %s, compiled by %s with %s, %s', current_setting('server_version'),
                  (select setting from pg_config where name = 'BINDIR'),
                  coalesce(substring(version() from 'compiled by ([^,]+),'), '(unknown compiler)'),
                  (select coalesce(substring(setting from '-O[0-3sg]'), '(unknown optimisation)')
                   from pg_config where name = 'CFLAGS'),
                  string_agg(name || '=' || current_setting(name), ' ' order by name))
    from pg_settings
    where name in ('fsync', 'synchronous_commit', 'full_page_writes', 'wal_level', 'data_checksums')
       or source = 'command line'
          and name not in ('port', 'listen_addresses', 'unix_socket_directories')";

/// The version of PostgreSQL, its compiler and flags, its directory, and its settings, with those that decide
/// whether a commit survives.
///
/// # Errors
/// Settings with which a commit does not survive a crash are an error: such results cannot be
/// compared.
async fn describe_postgres(addresses: &Addresses) -> Result<String> {
    for (service, url) in &addresses.databases {
        let mut db = PgConnection::connect(url).await?;
        let off: Vec<String> = sqlx::query_scalar(
            "select name from pg_settings
             where name in ('fsync', 'synchronous_commit', 'full_page_writes') and setting = 'off'",
        )
        .fetch_all(&mut db)
        .await?;
        ensure!(off.is_empty(), "{service}: without {} nothing is measured", off.join(" and "));
        db.close().await?;
    }
    // As the superuser, the only role that may read the compiler flags.
    let mut db = PgConnection::connect(&addresses.databases["order"]).await?;
    let described = sqlx::query_scalar(POSTGRES_DESCRIPTION).fetch_one(&mut db).await?;
    db.close().await?;
    Ok(described)
}
