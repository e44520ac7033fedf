//! The secrets of a secured docker compose. One container runs this at every start: it makes what is missing, and gives
//! each other container its own. Promise: no container reads what another one proves its name with. A directory that
//! two containers mount breaks it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::description::StackDescription;
use crate::directories::is_root;
use crate::secrets::{
    CONSOLE, CONTRACTS, KAFKA_USERS, SUPERUSER, Secrets, database_secret, kafka_secret, owner_role,
    registry_tokens, write_private,
};

/// Where each container mounts the directory with its name.
const MOUNTED_AT: &str = "/etc/holdfast";

/// The users of the images: that of our own programs, and those of the official ones in `docker-compose.yml`.
const PROGRAM: u32 = 65532;
const POSTGRES: u32 = 999;
const KAFKA: u32 = 1000;
const REGISTRY: u32 = 1001;

const REGISTRY_NAME: &str = "registry";
const BROKERS: [&str; 3] = ["kafka", "kafka-2", "kafka-3"];

/// A client gives a password over TLS. The image creates its database over the socket.
const POSTGRES_RULES: &str = "local all all scram-sha-256\nhostssl all all all scram-sha-256\n";

/// What one container reads.
struct Container<'a> {
    secrets: &'a Secrets,
    directory: PathBuf,
    user: u32,
}

impl Secrets {
    /// Gives each container what it needs, in the directory with its name below `into`.
    ///
    /// # Errors
    /// If a file cannot be written, or given to the user of its container.
    pub fn distribute(&self, description: &StackDescription, into: &Path) -> Result<()> {
        self.create()?;
        let container = |name: &str, user| Container::create(self, into.join(name), user);
        // A container without its service has no use for them, and they do no harm there.
        let description = description.of_stack(|_| true);
        for (optional, _) in description.optional_parts() {
            let secret = self.webhook_secret(&optional.calls)?;
            for name in [&optional.name, &optional.calls] {
                container(name, PROGRAM)?.add("webhook-secret", secret.as_bytes())?;
            }
        }
        for service in &description.services {
            container(service, PROGRAM)?.add_service(service)?;
            let migrations = container(&format!("{service}-migrations"), PROGRAM)?;
            migrations.add_service(service)?;
            migrations.add_url("migration-database-url", service, &owner_role(service))?;
        }
        for processor in &description.stream_processors {
            container(processor, PROGRAM)?.add_program(processor)?;
        }
        for service in description.services.iter().map(String::as_str).chain([REGISTRY_NAME]) {
            container(&format!("{service}-db"), POSTGRES)?.add_database(service)?;
        }
        for broker in BROKERS {
            container(broker, KAFKA)?.add_certificate(broker)?;
        }
        container(REGISTRY_NAME, REGISTRY)?.add_registry()?;
        container(CONSOLE, PROGRAM)?.add_certificate(CONSOLE)?;
        let contracts = container(CONTRACTS, PROGRAM)?;
        contracts.add_certificate(CONTRACTS)?;
        contracts.add("registry-token", &fs::read(self.registry_token()?)?)?;
        contracts.add_directory(KAFKA_USERS)?;
        for user in description.services.iter().chain(&description.stream_processors) {
            let secret = kafka_secret(user);
            contracts.add(&secret, self.password(&secret)?.as_bytes())?;
        }
        // The launcher signs tokens with the key, and uses Kafka as its administrator.
        self.token_key_set().map(drop)
    }
}

impl<'a> Container<'a> {
    fn create(secrets: &'a Secrets, directory: PathBuf, user: u32) -> Result<Self> {
        let container = Container { secrets, directory, user };
        container.add_directory("")?;
        container.add("ca.pem", &fs::read(secrets.ca()?)?)?;
        Ok(container)
    }

    fn add_directory(&self, name: &str) -> Result<()> {
        let directory = self.directory.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&directory);
        made.with_context(|| format!("cannot create {}", directory.display()))
    }

    /// Writes a file that only the user of the container may read.
    fn add(&self, name: &str, content: &[u8]) -> Result<()> {
        let file = self.directory.join(name);
        let give = || if is_root() { chown(&file, Some(self.user), None) } else { Ok(()) };
        let written = write_private(&file, content).and_then(|()| give());
        written.with_context(|| format!("cannot write {}", file.display()))
    }

    fn add_certificate(&self, name: &str) -> Result<()> {
        self.add("server.pem", &fs::read(self.secrets.certificate(name)?)?)
    }

    fn add_password(&self, name: &str, service: &str, role: &str) -> Result<()> {
        let password = self.secrets.password(&database_secret(service, role))?;
        self.add(name, password.as_bytes())
    }

    fn add_url(&self, name: &str, service: &str, role: &str) -> Result<()> {
        let password = self.secrets.password(&database_secret(service, role))?;
        let url = format!(
            "postgres://{role}:{password}@{service}-db:5432/{service}\
             ?sslmode=verify-full&sslrootcert={MOUNTED_AT}/ca.pem"
        );
        self.add(name, url.as_bytes())
    }

    fn add_service(&self, service: &str) -> Result<()> {
        self.add_program(service)?;
        self.add_url("database-url", service, service)
    }

    /// What a program needs that consumes events and answers callers.
    fn add_program(&self, name: &str) -> Result<()> {
        self.add_certificate(name)?;
        self.add("kafka-password", self.secrets.password(&kafka_secret(name))?.as_bytes())?;
        self.add("token-keys.json", &fs::read(self.secrets.token_key_set()?)?)
    }

    fn add_database(&self, service: &str) -> Result<()> {
        self.add_certificate(&format!("{service}-db"))?;
        self.add("pg_hba.conf", POSTGRES_RULES.as_bytes())?;
        self.add_password("superuser-password", service, SUPERUSER)?;
        self.add_password("migrator-password", service, &owner_role(service))?;
        self.add_password("service-password", service, service)
    }

    /// The registry reads its secrets from a file of settings, which goes before its variables.
    fn add_registry(&self) -> Result<()> {
        self.add_certificate(REGISTRY_NAME)?;
        let role = owner_role(REGISTRY_NAME);
        let password = self.secrets.password(&database_secret(REGISTRY_NAME, &role))?;
        let mut lines = vec![
            "config_ordinal=500".to_string(),
            format!("apicurio.datasource.password={password}"),
        ];
        let arguments = registry_tokens::settings(&self.secrets.registry_key()?)?;
        lines.extend(arguments.iter().map(|it| it.trim_start_matches("-D").to_string()));
        self.add("registry.properties", (lines.join("\n") + "\n").as_bytes())
    }
}
