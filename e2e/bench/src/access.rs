//! What the callers present to the order service of a secured stack, and what they check it against.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::client::identity::Identity;
use hyper::header::HeaderValue;
use launcher::{HOST, Stack};
use openssl::ssl::{SslConnector, SslMethod};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::workload::{CUSTOMER_COUNT, customer_id};

/// Longer than all experiments take.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// A token for each customer, signed before the first measurement, and what the service's certificate
/// is checked against.
pub struct Access {
    tokens: Vec<HeaderValue>,
    connector: SslConnector,
}

impl Access {
    /// `None` if the stack is not secured.
    pub fn to_stack(stack: &Stack) -> Result<Option<Arc<Access>>> {
        let Some(issuer) = stack.token_issuer()? else { return Ok(None) };
        let ca = stack.ca_certificate()?.context("a secured stack has an authority")?;
        let mut connector = SslConnector::builder(SslMethod::tls_client())?;
        connector.set_ca_file(ca)?;
        let sign = |nth| {
            let customer = Identity::Customer(customer_id(nth));
            let token = issuer.sign(&customer.subject(), customer.scopes(), TOKEN_LIFETIME)?;
            Ok(HeaderValue::try_from(format!("Bearer {token}"))?)
        };
        let tokens = (0..CUSTOMER_COUNT).map(sign).collect::<Result<_>>()?;
        Ok(Some(Arc::new(Access { tokens, connector: connector.build() })))
    }

    /// The header of a customer's requests.
    pub fn authorization(&self, customer: usize) -> HeaderValue {
        self.tokens[customer].clone()
    }

    pub async fn encrypt(&self, stream: TcpStream) -> Result<SslStream<TcpStream>> {
        let mut stream = SslStream::new(self.connector.configure()?.into_ssl(HOST)?, stream)?;
        Pin::new(&mut stream).connect().await?;
        Ok(stream)
    }
}
