//! What each client of the stack presents, and what it trusts: the variables of the services and of
//! the program of the contracts, and the settings of clients of Kafka and of HTTP.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rdkafka::ClientConfig;
use reqwest::{Certificate, Client, ClientBuilder, Identity};

use crate::description::CONNECT;
use crate::processes::{Variables, variables};
use crate::secrets::token_issuer::{AUDIENCE, ISSUER};
use crate::secrets::{CONTRACTS, KAFKA_USERS, SCRAM, connector_role, kafka_secret, owner_role};
use crate::state::StackState;

impl StackState {
    /// The settings of a client of Kafka with a name; see [`crate::Stack::kafka_client_as`].
    pub fn kafka_client_as(&self, name: &str) -> Result<ClientConfig> {
        let mut client = ClientConfig::new();
        // A user of a feature uses the listener of Kafka Connect.
        let has_password = self.kafka_users().contains(name);
        let own = if self.ports.get(&format!("{name}-kafka")).is_ok() { name } else { CONNECT };
        let port = if has_password { format!("{own}-kafka") } else { "kafka".to_string() };
        client.set("bootstrap.servers", self.address(&port)?);
        if !self.secure {
            return Ok(client);
        }
        let secrets = self.secrets()?;
        client.set("ssl.ca.location", text(&secrets.ca()?));
        if has_password {
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

    /// The variables of a service that calls a system outside.
    pub fn variables_of_caller(&self, system: &str) -> Result<Variables> {
        let name = |end: &str| format!("{}_{end}", system.to_uppercase());
        Ok(Variables::from([
            (name("URL"), format!("http://{}", self.address(system)?)),
            (name("KEY_HOURS"), "24".to_string()),
            (name("WEBHOOK_SECRET"), self.secrets()?.webhook_secret(system)?),
        ]))
    }

    /// A client of HTTP servers of the stack. In a secured stack with Kafka Connect it presents what the API of the
    /// worker asks for.
    pub fn http_client(&self) -> Result<ClientBuilder> {
        let client = Client::builder().no_proxy();
        let Some(ca) = self.ca()? else { return Ok(client) };
        // While the authority is replaced, the file has two.
        let authorities = Certificate::from_pem_bundle(&fs::read(ca)?)?;
        let client = authorities.into_iter().fold(client, ClientBuilder::add_root_certificate);
        if !self.connect {
            return Ok(client);
        }
        let pem = fs::read(self.secrets()?.certificate(CONNECT)?)?;
        Ok(client.identity(Identity::from_pkcs8_pem(&pem, &pem)?))
    }

    /// The variables with the database of a service, as the role that serves and as the owner of its tables.
    pub fn database_variables(&self, service: &str) -> Result<Variables> {
        let (owner, url) = (owner_role(service), |role| self.database_url(service, role, service));
        let roles = [("DATABASE_URL", service), ("MIGRATION_DATABASE_URL", owner.as_str())];
        let mut own = Variables::new();
        for (name, role) in roles {
            let url = url(role)?;
            if self.secure {
                let file = self.secrets()?.url_file(role, &url)?;
                own.insert(format!("{name}_FILE"), text(&file));
            } else {
                own.insert(name.to_string(), url);
            }
        }
        if self.connect {
            own.insert("CONNECTOR_ROLE".to_string(), connector_role(service));
        }
        Ok(own)
    }

    /// How a service or a stream processor reaches Kafka and the registry. In a secured stack also what it presents, how
    /// it encrypts, and whose tokens name its callers.
    pub fn variables_of_client(&self, name: &str) -> Result<Variables> {
        let mut own = variables([
            ("KAFKA_BOOTSTRAP_SERVERS", self.kafka_address(name)?),
            ("SCHEMA_REGISTRY_URL", self.registry_url()?),
        ]);
        if !self.secure {
            return Ok(own);
        }
        let secrets = self.secrets()?;
        own.extend(self.variables_of_server(name)?);
        own.extend(variables([
            ("KAFKA_SECURITY_PROTOCOL", "sasl_ssl".to_string()),
            ("KAFKA_SASL_MECHANISM", SCRAM.to_string()),
            ("KAFKA_SASL_USERNAME", name.to_string()),
            ("KAFKA_SASL_PASSWORD_FILE", text(&secrets.password_file(&kafka_secret(name))?)),
            ("KAFKA_SSL_CA_LOCATION", text(&secrets.ca()?)),
            ("TOKEN_ISSUER", ISSUER.to_string()),
            ("TOKEN_AUDIENCE", AUDIENCE.to_string()),
            ("TOKEN_KEYS", text(&secrets.token_key_set()?)),
        ]));
        Ok(own)
    }

    /// What an HTTPS server of a secured stack presents and trusts.
    pub fn variables_of_server(&self, name: &str) -> Result<Variables> {
        let secrets = self.secrets()?;
        let certificate = text(&secrets.certificate(name)?);
        Ok(variables([
            ("SECURE", "1".to_string()),
            ("SSL_CERT_FILE", text(&secrets.ca()?)),
            ("HTTP_TLS_CERTIFICATE_LOCATION", certificate.clone()),
            ("HTTP_TLS_KEY_LOCATION", certificate),
        ]))
    }

    /// What the program of the contracts presents in a secured stack. It also gives every service, every stream processor
    /// and every feature that runs its users in Kafka.
    pub fn credentials_of_contracts(&self) -> Result<Variables> {
        if !self.secure {
            return Ok(Variables::new());
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
