//! What each client of the stack presents, and what it trusts: the variables of the services and of
//! the program of the contracts, and the settings of Kafka's clients.

use std::path::Path;

use anyhow::Result;
use rdkafka::ClientConfig;

use crate::connect_ports::CONNECT;
use crate::secrets::{CONTRACTS, KAFKA_USERS, SCRAM, connector_role, kafka_secret, owner_role};
use crate::stack_state::StackState;
use crate::token_issuer::{AUDIENCE, ISSUER};
use crate::topology::HOST;

impl StackState {
    /// The settings of a client of Kafka with a name; see [`crate::Stack::kafka_client_as`].
    pub fn kafka_client_as(&self, name: &str) -> Result<ClientConfig> {
        let mut client = ClientConfig::new();
        let own = self.listener_of_user(name);
        let port = own.unwrap_or(self.ports.kafka);
        client.set("bootstrap.servers", format!("{HOST}:{port}"));
        if !self.secure {
            return Ok(client);
        }
        let secrets = self.secrets()?;
        client.set("ssl.ca.location", text(&secrets.ca()?));
        if own.is_some() {
            client
                .set("security.protocol", "sasl_ssl")
                .set("sasl.mechanism", SCRAM)
                .set("sasl.username", name)
                .set("sasl.password", secrets.password(&kafka_secret(name))?);
        } else {
            let certificate = text(&secrets.client_certificate(name)?);
            client
                .set("security.protocol", "ssl")
                .set("ssl.certificate.location", &certificate)
                .set("ssl.key.location", &certificate);
        }
        Ok(client)
    }

    /// The variables of a service that hold its credentials and say what it trusts.
    pub fn credentials_of_service(&self, service: &str) -> Result<Vec<(String, String)>> {
        let url = |role: &str| self.database_url(service, role, service);
        let migrator = owner_role(service);
        let (own, owner) = (url(service)?, url(&migrator)?);
        let role = variables([("CONNECTOR_ROLE", connector_role(service))]);
        let role = role.into_iter().filter(|_| self.connect);
        if !self.secure {
            let urls = variables([("DATABASE_URL", own), ("MIGRATION_DATABASE_URL", owner)]);
            return Ok(urls.into_iter().chain(role).collect());
        }
        let secrets = self.secrets()?;
        let further = variables([
            ("DATABASE_URL_FILE", text(&secrets.url_file(service, &own)?)),
            ("MIGRATION_DATABASE_URL_FILE", text(&secrets.url_file(&migrator, &owner)?)),
        ]);
        Ok(self.wires_of(service)?.into_iter().chain(further).chain(role).collect())
    }

    /// What a service or a stream processor of a secured stack presents to Kafka, how it encrypts, and whose tokens name
    /// its callers.
    fn wires_of(&self, name: &str) -> Result<Vec<(String, String)>> {
        let secrets = self.secrets()?;
        let (ca, certificate) = (text(&secrets.ca()?), text(&secrets.certificate(name)?));
        Ok(variables([
            ("SECURE", "1".to_string()),
            ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl".to_string()),
            ("KAFKA_SASL_MECHANISM", SCRAM.to_string()),
            ("KAFKA_SASL_USERNAME", name.to_string()),
            ("KAFKA_SASL_PASSWORD_FILE", text(&secrets.password_file(&kafka_secret(name))?)),
            ("KAFKA_SSL_CA_LOCATION", ca.clone()),
            ("SSL_CERT_FILE", ca),
            ("HTTP_TLS_CERTIFICATE_LOCATION", certificate.clone()),
            ("HTTP_TLS_KEY_LOCATION", certificate),
            ("TOKEN_ISSUER", ISSUER.to_string()),
            ("TOKEN_AUDIENCE", AUDIENCE.to_string()),
            ("TOKEN_KEYS", text(&secrets.token_key_set()?)),
        ]))
    }

    /// The variables of a stream processor.
    pub fn streams_environment(&self, name: &str) -> Result<Vec<(String, String)>> {
        let ports = self.streams_ports(name)?;
        let mut environment = variables([
            ("HTTP_ADDR", format!("{HOST}:{}", ports.api)),
            ("PROBE_ADDR", format!("{HOST}:{}", ports.probe)),
            ("KAFKA_BOOTSTRAP_SERVERS", self.kafka_address(name)?),
            ("SCHEMA_REGISTRY_URL", self.registry_url()),
            // In its working directory.
            ("STATE_DIRECTORY", "state".to_string()),
        ]);
        if self.secure {
            environment.extend(self.wires_of(name)?);
        }
        Ok(environment)
    }

    /// The same for the program of the contracts, which also gives every service, every stream processor and every feature
    /// that runs its users in Kafka.
    pub fn credentials_of_contracts(&self) -> Result<Vec<(String, String)>> {
        if !self.secure {
            return Ok(Vec::new());
        }
        let secrets = self.secrets()?;
        for user in self.kafka_users() {
            secrets.password_file(&kafka_secret(user))?;
        }
        let connect = self.connect.then_some(CONNECT);
        let features: Vec<&str> = self.features.keys().map(String::as_str).chain(connect).collect();
        let (ca, certificate) = (text(&secrets.ca()?), text(&secrets.certificate(CONTRACTS)?));
        Ok(variables([
            ("SECURE", "1".to_string()),
            ("KAFKA_SECURITY_PROTOCOL", "ssl".to_string()),
            ("KAFKA_SSL_CA_LOCATION", ca.clone()),
            ("KAFKA_SSL_CERTIFICATE_LOCATION", certificate.clone()),
            ("KAFKA_SSL_KEY_LOCATION", certificate),
            ("KAFKA_USERS_DIRECTORY", text(&secrets.path(KAFKA_USERS))),
            ("FEATURES", features.join(",")),
            ("SCHEMA_REGISTRY_TOKEN_FILE", text(&secrets.registry_token()?)),
            ("SSL_CERT_FILE", ca),
        ]))
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn variables<const N: usize>(settings: [(&str, String); N]) -> Vec<(String, String)> {
    settings.map(|(key, value)| (key.to_string(), value)).to_vec()
}
