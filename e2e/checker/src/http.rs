//! HTTP clients for the components of a stack.

use std::path::Path;

use anyhow::{Context, Result};
use reqwest::{Certificate, Client, ClientBuilder};

/// A client that trusts the certificates of the authority in the file; without a file, those that the
/// system trusts. It uses no proxy, whatever the user's environment contains: loopback needs none.
pub fn client_builder(ca: Option<&Path>) -> Result<ClientBuilder> {
    let client = Client::builder().no_proxy();
    let Some(ca) = ca else { return Ok(client) };
    let text = std::fs::read(ca).with_context(|| format!("cannot read {}", ca.display()))?;
    // While the authority is replaced, the file has two.
    let authorities = Certificate::from_pem_bundle(&text)?;
    Ok(authorities.into_iter().fold(client, ClientBuilder::add_root_certificate))
}
