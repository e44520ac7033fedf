//! What the worker of Kafka Connect presents and trusts in a secured stack.
//!
//! Promise: a connector can name the worker's own passwords and no others. A link to another secret in the directory
//! that the worker's provider reads breaks it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::PKey;
use openssl::x509::X509;
use serde_json::{Map, Value};

use crate::description::CONNECT;
use crate::secrets::{
    SCRAM, Secrets, create_private_directory, database_secret, kafka_secret, write_private,
};
use crate::state::StackState;

/// The settings of a connector.
pub type ConnectorConfig = Map<String, Value>;

/// The name of the worker's password for Kafka among its own secrets.
const KAFKA_PASSWORD: &str = "kafka";

/// The clients of Kafka whose settings have a prefix: that of the worker itself, and those of its connectors.
const CLIENTS: [&str; 4] = ["", "producer.", "consumer.", "admin."];

/// The setting with which a client of Kafka names its user.
const USER_SETTING: &str = "sasl.jaas.config";

impl StackState {
    /// The directory of the worker's own secrets.
    pub(crate) fn connect_secrets(&self) -> Result<PathBuf> {
        link(self.secrets()?, KAFKA_PASSWORD, &kafka_secret(CONNECT))
    }

    /// Lets the worker read the password of a role in the database of a service. Returns what stands for the password in
    /// the settings of a connector: a reference that the worker resolves.
    pub(crate) fn connect_password(&self, service: &str, role: &str) -> Result<String> {
        let directory = link(self.secrets()?, role, &database_secret(service, role))?;
        Ok(reference(&directory, role))
    }

    /// The settings with which the worker of a secured stack reaches Kafka and serves its REST API. The API asks for the
    /// certificate of the worker itself, which only the launcher has: the key store of the API has no other certificate,
    /// and the API trusts what is in it.
    pub(crate) fn connect_credentials(&self, home: &Path) -> Result<Vec<String>> {
        let password = reference(&self.connect_secrets()?, KAFKA_PASSWORD);
        let user = login(CONNECT, &password);
        let ca = self.secrets()?.ca()?;
        let for_client = |prefix: &str| {
            [
                format!("{prefix}security.protocol=SASL_SSL"),
                format!("{prefix}sasl.mechanism={SCRAM}"),
                format!("{prefix}{USER_SETTING}={user}"),
                format!("{prefix}ssl.truststore.type=PEM"),
                format!("{prefix}ssl.truststore.location={}", ca.display()),
            ]
        };
        let key_store = self.write_key_store(home)?;
        let api = [
            "keystore.type=PKCS12".to_string(),
            format!("keystore.location={}", key_store.display()),
            format!("keystore.password={password}"),
            format!("key.password={password}"),
            "client.auth=required".to_string(),
            "enabled.protocols=TLSv1.3".to_string(),
        ];
        let api = api.map(|setting| format!("listeners.https.ssl.{setting}"));
        Ok(CLIENTS.into_iter().flat_map(for_client).chain(api).collect())
    }

    /// The settings with which the clients of a connector of a secured stack are the user of its name, if a feature of the
    /// stack has such a user.
    pub(crate) fn connector_credentials(&self, connector: &str) -> Result<ConnectorConfig> {
        if !self.secure || !self.features.values().flatten().any(|user| user == connector) {
            return Ok(ConnectorConfig::new());
        }
        let file = format!("{KAFKA_PASSWORD}-{connector}");
        let directory = link(self.secrets()?, &file, &kafka_secret(connector))?;
        let user = login(connector, &reference(&directory, &file));
        let clients = CLIENTS.iter().filter(|client| !client.is_empty());
        let settings =
            clients.map(|client| (format!("{client}override.{USER_SETTING}"), user.clone().into()));
        Ok(settings.collect())
    }

    /// The REST API reads no PEM files.
    fn write_key_store(&self, home: &Path) -> Result<PathBuf> {
        let secrets = self.secrets()?;
        let pem = fs::read(secrets.certificate(CONNECT)?)?;
        let (key, certificate) = (PKey::private_key_from_pem(&pem)?, X509::from_pem(&pem)?);
        let mut store = Pkcs12::builder();
        store.name(CONNECT).pkey(&key).cert(&certificate);
        let store = store.build2(&secrets.password(&kafka_secret(CONNECT))?)?;
        let file = home.join("rest.p12");
        write_private(&file, &store.to_der()?)?;
        Ok(file)
    }

    /// The file with the certificate and the key that a client of the REST API presents, in a secured stack.
    pub(crate) fn connect_certificate(&self) -> Result<Option<PathBuf>> {
        self.secure.then(|| self.secrets()?.certificate(CONNECT)).transpose()
    }
}

/// Adds a password to the worker's own secrets. A link, because the password may be renewed. Returns their directory.
fn link(secrets: &Secrets, name: &str, password: &str) -> Result<PathBuf> {
    let (directory, file) = (secrets.path(CONNECT), secrets.password_file(password)?);
    create_private_directory(&directory)?;
    let fresh = directory.join(format!(".{name}.new"));
    let _ = fs::remove_file(&fresh);
    symlink(file, &fresh).and_then(|()| fs::rename(&fresh, directory.join(name)))?;
    Ok(directory)
}

/// The value of the setting that names a user and its password.
fn login(user: &str, password: &str) -> String {
    let module = "org.apache.kafka.common.security.scram.ScramLoginModule";
    format!("{module} required username=\"{user}\" password=\"{password}\";")
}

fn reference(directory: &Path, name: &str) -> String {
    format!("${{secrets:{}:{name}}}", directory.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Ports;

    #[test]
    fn the_settings_name_passwords_and_the_provider_reaches_those_of_the_worker_alone() {
        let home = tempfile::tempdir().unwrap();
        let secrets = Secrets::in_directory(home.path().join("secrets"));
        secrets.create().unwrap();
        let mut state = StackState::new(Ports::default());
        (state.secure, state.secrets) = (true, Some(secrets.clone()));
        secrets.password(&database_secret("a", "postgres")).unwrap();
        let password = state.connect_password("a", "a_connector").unwrap();
        let settings = state.connect_credentials(home.path()).unwrap().join("\n");
        let known = secrets.password(&kafka_secret(CONNECT)).unwrap();
        assert!(settings.contains("${secrets:") && !settings.contains(&known));
        let role = secrets.password(&database_secret("a", "a_connector")).unwrap();
        let directory = state.connect_secrets().unwrap();
        assert_eq!(password, reference(&directory, "a_connector"));
        assert_eq!(fs::read_to_string(directory.join("a_connector")).unwrap(), role);
        // A renewed password is that of the same link.
        let renewed = secrets.renew_password(&kafka_secret(CONNECT)).unwrap();
        assert_eq!(fs::read_to_string(directory.join(KAFKA_PASSWORD)).unwrap(), renewed);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        // A connector is a user of its own, where a feature has it.
        assert!(state.connector_credentials("a-outbox").unwrap().is_empty());
        state.features.insert("cdc".to_string(), vec!["a-outbox".to_string()]);
        let settings = state.connector_credentials("a-outbox").unwrap();
        let user = settings["admin.override.sasl.jaas.config"].as_str().unwrap();
        assert!(user.contains(r#"username="a-outbox" password="${secrets:"#), "{user}");
        assert_eq!(settings.len(), 3);
        let own = fs::read_to_string(directory.join("kafka-a-outbox")).unwrap();
        assert_eq!(own, secrets.password(&kafka_secret("a-outbox")).unwrap());
    }
}
