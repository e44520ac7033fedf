//! The settings with which each component of the stack runs. The settings that decide what survives
//! a crash (`fsync`, `synchronous_commit`, `acks`) keep their defaults. The others make the stack
//! small and quick to start.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::artifacts::Artifacts;
use crate::directories::is_root;
use crate::java::java_options;
use crate::process::LaunchCommand;
use crate::registry_tokens;
use crate::secrets::REGISTRY;
use crate::stack_state::StackState;
use crate::topology::{Component, HOST};

/// What a connector needs: a log from which rows can be read. A connector that is away keeps that log, up to a bound:
/// beyond it the database goes on, and the connector has lost its place.
const LOGICAL_LOG: [&str; 2] = ["wal_level=logical", "max_slot_wal_keep_size=2GB"];

/// The PostgreSQL server of a service, with its data in `home/data`.
pub fn postgres(
    artifacts: &Artifacts,
    home: &Path,
    stack_state: &StackState,
    service: &str,
) -> Result<LaunchCommand> {
    let port = stack_state.service_ports(service)?.database;
    let settings = [
        format!("listen_addresses={HOST}"),
        format!("port={port}"),
        "unix_socket_directories=".to_string(),
        "max_connections=200".to_string(),
        "shared_buffers=64MB".to_string(),
        // Outbox and inbox are filled and emptied quickly, and bloat within a minute without
        // vacuum.
        "autovacuum_naptime=5s".to_string(),
        // A short naptime also analyzes young tables as often, so a small sample keeps that cheap.
        // No frequent query is planned by these statistics.
        "default_statistics_target=10".to_string(),
        "shared_preload_libraries=pg_stat_statements".to_string(),
        // The detail of a refused row contains its values.
        "log_error_verbosity=terse".to_string(),
    ];
    let captured = stack_state.connect.then(|| LOGICAL_LOG.map(String::from));
    let settings = settings.into_iter().chain(captured.into_iter().flatten());
    let mut arguments = vec!["-D".to_string(), home.join("data").display().to_string()];
    let tls = stack_state.secure.then(|| postgres_tls(home));
    for setting in settings.chain(tls.into_iter().flatten()) {
        arguments.extend(["-c".to_string(), setting]);
    }
    // PostgreSQL uses the last value of an option.
    let options = std::env::var("POSTGRES_OPTS").unwrap_or_default();
    arguments.extend(options.split_whitespace().map(String::from));
    Ok(LaunchCommand {
        program: artifacts.postgres_bin.join("postgres"),
        arguments,
        environment: stack_state.environment_of(&Component::Database(service.to_string()))?,
        unprivileged: is_root(),
    })
}

/// A file with a key and its certificate, and the rules of access, in the home of a database.
pub const POSTGRES_CERTIFICATE: &str = "server.pem";
pub const POSTGRES_RULES: &str = "pg_hba.conf";

/// Every client uses TLS and a password.
pub const POSTGRES_TLS_RULES: &str = "hostssl all all 127.0.0.1/32 scram-sha-256\n";

fn postgres_tls(home: &Path) -> [String; 5] {
    let certificate = home.join(POSTGRES_CERTIFICATE).display().to_string();
    [
        "ssl=on".to_string(),
        format!("ssl_cert_file={certificate}"),
        format!("ssl_key_file={certificate}"),
        "ssl_min_protocol_version=TLSv1.3".to_string(),
        format!("hba_file={}", home.join(POSTGRES_RULES).display()),
    ]
}

/// Creates a new cluster. Only its superuser `postgres` can log in, only from this machine, and with
/// the password in the file.
pub fn initdb(artifacts: &Artifacts, into: &Path, password_file: &Path) -> LaunchCommand {
    let into = into.display().to_string();
    let password_file = password_file.display().to_string();
    let arguments = [
        "-D",
        &into,
        "-U",
        "postgres",
        "-A",
        "scram-sha-256",
        "--pwfile",
        &password_file,
        "-E",
        "UTF8",
        "--locale-provider=builtin",
        "--locale=C.UTF-8",
        "--no-sync",
    ];
    LaunchCommand {
        program: artifacts.postgres_bin.join("initdb"),
        arguments: arguments.map(String::from).to_vec(),
        environment: Vec::new(),
        unprivileged: is_root(),
    }
}

