//! The private keys of certificates. They are checked before OpenSSL reads them, because OpenSSL asks for the pass
//! phrase of an encrypted key on the terminal and waits for it.

use std::borrow::Cow;

use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

use crate::config::env::BadConfiguration;

/// How PEM marks an encrypted key, in the form of PKCS#8 and in the older ones.
const ENCRYPTION_MARKS: [&[u8]; 2] =
    [b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED"];

/// A PEM text, and the setting that holds it, as messages name it.
pub(crate) struct PemSetting<'a> {
    name: &'a str,
    text: Vec<u8>,
}

impl<'a> PemSetting<'a> {
    pub(crate) fn read(name: &'a str, path: &str) -> Result<PemSetting<'a>, BadConfiguration> {
        let text = std::fs::read(path).map_err(|error| {
            BadConfiguration::new(format!("{name} is `{path}`, which cannot be read: {error}."))
        })?;
        Ok(PemSetting { name, text })
    }

    /// The same where a setting may hold the text itself.
    pub(super) fn read_or_inline(
        name: &'a str,
        value: Cow<'_, str>,
    ) -> Result<PemSetting<'a>, BadConfiguration> {
        if value.starts_with("-----BEGIN") {
            return Ok(PemSetting { name, text: value.into_owned().into_bytes() });
        }
        PemSetting::read(name, &value)
    }

    pub(super) fn starts_with(&self, start: &str) -> bool {
        self.text.starts_with(start.as_bytes())
    }

    /// The private key in this text, if it is the key of the first certificate in the other.
    ///
    /// # Errors
    /// If it is encrypted, is no key, or belongs to another certificate. The error names the setting, and the reason.
    pub(crate) fn key_of(
        &self,
        certificate: &PemSetting<'_>,
    ) -> Result<PKey<Private>, BadConfiguration> {
        let refused = |why: &str| BadConfiguration::new(format!("{} {why}.", self.name));
        let is_marked = |mark: &&[u8]| self.text.windows(mark.len()).any(|part| part == *mark);
        if ENCRYPTION_MARKS.iter().any(is_marked) {
            return Err(refused(
                "holds an encrypted key, and the service cannot ask for its pass phrase: decrypt the key with \
                 `openssl pkey`",
            ));
        }
        // Without a pass phrase of its own, this call would ask a terminal.
        let key = PKey::private_key_from_pem_passphrase(&self.text, b"")
            .map_err(|_| refused("holds no private key in PEM format"))?;
        let other = certificate.name;
        let certified = X509::from_pem(&certificate.text)
            .and_then(|certificate| certificate.public_key())
            .map_err(|_| {
                BadConfiguration::new(format!("{other} holds no certificate in PEM format."))
            })?;
        if !certified.public_eq(&key) {
            return Err(refused(&format!("holds the key of another certificate than {other}")));
        }
        Ok(key)
    }
}
