//! The discovery document of an issuer: where it answers (OpenID Connect Discovery).

use reqwest::Url;
use serde::Deserialize;

/// The part of the document that is read here.
#[derive(Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Vec<String>,
}

/// Where the issuer answers.
pub struct Discovery {
    pub authorization_endpoint: Url,
    pub token_endpoint: Url,
    /// Whether a client proves itself in the header `Authorization`, and not in the form.
    pub takes_basic: bool,
}

impl Discovery {
    /// Reads the document of this issuer.
    ///
    /// # Errors
    /// If it is that of another one, or names an endpoint that is less safe than the issuer.
    pub fn parse(body: &[u8], issuer: &str) -> Result<Discovery, String> {
        let document: Document = serde_json::from_slice(body)
            .map_err(|error| format!("it is no discovery document: {error}"))?;
        if document.issuer != issuer {
            return Err(format!("its discovery document names the issuer {}", document.issuer));
        }
        let needs_tls = issuer.starts_with("https:");
        let endpoint = |text: &str| {
            let url = Url::parse(text).ok().filter(|url| match url.scheme() {
                "https" => true,
                scheme => scheme == "http" && !needs_tls,
            });
            url.ok_or_else(|| format!("its endpoint {text} is no https URL"))
        };
        let methods = document.token_endpoint_auth_methods_supported;
        Ok(Discovery {
            authorization_endpoint: endpoint(&document.authorization_endpoint)?,
            token_endpoint: endpoint(&document.token_endpoint)?,
            // An issuer that names no method takes this one.
            takes_basic: methods.is_empty() || methods.iter().any(|it| it == "client_secret_basic"),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(scheme: &str) -> Result<Discovery, String> {
        let document = json!({
            "issuer": "https://a/realms/b",
            "authorization_endpoint": "https://a/authorize",
            "token_endpoint": format!("{scheme}://a/token"),
        });
        Discovery::parse(document.to_string().as_bytes(), "https://a/realms/b")
    }

    #[test]
    fn an_issuer_with_tls_names_no_endpoint_without() {
        assert!(parse("https").unwrap().takes_basic);
        for scheme in ["http", "javascript", "file"] {
            assert!(parse(scheme).is_err(), "{scheme}");
        }
        for body in ["", "{}", "[]"] {
            assert!(Discovery::parse(body.as_bytes(), "https://a/realms/b").is_err(), "{body}");
        }
    }
}
