//! Renews the passwords and certificates of a secured stack, and the key of its tokens, while it works.
//!
//! A server has one password for a user at a time. A service reads a new password from its file, and goes on with the
//! old one for as long as the server refuses the new one, so the file changes first. A service accepts several token
//! keys at a time, so all services read a new key before it signs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep, sleep_until};

use crate::components::kafka::certificate_settings;
use crate::components::postgres::write_certificate;
use crate::components::postgres_roles::connect_as_superuser;
use crate::description::CONNECT;
use crate::directories::programs_directory;
use crate::secrets::scram::scram_verifier;
use crate::secrets::{
    ADMINISTRATOR, BROKER, CONSOLE, CONTRACTS, POSTGRES, REGISTRY, SUPERUSER, database_secret,
    kafka_secret, new_password, owner_role,
};
use crate::stack::Stack;

/// After this time every client trusts a new authority, and every server presents its new certificate: the registry
/// reads its own every 30 s.
const TAKEOVER: Duration = Duration::from_secs(45);

/// After this time every service has read the keys of tokens again: each does so every five seconds.
const KEYS_READ_AFTER: Duration = Duration::from_secs(10);

/// How long a rotation waits for the last token of the old key. The tools' tokens end sooner.
const TOKEN_END_TIMEOUT: Duration = Duration::from_secs(180);

/// The roles of a cluster that have a password, without its superuser.
const LOGIN_ROLES: &str = "select rolname::text from pg_roles where rolcanlogin and not rolsuper";

/// The node of the first broker.
const BROKER_ID: i32 = 1;

impl Stack {
    /// Renews the passwords and certificates of a secured stack, and the key that signs its tokens. Services take over
    /// passwords and certificates within ten seconds, and the registry its certificate within thirty. The listener of
    /// Kafka's controller presents its old certificate until Kafka starts again. The old key of the tokens is removed
    /// when the last token that it signed has ended.
    ///
    /// With `everything` it also renews what other programs on this machine hold, which therefore have to start again:
    /// the passwords of the superusers, and the authority that signs the certificates. First all trust the old
    /// authority and the new one, and in the end the new one alone.
    ///
    /// # Errors
    /// If the stack is not secured, or one of its servers does not run.
    pub async fn rotate(&self, everything: bool) -> Result<()> {
        ensure!(
            self.is_native() && self.is_secure()?,
            "only a stack with SECURE=1 has secrets to renew"
        );
        self.announce_token_key()?;
        let announced = Instant::now();
        for service in &self.description().services {
            let renewed = self.renew_database_passwords(service, everything).await;
            renewed.with_context(|| format!("the passwords of the database of {service}"))?;
        }
        self.print_progress("the passwords of the databases are renewed");
        let state = self.state()?;
        for user in state.kafka_users() {
            state.secrets()?.renew_password(&kafka_secret(user))?;
        }
        self.apply_contracts(&programs_directory()?).await?;
        self.print_progress("the passwords of Kafka are renewed");
        sleep_until(announced + KEYS_READ_AFTER).await;
        self.switch_token_key()?;
        self.print_progress("a new key signs the tokens");
        self.renew_certificates(everything).await?;
        self.retire_old_token_key().await
    }

    /// A stream processor and Kafka Connect read their passwords and their certificates at their start alone. They start
    /// again once, after both are renewed, because orders may wait for Kafka Connect. Until then their open connections
    /// stay valid. Kafka Connect comes first.
    async fn restart_flows(&self) -> Result<()> {
        let streams = self.streams_urls()?.into_iter().map(|(name, _)| name);
        for name in [CONNECT.to_string()].into_iter().chain(streams) {
            if self.is_running(&name).await? {
                self.stop(&name).await?;
                self.start(&name).await?;
            }
        }
        Ok(())
    }

