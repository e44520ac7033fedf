//! A stack that runs on other machines already. Variables hold its addresses.
//!
//! This machine then runs the load alone. It does not see the processes of the stack, so it cannot report their
//! processor time or their memory, nor run the yardstick on their disk.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::client::addresses::Addresses;
use e2e::stack_description::SERVICES;
use rdkafka::ClientConfig;

const KAFKA: &str = "BENCH_KAFKA_BOOTSTRAP_SERVERS";

/// The addresses of a stack, and the APIs of all instances of the order service.
pub struct OtherStack {
    pub addresses: Addresses,
    pub order_urls: Vec<String>,
}

/// The stack that the variables name, if they name one.
///
/// # Errors
/// If they name some parts of it and not all.
pub fn from_environment() -> Result<Option<OtherStack>> {
    from_variables(&|variable| std::env::var(variable).ok().filter(|value| !value.is_empty()))
}

fn from_variables(of: &dyn Fn(&str) -> Option<String>) -> Result<Option<OtherStack>> {
    let variable =
        |service: &str, of_what: &str| format!("BENCH_{}_{of_what}", service.to_uppercase());
    let kinds = ["URL", "ADMIN_URL", "DATABASE_URL"];
    let all = SERVICES.iter().flat_map(|service| kinds.map(|kind| variable(service, kind)));
    if !all.chain([KAFKA.to_string()]).any(|variable| of(&variable).is_some()) {
        return Ok(None);
    }
    let require = |variable: &str| {
        of(variable).with_context(|| {
            format!("{variable} is not set: the benchmark needs all addresses of the other stack")
        })
    };
    let each = |kind: &str| -> Result<BTreeMap<String, String>> {
        let address =
            |service: &&str| Ok((service.to_string(), require(&variable(service, kind))?));
        SERVICES.iter().map(address).collect()
    };
    let [mut apis, admins, databases] = [each("URL")?, each("ADMIN_URL")?, each("DATABASE_URL")?];
    let urls: Vec<String> = apis["order"].split(',').map(|url| url.trim().to_string()).collect();
    apis.insert("order".to_string(), urls[0].clone());
    for url in urls.iter().chain(apis.values()).chain(admins.values()) {
        ensure!(url.starts_with("http://"), "{url}: an address begins with http://");
    }
    let mut kafka = ClientConfig::new();
    kafka.set("bootstrap.servers", require(KAFKA)?);
    let addresses = Addresses { apis, admins, databases, kafka, ..Addresses::default() };
    Ok(Some(OtherStack { addresses, order_urls: urls }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_of_another_stack_are_needed_and_order_may_have_several() {
        let given = |absent: &'static str| {
            from_variables(&move |variable| {
                (variable != absent).then(|| match variable {
                    "BENCH_ORDER_URL" => "http://a:8001, http://b:8001".to_string(),
                    _ => format!("http://{variable}"),
                })
            })
        };
        assert!(from_variables(&|_| None).unwrap().is_none());
        let other = given("").unwrap().unwrap();
        assert_eq!(other.order_urls, ["http://a:8001", "http://b:8001"]);
        assert_eq!(other.addresses.apis["order"], "http://a:8001");
        for absent in [KAFKA, "BENCH_STOCK_ADMIN_URL"] {
            let refusal = given(absent).err().unwrap().to_string();
            assert!(refusal.starts_with(&format!("{absent} is not set")), "{refusal}");
        }
    }
}
