//! The machine and the effective settings of the stack.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Result, ensure};
use e2e::stack_description::SERVICES;
use launcher::{Stack, artifacts};
use sqlx::{Connection, PgConnection};

/// Titles and descriptions.
pub async fn describe_environment(stack: &Stack) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut note = |what: &str, text: String| found.insert(what.to_string(), text);
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let value = |file: &str, label: &str| {
        let text = read(file);
        let line = text.lines().find_map(|line| line.strip_prefix(label));
        line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_string()
    };
    let kib = value("/proc/meminfo", "MemTotal:");
    let kib: f64 = kib.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
    let machine = format!(
        "{} cores ({}) and {:.0} GB, shared by everything, the load too; Linux {}",
        std::thread::available_parallelism()?,
        value("/proc/cpuinfo", "model name"),
        kib / 1e6,
        read("/proc/sys/kernel/osrelease").trim(),
    );
    note("Machine", machine);

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
    for (title, version) in artifacts::versions() {
        let text = match title {
            "Kafka" => format!(
                "{version} on Java {java}, {}; acks=all, of one broker: one copy, which it leaves to \
                 the system to sync",
                options["kafka"]
            ),
            "PostgreSQL" => describe_postgres(stack).await?,
            _ => format!("{version} on Java {java}, {}", options["registry"]),
        };
        note(title, text);
    }
    Ok(found)
}

/// The version of PostgreSQL, its compiler flags, its settings, and those that decide whether a
/// commit survives.
///
/// # Errors
/// Settings with which a commit does not survive a crash are an error: such results cannot be
/// compared.
async fn describe_postgres(stack: &Stack) -> Result<String> {
    for service in SERVICES {
        // As the service's role, which may have settings of its own.
        let mut db = PgConnection::connect(&stack.database_url(service)?).await?;
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
    let mut db = PgConnection::connect(&stack.maintenance_database_url("order")?).await?;
    let (version, flags, settings): (String, String, String) = sqlx::query_as(
        "select current_setting('server_version'),
                (select coalesce(substring(setting from '-O[0-3sg]'), '(unknown optimisation)')
                 from pg_config where name = 'CFLAGS'),
                string_agg(name || '=' || current_setting(name), ' ' order by name)
         from pg_settings
         where name in ('fsync', 'synchronous_commit', 'full_page_writes', 'wal_level',
                        'data_checksums')
            or source = 'command line'
               and name not in ('port', 'listen_addresses', 'unix_socket_directories')",
    )
    .fetch_one(&mut db)
    .await?;
    db.close().await?;
    Ok(format!("{version} compiled with {flags}, {settings}"))
}