    async fn renew_certificates(&self, everything: bool) -> Result<()> {
        if everything {
            self.state()?.secrets()?.add_ca()?;
            self.reload_kafka_certificates().await?;
            self.print_progress("both the old and the new authority are trusted");
            sleep(TAKEOVER).await;
        }
        // A client of a database trusts the authority that signs, and no other.
        let databases = self.connect_databases().await?;
        if everything {
            self.state()?.secrets()?.sign_with_new_ca()?;
        }
        let own = self.description().services.iter().chain(&self.description().stream_processors);
        let platform = [BROKER, CONTRACTS, ADMINISTRATOR, POSTGRES, REGISTRY, CONSOLE, CONNECT];
        for name in platform.into_iter().chain(own.map(String::as_str)) {
            self.state()?.secrets()?.renew_certificate(name)?;
        }
        self.reload_database_certificates(databases).await?;
        self.reload_kafka_certificates().await?;
        self.restart_flows().await?;
        self.print_progress("the certificates are renewed");
        if everything {
            sleep(TAKEOVER).await;
            self.state()?.secrets()?.drop_old_ca()?;
            self.reload_kafka_certificates().await?;
            self.print_progress("the old authority is no longer trusted");
        }
        Ok(())
    }

    /// Waits for the end of the last token of the old key, and removes that key. A token that lasts longer keeps it,
    /// until the first signature after the end of that token.
    async fn retire_old_token_key(&self) -> Result<()> {
        let deadline = Instant::now() + TOKEN_END_TIMEOUT;
        while let Some(end) = self.state()?.secrets()?.retire_ended_token_keys()? {
            if Instant::now() > deadline {
                let end = end.format("%F %T");
                self.print_progress(&format!(
                    "tokens of the old key are valid until {end} UTC; the next token that is signed after that \
                     removes the key"
                ));
                return Ok(());
            }
            sleep(Duration::from_secs(1)).await;
        }
        self.print_progress("the old key of the tokens is removed");
        Ok(())
    }

    async fn renew_database_passwords(&self, service: &str, everything: bool) -> Result<()> {
        let state = self.state()?;
        let secrets = state.secrets()?;
        let mut db = connect_as_superuser(&state, service).await?;
        let alter = |role: &str, password: &str| -> Result<_> {
            let verifier = scram_verifier(password)?;
            Ok(AssertSqlSafe(format!(r#"alter role "{role}" password '{verifier}'"#)))
        };
        // Also those of connectors, and of databases beside that of the service.
        let roles: Vec<String> = sqlx::query_scalar(LOGIN_ROLES).fetch_all(&mut db).await?;
        for role in &roles {
            let password = secrets.renew_password(&database_secret(service, role))?;
            if [service, &owner_role(service)].contains(&role.as_str()) {
                secrets.url_file(role, &state.database_url(service, role, service)?)?;
            }
            sqlx::query(alter(role, &password)?).execute(&mut db).await?;
        }
        if everything {
            // Stored once it is valid: without it, the launcher could not set the others again.
            let password = new_password();
            sqlx::query(alter(SUPERUSER, &password)?).execute(&mut db).await?;
            secrets.store_password(&database_secret(service, SUPERUSER), &password)?;
        }
        Ok(db.close().await?)
    }

    /// A connection to the database of each service, in their order.
    async fn connect_databases(&self) -> Result<Vec<PgConnection>> {
        let state = self.state()?;
        let connect = async |service: &String| connect_as_superuser(&state, service).await;
        try_join_all(self.description().services.iter().map(connect)).await
    }

    /// Has the databases read their certificates again. The services and the registry do so by themselves.
    async fn reload_database_certificates(&self, databases: Vec<PgConnection>) -> Result<()> {
        for (service, mut db) in self.description().services.iter().zip(databases) {
            let database = self.component(&format!("{service}-db"))?;
            write_certificate(&self.state()?, &self.process(&database).home)?;
            sqlx::query("select pg_reload_conf()").execute(&mut db).await?;
            db.close().await?;
        }
        Ok(())
    }

    /// Has Kafka read its certificate and those that it trusts again.
    async fn reload_kafka_certificates(&self) -> Result<()> {
        let state = self.state()?;
        let settings = certificate_settings(&state)?;
        let broker = AlterConfig::new(ResourceSpecifier::Broker(BROKER_ID));
        let broker = settings.iter().fold(broker, |broker, (name, file)| broker.set(name, file));
        let admin: AdminClient<DefaultClientContext> =
            state.kafka_client_as(ADMINISTRATOR)?.create()?;
        for altered in admin.alter_configs([&broker], &AdminOptions::new()).await? {
            altered.map_err(|(_, error)| error).context("Kafka does not read its certificates")?;
        }
        Ok(())
    }
}
