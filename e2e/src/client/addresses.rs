//! The addresses of a stack, as its clients and the checker use them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use launcher::Stack;
use rdkafka::ClientConfig;
use uuid::Uuid;

use crate::stack_description::{CARRIER, ships};

/// Where clients reach each part of a stack.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// The first instance of each service: its API and its admin port.
    pub apis: BTreeMap<String, String>,
    pub admins: BTreeMap<String, String>,
    pub databases: BTreeMap<String, String>,
    pub kafka: ClientConfig,
    pub registry: String,
    /// What certificates of a secured stack are checked against.
    pub ca: Option<PathBuf>,
    /// The directory of the carrier's ledger, in a native stack that ships.
    pub carrier_ledger: Option<PathBuf>,
}

impl Addresses {
    pub fn from_stack(stack: &Stack) -> Result<Addresses> {
        let services = &stack.description().services;
        let each = |address: &dyn Fn(&str) -> Result<String>| -> Result<BTreeMap<String, String>> {
            services.iter().map(|service| Ok((service.clone(), address(service)?))).collect()
        };
        let ledger = ships(stack).then(|| stack.directory().join(CARRIER).join("data"));
        Ok(Addresses {
            apis: each(&|service| stack.url(service))?,
            admins: each(&|service| stack.admin_url(service))?,
            databases: each(&|service| stack.database_url(service))?,
            kafka: stack.kafka_client()?,
            registry: stack.registry_url()?,
            ca: stack.ca_certificate()?,
            carrier_ledger: ledger,
        })
    }

    /// The command `curl`, as a user types it for these addresses.
    pub fn curl(&self) -> String {
        let trusted = self.ca.as_ref().map(|ca| format!(" --cacert {}", ca.display()));
        format!("curl{}", trusted.unwrap_or_default())
    }

    /// The same with a token of a customer, if the stack asks for one.
    pub fn curl_as(&self, customer_id: Uuid, scope: &str) -> String {
        let curl = self.curl();
        if self.ca.is_none() {
            return curl;
        }
        let token = format!("$(make -s token WHO={customer_id} SCOPE={scope})");
        format!("{curl} -H \"Authorization: Bearer {token}\"")
    }
}
