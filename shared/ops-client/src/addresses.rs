//! Where one port of each service is reached.

use std::str::FromStr;

use reqwest::Url;

/// The addresses of one port of the services, by service, in the given sequence. Its text is `name=url`,
/// comma-separated; a service with several instances is named once for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(pub Vec<(String, Vec<Url>)>);

impl Addresses {
    /// The addresses of a service.
    pub fn get(&self, service: &str) -> &[Url] {
        let found = self.0.iter().find(|(name, _)| name == service);
        found.map_or(&[], |(_, urls)| urls)
    }

    /// The names of the services.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }
}

impl FromStr for Addresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Addresses, String> {
        let mut addresses = Addresses::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, url) = part.split_once('=').ok_or("each part is `name=url`")?;
            let url: Url =
                url.trim().parse().map_err(|error| format!("the URL of {name}: {error}"))?;
            if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
                return Err(format!("the URL of {name} does not begin with http:// or https://"));
            }
            let (name, known) = (name.trim().to_string(), &mut addresses.0);
            match known.iter_mut().find(|(known, _)| *known == name) {
                Some((_, urls)) => urls.push(url),
                None => known.push((name, vec![url])),
            }
        }
        match addresses.0.is_empty() {
            true => Err("it names no service".to_string()),
            false => Ok(addresses),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_named_twice_has_two_instances() {
        let text = "order=http://a:1,stock=http://b:2, order=http://c:3";
        let addresses: Addresses = text.parse().unwrap();
        assert_eq!(Vec::from_iter(addresses.names()), ["order", "stock"]);
        assert_eq!(addresses.get("order").len(), 2);
        assert_eq!(addresses.get("payment").len(), 0);
        for refused in ["", "order", "order=a:1", "order=ftp://a", "http://a"] {
            assert!(refused.parse::<Addresses>().is_err(), "{refused}");
        }
    }
}
