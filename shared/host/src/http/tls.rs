//! HTTPS: the TLS handshake of a connection, before any HTTP.

use std::pin::Pin;
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::ssl::{AlpnError, Ssl, SslAcceptor, SslMethod, SslVersion, select_next_proto};
use parking_lot::RwLock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_openssl::SslStream;

use crate::config::HttpTlsConfig;
use crate::config::env::BadConfiguration;
use crate::config::private_key::PemSetting;

/// The one protocol of the server, as ALPN names it: its length, then its name.
const HTTP_1_1: &[u8] = b"\x08http/1.1";

/// Accepts TLS connections with the present certificate. Connections that are open keep the one with which they were
/// accepted.
#[derive(Clone)]
pub(crate) struct TlsAcceptor(Arc<RwLock<SslAcceptor>>);

impl TlsAcceptor {
    /// An acceptor with the configured certificate, if there is one.
    pub(crate) fn from_config(
        config: &HttpTlsConfig,
    ) -> Result<Option<TlsAcceptor>, BadConfiguration> {
        let files = config.certificate();
        files.map(|(certificate, key)| Self::from_files(certificate, key)).transpose()
    }

    /// An acceptor with the certificate and the key in these files, both PEM.
    ///
    /// # Errors
    /// If a file holds neither, or the key belongs to another certificate. The error names the variable.
    pub(crate) fn from_files(
        certificate: &str,
        key: &str,
    ) -> Result<TlsAcceptor, BadConfiguration> {
        Ok(TlsAcceptor(Arc::new(RwLock::new(Self::build(certificate, key)?))))
    }

    /// Presents the certificate in these files from now on. After an error it is the same as before.
    pub(crate) fn replace(&self, certificate: &str, key: &str) -> Result<(), BadConfiguration> {
        *self.0.write() = Self::build(certificate, key)?;
        Ok(())
    }

    fn build(certificate: &str, key: &str) -> Result<SslAcceptor, BadConfiguration> {
        const CERTIFICATE: &str = "HTTP_TLS_CERTIFICATE_LOCATION";
        let refused = |error: ErrorStack| {
            let reason = error.errors().first().and_then(openssl::error::Error::reason);
            let reason = reason.unwrap_or("OpenSSL gives no reason");
            BadConfiguration::new(format!("{CERTIFICATE} cannot be used: {reason}."))
        };
        let key = PemSetting::read("HTTP_TLS_KEY_LOCATION", key)?
            .key_of(&PemSetting::read(CERTIFICATE, certificate)?)?;
        // TLS 1.2 and 1.3, with the ciphers that Mozilla recommends for servers of any client.
        let acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server());
        let mut acceptor = acceptor.map_err(refused)?;
        acceptor.set_certificate_chain_file(certificate).map_err(refused)?;
        acceptor.set_private_key(&key).map_err(refused)?;
        acceptor.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(refused)?;
        acceptor.set_alpn_select_callback(|_, offered| {
            select_next_proto(HTTP_1_1, offered).ok_or(AlpnError::NOACK)
        });
        Ok(acceptor.build())
    }

    /// Completes the handshake on a connection.
    pub(crate) async fn accept<S>(&self, stream: S) -> anyhow::Result<SslStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let ssl = Ssl::new(self.0.read().context())?;
        let mut stream = SslStream::new(ssl, stream)?;
        Pin::new(&mut stream).accept().await?;
        Ok(stream)
    }
}
