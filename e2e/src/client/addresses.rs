//! The addresses of a stack, as its clients and the checker use them.

use std::collections::BTreeMap;

use anyhow::Result;
use launcher::Stack;

use crate::stack_description::SERVICES;

/// Where clients reach each part of a stack.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// The first instance of each service: its API, its probes and its admin port.
    pub apis: BTreeMap<String, String>,
    pub probes: BTreeMap<String, String>,
    pub admins: BTreeMap<String, String>,
    pub databases: BTreeMap<String, String>,
    pub kafka: String,
    pub registry: String,
}

impl Addresses {
    pub fn from_stack(stack: &Stack) -> Result<Addresses> {
        let each = |address: &dyn Fn(&str) -> Result<String>| -> Result<BTreeMap<String, String>> {
            SERVICES.iter().map(|service| Ok((service.to_string(), address(service)?))).collect()
        };
        Ok(Addresses {
            apis: each(&|service| stack.url(service))?,
            probes: each(&|service| stack.probe_url(service))?,
            admins: each(&|service| stack.admin_url(service))?,
            databases: each(&|service| stack.database_url(service))?,
            kafka: stack.kafka_bootstrap()?,
            registry: stack.registry_url()?,
        })
    }
}
