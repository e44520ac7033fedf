//! What each client of the stack presents, and what it trusts: the variables of the services and of
//! the program of the contracts, and the settings of Kafka's clients.

use std::path::Path;

use anyhow::Result;
use rdkafka::ClientConfig;

use crate::secrets::{CONTRACTS, KAFKA_USERS, SCRAM, SERVICES, kafka_secret, owner_role};
use crate::stack_state::StackState;
use crate::token_issuer::{AUDIENCE, ISSUER};
use crate::topology::HOST;

impl StackState {
    /// The settings of a client of Kafka with a name; see [`crate::Stack::kafka_client_as`].
    pub fn kafka_client_as(&self, name: &str) -> Result<ClientConfig> {
        let mut client = ClientConfig::new();
        let service = self.ports.services.get(name);
        let port = service.map_or(self.ports.kafka, |ports| ports.kafka);
        client.set("bootstrap.servers", format!("{HOST}:{port}"));
        if !self.secure {
            return Ok(client);
        }
        let secrets = self.secrets()?;
        client.set("ssl.ca.location", text(&secrets.ca()?));
        if service.is_some() {
            client
                .set("security.protocol", "sasl_ssl")
                .set("sasl.mechanism", SCRAM)
                .set("sasl.username", name)
                .set("sasl.password", secrets.password(&kafka_secret(name))?);
        } else {
            let certificate = text(&secrets.certificate(name)?);
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
        if !self.secure {
            return Ok(variables([("DATABASE_URL", own), ("MIGRATION_DATABASE_URL", owner)]));
        }
        let secrets = self.secrets()?;
        let (ca, certificate) = (text(&secrets.ca()?), text(&secrets.certificate(SERVICES)?));
        Ok(variables([
            ("SECURE", "1".to_string()),
            ("DATABASE_URL_FILE", text(&secrets.url_file(service, &own)?)),
            ("MIGRATION_DATABASE_URL_FILE", text(&secrets.url_file(&migrator, &owner)?)),
            ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl".to_string()),
            ("KAFKA_SASL_MECHANISM", SCRAM.to_string()),
            ("KAFKA_SASL_USERNAME", service.to_string()),
            ("KAFKA_SASL_PASSWORD_FILE", text(&secrets.password_file(&kafka_secret(service))?)),
            ("KAFKA_SSL_CA_LOCATION", ca.clone()),
            ("SSL_CERT_FILE", ca),
            ("HTTP_TLS_CERTIFICATE_LOCATION", certificate.clone()),
            ("HTTP_TLS_KEY_LOCATION", certificate),
            ("TOKEN_ISSUER", ISSUER.to_string()),
            ("TOKEN_AUDIENCE", AUDIENCE.to_string()),
            ("TOKEN_KEYS", text(&secrets.token_key_set()?)),
        ]))
    }

    /// The same for the program of the contracts, which also gives every service its user in Kafka.
    pub fn credentials_of_contracts(&self) -> Result<Vec<(String, String)>> {
        if !self.secure {
            return Ok(Vec::new());
        }
        let secrets = self.secrets()?;
        for service in self.ports.services.keys() {
            secrets.password_file(&kafka_secret(service))?;
        }
        let (ca, certificate) = (text(&secrets.ca()?), text(&secrets.certificate(CONTRACTS)?));
        Ok(variables([
            ("SECURE", "1".to_string()),
            ("KAFKA_SECURITY_PROTOCOL", "ssl".to_string()),
            ("KAFKA_SSL_CA_LOCATION", ca.clone()),
            ("KAFKA_SSL_CERTIFICATE_LOCATION", certificate.clone()),
            ("KAFKA_SSL_KEY_LOCATION", certificate),
            ("KAFKA_USERS_DIRECTORY", text(&secrets.path(KAFKA_USERS))),
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