/// The flags with which a Java process uses the archive of preloaded classes, which halves its
/// start time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ClassArchiveMode {
    Use,
    Create,
    Disabled,
}

pub fn registry(
    artifacts: &Artifacts,
    home: &Path,
    stack_state: &StackState,
    archive: ClassArchiveMode,
    into: &Path,
) -> Result<LaunchCommand> {
    let mut launch = java(artifacts, home, "REGISTRY_JAVA_OPTS", archive, into);
    let port = stack_state.ports.registry;
    launch.arguments.push(format!("-Dquarkus.http.host={HOST}"));
    if stack_state.secure {
        let certificate = stack_state.secrets()?.certificate(REGISTRY)?;
        let certificate = certificate.display();
        launch.arguments.extend([
            "-Dquarkus.http.insecure-requests=disabled".to_string(),
            format!("-Dquarkus.http.ssl-port={port}"),
            format!("-Dquarkus.http.ssl.certificate.files={certificate}"),
            format!("-Dquarkus.http.ssl.certificate.key-files={certificate}"),
            // The shortest that it accepts.
            "-Dquarkus.http.ssl.certificate.reload-period=30s".to_string(),
        ]);
        let key = stack_state.secrets()?.registry_key()?;
        launch.arguments.extend(registry_tokens::settings(&key)?);
    } else {
        launch.arguments.push(format!("-Dquarkus.http.port={port}"));
    }
    let jar = artifacts.registry_jar.display().to_string();
    launch.arguments.extend(["-jar".to_string(), jar]);
    // A commit reaches the disk before its response; H2's default delay is up to half a second.
    let url =
        format!("jdbc:h2:file:{};WRITE_DELAY=0", home.join("data").join("registry").display());
    launch.environment = [
        ("QUARKUS_OTEL_SDK_DISABLED", "true"),
        ("APICURIO_DATASOURCE_URL", &url),
        ("APICURIO_DATASOURCE_JDBC_INITIAL_SIZE", "2"),
        ("APICURIO_DATASOURCE_JDBC_MIN_SIZE", "2"),
    ]
    .map(|(key, value)| (key.to_string(), value.to_string()))
    .to_vec();
    Ok(launch)
}

pub fn java(
    artifacts: &Artifacts,
    home: &Path,
    variable: &str,
    archive: ClassArchiveMode,
    file: &Path,
) -> LaunchCommand {
    let options = java_options(variable);
    let mut arguments: Vec<String> = options.split_whitespace().map(String::from).collect();
    match archive {
        ClassArchiveMode::Use => {
            arguments.push(format!("-XX:SharedArchiveFile={}", file.display()))
        }
        ClassArchiveMode::Create => {
            arguments.push(format!("-XX:ArchiveClassesAtExit={}", file.display()))
        }
        ClassArchiveMode::Disabled => (),
    }
    // Native libraries are unpacked there; in the system's directory a SIGKILL would leave them
    // behind.
    arguments.push(format!("-Djava.io.tmpdir={}", home.join("tmp").display()));
    arguments.push("-XX:-UsePerfData".to_string());
    LaunchCommand { program: artifacts.java.clone(), arguments, ..LaunchCommand::default() }
}

/// A service's program: `serve` or `migrate`.
pub fn service(
    programs: &Path,
    name: &str,
    subcommand: &str,
    stack_state: &StackState,
    component: &Component,
) -> Result<LaunchCommand> {
    let program = programs.join(name);
    ensure!(
        program.is_file(),
        "there is no program {}: build it first, in the profile of this program",
        program.display()
    );
    Ok(LaunchCommand {
        program,
        arguments: vec![subcommand.to_string()],
        environment: stack_state.environment_of(component)?,
        unprivileged: false,
    })
}
