//! Which instances there are: a service is named by one or several URLs, and a name may resolve to several addresses.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ops_client::Addresses;
use reqwest::Url;

/// How long the addresses of a name are used.
const RESOLVED_FOR: Duration = Duration::from_secs(5);

/// An instance of a service, and where its probes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub name: String,
    /// With the address in the place of the name.
    pub url: Url,
}

/// The instances of every service.
pub struct InstanceList {
    addresses: Addresses,
    known: Vec<(String, Vec<Instance>)>,
    resolved_at: Option<Instant>,
}

impl InstanceList {
    pub fn new(addresses: Addresses) -> InstanceList {
        InstanceList { addresses, known: Vec::new(), resolved_at: None }
    }

    /// The instances as of now, by service.
    pub async fn resolve(&mut self) -> &[(String, Vec<Instance>)] {
        if self.resolved_at.is_none_or(|at| at.elapsed() > RESOLVED_FOR) {
            let mut found = Vec::new();
            for (service, urls) in &self.addresses.0 {
                let mut instances = Vec::new();
                for url in urls {
                    instances.extend(resolve_url(url).await);
                }
                found.push((service.clone(), name_instances(service, instances)));
            }
            (self.known, self.resolved_at) = (found, Some(Instant::now()));
        }
        &self.known
    }
}

/// One URL for each address of its host, in a stable sequence. A name that does not resolve is kept: its instance is
/// shown as one that does not answer.
async fn resolve_url(url: &Url) -> Vec<Url> {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return vec![url.clone()];
    };
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return vec![url.clone()];
    }
    let Ok(found) = tokio::net::lookup_host((host, port)).await else { return vec![url.clone()] };
    let mut addresses: Vec<SocketAddr> = found.collect();
    addresses.sort_unstable();
    addresses.dedup();
    // `localhost` has an address in each family, and one program behind them.
    if host == "localhost" || addresses.is_empty() {
        return vec![url.clone()];
    }
    let with_address = |address: SocketAddr| {
        let mut url = url.clone();
        let _ = url.set_ip_host(address.ip());
        url
    };
    addresses.into_iter().map(with_address).collect()
}

/// The first has the name of the service, the second is `<service>-2`, as in the launcher.
fn name_instances(service: &str, found: Vec<Url>) -> Vec<Instance> {
    let name = |nth: usize| match nth {
        0 => service.to_string(),
        _ => format!("{service}-{}", nth + 1),
    };
    let instances = found.into_iter().enumerate();
    instances.map(|(nth, url)| Instance { name: name(nth), url }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_url_is_an_instance_and_a_name_that_does_not_resolve_stays_one() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        let urls = vec![url("http://127.0.0.1:9001"), url("http://nowhere.invalid:9001")];
        let mut list = InstanceList::new(Addresses(vec![("order".to_string(), urls)]));
        let found = list.resolve().await.to_vec();
        let names: Vec<_> = found[0].1.iter().map(|instance| &*instance.name).collect();
        assert_eq!(names, ["order", "order-2"]);
        assert_eq!(found[0].1[1].url.host_str(), Some("nowhere.invalid"));
    }
}
