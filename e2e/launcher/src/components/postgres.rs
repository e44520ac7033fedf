//! The PostgreSQL cluster of a service. The settings that decide what survives a crash (`fsync`, `synchronous_commit`)
//! keep their defaults. The others make it small and quick to start.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::future::BoxFuture;
use sqlx::Connection;

use crate::artifacts::{self, Artifacts};
use crate::component::{Component, Context, Kind, Ready, Stage};
use crate::components::postgres_roles as roles;
use crate::description::{HOST, StackDescription};
use crate::directories::is_root;
use crate::environment::words;
use crate::processes::{LaunchCommand, NOBODY_ID, Signal};
use crate::secrets::{POSTGRES, SUPERUSER, database_secret, write_private};
use crate::state::StackState;

const INITDB_TIMEOUT: Duration = Duration::from_secs(120);

/// What a connector needs: a log from which rows can be read. A connector that is away keeps that log, up to a bound:
/// beyond it the database goes on, and the connector has lost its place.
const LOGICAL_LOG: [&str; 2] = ["wal_level=logical", "max_slot_wal_keep_size=2GB"];

/// A file with a key and its certificate, and the rules of access, in the home of a database.
const CERTIFICATE: &str = "server.pem";
const RULES: &str = "pg_hba.conf";

/// Every client uses TLS and a password.
const TLS_RULES: &str = "hostssl all all 127.0.0.1/32 scram-sha-256\n";

struct Postgres {
    service: String,
}

pub fn components(description: &StackDescription) -> Vec<Component> {
    let database = |(service, position): (&String, u16)| {
        let (name, kind) = (format!("{service}-db"), Postgres { service: service.clone() });
        Component {
            ports: vec![(name.clone(), 46320 + position)],
            ready: Ready::Asked,
            // On SIGTERM PostgreSQL waits for its clients to disconnect (a smart shutdown).
            stop_signal: Signal::INT,
            has_own_user: true,
            ..Component::new(&name, "postgres", Stage::Infrastructure, kind)
        }
    };
    description.positions().map(database).collect()
}

impl Postgres {
    /// Creates the cluster if there is none, and removes the lock file of a killed server.
    async fn provision(&self, artifacts: &Artifacts, context: &Context<'_>) -> Result<()> {
        let (home, state) = (&context.process.home, context.state);
        if is_root() {
            check_unprivileged_access(home)?;
            chown(home, Some(NOBODY_ID), Some(NOBODY_ID))?;
        }
        let cluster = home.join("data");
        if !cluster.exists() {
            // A temporary name first, so that the cluster is either complete or missing.
            let (fresh, password) = (home.join("data.new"), home.join("password"));
            let _ = fs::remove_dir_all(&fresh);
            let superuser = database_secret(&self.service, SUPERUSER);
            write_for_postgres(&password, state.secrets()?.password(&superuser)?.as_bytes())?;
            let initdb = initdb(artifacts, &fresh, &password);
            let created = context.process.run("initdb", &initdb, INITDB_TIMEOUT).await;
            fs::remove_file(password)?;
            created?;
            fs::rename(&fresh, &cluster)?;
        }
        // No process of this cluster lives at this point. Its old pid may belong to another program
        // now, and PostgreSQL would then refuse to start.
        let _ = fs::remove_file(cluster.join("postmaster.pid"));
        if state.secure {
            write_certificate(state, home)?;
            write_for_postgres(&home.join(RULES), TLS_RULES.as_bytes())?;
        }
        Ok(())
    }

    fn settings(&self, state: &StackState, home: &Path) -> Result<Vec<String>> {
        let mut settings = vec![
            format!("listen_addresses={HOST}"),
            format!("port={}", state.ports.get(&format!("{}-db", self.service))?),
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
        if state.connect {
            settings.extend(LOGICAL_LOG.map(String::from));
        }
        if state.secure {
            let certificate = home.join(CERTIFICATE).display().to_string();
            settings.extend([
                "ssl=on".to_string(),
                format!("ssl_cert_file={certificate}"),
                format!("ssl_key_file={certificate}"),
                "ssl_min_protocol_version=TLSv1.3".to_string(),
                format!("hba_file={}", home.join(RULES).display()),
            ]);
        }
        Ok(settings)
    }
}

impl Kind for Postgres {
    fn command<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<LaunchCommand>> {
        Box::pin(async move {
            let (artifacts, home) = (artifacts::fetched().await?, &context.process.home);
            self.provision(&artifacts, context).await?;
            let mut command = LaunchCommand::new(artifacts.postgres_bin.join("postgres"), ["-D"]);
            command.add([home.join("data").display().to_string()]);
            for setting in self.settings(context.state, home)? {
                command.add(["-c".to_string(), setting]);
            }
            // PostgreSQL uses the last value of an option.
            command.add(words("POSTGRES_OPTS", ""));
            command.unprivileged = is_root();
            Ok(command)
        })
    }

    fn check_ready<'a>(&'a self, state: &'a StackState) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut db = roles::connect_as_superuser(state, &self.service).await?;
            Ok(db.ping().await?)
        })
    }

    fn complete<'a>(&'a self, state: &'a StackState) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            roles::create_roles(state, &self.service, &self.service).await?;
            if state.connect {
                roles::create_connector_role(state, &self.service).await?;
            }
            Ok(())
        })
    }

    /// The stack got Kafka Connect while the database ran.
    fn outdated<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Option<&'static str>>> {
        Box::pin(async move {
            let is_needed = context.state.connect
                && !roles::has_logical_log(context.state, &self.service).await?;
            Ok(is_needed.then_some("needs a log for connectors"))
        })
    }
}

fn check_unprivileged_access(home: &Path) -> Result<()> {
    let is_closed = |path: &&Path| {
        let found = fs::metadata(path);
        found.is_ok_and(|found| found.mode() & 0o001 == 0 && found.uid() != NOBODY_ID)
    };
    if let Some(closed) = home.ancestors().find(is_closed) {
        bail!(
            "PostgreSQL runs as the user with id {NOBODY_ID}, which cannot enter {}: set HOLDFAST_STATE to \
             a directory that every user may enter",
            closed.display()
        );
    }
    Ok(())
}

/// Gives a database server the certificate of all database servers.
pub fn write_certificate(state: &StackState, home: &Path) -> Result<()> {
    let certificate = fs::read(state.secrets()?.certificate(POSTGRES)?)?;
    write_for_postgres(&home.join(CERTIFICATE), &certificate)
}

/// Writes a file that only the user of the database server may read.
fn write_for_postgres(file: &Path, content: &[u8]) -> Result<()> {
    write_private(file, content)?;
    if is_root() {
        chown(file, Some(NOBODY_ID), Some(NOBODY_ID))?;
    }
    Ok(())
}

/// Creates a new cluster. Only its superuser `postgres` can log in, only from this machine, and with
/// the password in the file.
fn initdb(artifacts: &Artifacts, into: &Path, password_file: &Path) -> LaunchCommand {
    let into = into.display().to_string();
    let password_file = password_file.display().to_string();
    let arguments = [
        "-D",
        &into,
        "-U",
        SUPERUSER,
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
    let mut command = LaunchCommand::new(artifacts.postgres_bin.join("initdb"), arguments);
    command.unprivileged = is_root();
    command
}
