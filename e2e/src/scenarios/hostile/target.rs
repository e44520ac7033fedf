//! The API that is attacked: how a hostile client connects to it, and the token that it presents.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result};
use launcher::{HOST, Stack};
use openssl::ssl::{SslConnector, SslMethod};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_openssl::SslStream;

use crate::client::http_client::Client;
use crate::client::identity::Identity;
use crate::workload::seed::CUSTOMERS;

/// All hostile clients send their token within seconds.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);

/// A connection, encrypted or not.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<C: AsyncRead + AsyncWrite + Unpin + Send> Connection for C {}

/// The API of a service.
pub struct Target {
    address: String,
    /// How a connection to a secured service is encrypted.
    connector: Option<SslConnector>,
    /// A header with a customer's token, so that a secured service reads the body as well; empty for one that knows no
    /// callers.
    pub authorization: String,
}

impl Target {
    pub fn new(stack: &Stack, client: &Client, service: &str) -> Result<Target> {
        let (_, address) = client.addresses.apis[service].split_once("://").context("a URL")?;
        let connector = stack.ca_certificate()?.map(|ca| {
            let mut connector = SslConnector::builder(SslMethod::tls_client())?;
            connector.set_ca_file(ca)?;
            anyhow::Ok(connector.build())
        });
        let customer = Identity::Customer(CUSTOMERS[0].customer_id);
        let token = stack
            .token_issuer()?
            .map(|issuer| issuer.sign(&customer.subject(), customer.scopes(), TOKEN_LIFETIME))
            .transpose()?;
        let header = |token| format!("Authorization: Bearer {token}\r\n");
        Ok(Target {
            address: address.to_string(),
            connector: connector.transpose()?,
            authorization: token.map(header).unwrap_or_default(),
        })
    }

    /// Connects with a small receive buffer, so that the service notices a client that does not read.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(16 * 1024)?;
        socket.connect(self.address.parse().map_err(io::Error::other)?).await
    }

    /// Connects and, to a secured service, begins to encrypt.
    pub async fn open(&self) -> Result<Box<dyn Connection>> {
        let stream = self.connect().await?;
        let Some(connector) = &self.connector else { return Ok(Box::new(stream)) };
        let mut stream = SslStream::new(connector.configure()?.into_ssl(HOST)?, stream)?;
        Pin::new(&mut stream).connect().await?;
        Ok(Box::new(stream))
    }
}
