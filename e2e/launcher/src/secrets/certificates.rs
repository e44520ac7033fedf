//! Certificates of a secured stack, by OpenSSL: an authority, and what it signs for the servers and
//! clients on this machine.

use std::path::Path;

use anyhow::{Context, Result};
use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use crate::description::HOST;

const CA_DAYS: u32 = 365;
const CERTIFICATE_DAYS: u32 = 30;

/// A certificate that expires sooner is made again.
const RENEWAL_DAYS: u32 = 7;

/// The start of the name of an authority. Each has a name of its own: a client that trusts two finds the one that
/// has signed by its name.
const CA_NAME: &str = "authority of this stack";
const SERIAL_BITS: i32 = 127;

/// A new key, as PEM.
pub fn new_key() -> Result<Vec<u8>> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    Ok(PKey::from_ec_key(EcKey::generate(&group)?)?.private_key_to_pem_pkcs8()?)
}

/// The certificate of an authority with this key.
pub fn new_ca(key: &[u8]) -> Result<Vec<u8>> {
    let key = PKey::private_key_from_pem(key)?;
    let name = format!("{CA_NAME} {:08x}", rand::random::<u32>());
    let mut builder = begin(&name, &key, CA_DAYS)?;
    let name = subject(&name)?.build();
    builder.set_issuer_name(&name)?;
    builder.append_extension(BasicConstraints::new().critical().ca().pathlen(0).build()?)?;
    builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
    builder.sign(&key, MessageDigest::sha256())?;
    Ok(builder.build().to_pem()?)
}

/// The first of the certificates in this text: the authority that signs.
pub fn first(certificates: &[u8]) -> Result<Vec<u8>> {
    Ok(X509::from_pem(certificates)?.to_pem()?)
}

/// The same certificates, the last one first.
pub fn reversed(certificates: &[u8]) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for certificate in X509::stack_from_pem(certificates)?.into_iter().rev() {
        text.extend(certificate.to_pem()?);
    }
    Ok(text)
}

/// What a certificate proves. A server's one logs in to no other server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Server,
    Client,
    /// A server whose instances are clients of one another.
    Peer,
}

/// A new key and its certificate with this common name. A server has it as its host name, and is on this machine.
pub fn new_certificate(name: &str, purpose: Purpose, ca: &[u8], ca_key: &[u8]) -> Result<Vec<u8>> {
    let (ca, ca_key) = (X509::from_pem(ca)?, PKey::private_key_from_pem(ca_key)?);
    let key = PKey::private_key_from_pem(&new_key()?)?;
    let mut builder = begin(name, &key, CERTIFICATE_DAYS)?;
    builder.set_issuer_name(ca.subject_name())?;
    builder.append_extension(BasicConstraints::new().critical().build()?)?;
    builder.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
    let mut usage = ExtendedKeyUsage::new();
    if purpose != Purpose::Server {
        usage.client_auth();
    }
    if purpose != Purpose::Client {
        usage.server_auth();
        let names = SubjectAlternativeName::new()
            .dns("localhost")
            .dns(name)
            .ip(HOST)
            .build(&builder.x509v3_context(Some(&ca), None))?;
        builder.append_extension(names)?;
    }
    builder.append_extension(usage.build()?)?;
    builder.sign(&ca_key, MessageDigest::sha256())?;
    let mut file = key.private_key_to_pem_pkcs8()?;
    file.extend(builder.build().to_pem()?);
    Ok(file)
}

/// Whether the certificate in a file is valid for longer than a week.
pub fn is_fresh(file: &Path) -> bool {
    let read = || -> Result<bool> {
        let certificate = X509::from_pem(&std::fs::read(file)?).context("no certificate")?;
        Ok(certificate.not_after() > Asn1Time::days_from_now(RENEWAL_DAYS)?)
    };
    read().unwrap_or(false)
}

fn begin(name: &str, key: &PKey<Private>, days: u32) -> Result<X509Builder> {
    let mut serial = BigNum::new()?;
    serial.rand(SERIAL_BITS, MsbOption::MAYBE_ZERO, false)?;
    let mut builder = X509Builder::new()?;
    builder.set_version(2)?;
    builder.set_serial_number(&*serial.to_asn1_integer()?)?;
    builder.set_subject_name(&subject(name)?.build())?;
    builder.set_not_before(&*Asn1Time::days_from_now(0)?)?;
    builder.set_not_after(&*Asn1Time::days_from_now(days)?)?;
    builder.set_pubkey(key)?;
    Ok(builder)
}

fn subject(name: &str) -> Result<X509NameBuilder> {
    let mut subject = X509NameBuilder::new()?;
    subject.append_entry_by_nid(Nid::COMMONNAME, name)?;
    Ok(subject)
}

#[cfg(test)]
mod tests {
    use openssl::stack::Stack;
    use openssl::x509::store::X509StoreBuilder;
    use openssl::x509::{X509PurposeId, X509StoreContext};

    use super::*;

    #[test]
    fn the_authority_has_signed_the_certificate_that_bears_the_name() {
        let ca_key = new_key().unwrap();
        let ca_pem = new_ca(&ca_key).unwrap();
        let file = new_certificate("broker", Purpose::Peer, &ca_pem, &ca_key).unwrap();
        let (ca, certificate) = (X509::from_pem(&ca_pem).unwrap(), X509::from_pem(&file).unwrap());
        assert!(certificate.verify(&ca.public_key().unwrap()).unwrap());
        let name = certificate.subject_name().entries().next().unwrap();
        assert_eq!(name.data().as_slice(), b"broker");
        let key = PKey::private_key_from_pem(&file).unwrap();
        assert!(certificate.public_key().unwrap().public_eq(&key));
        let other = new_ca(&new_key().unwrap()).unwrap();
        let other = X509::from_pem(&other).unwrap();
        assert!(!certificate.verify(&other.public_key().unwrap()).unwrap());
    }
    #[test]
    fn a_certificate_serves_or_logs_in_as_its_purpose_says() {
        let ca_key = new_key().unwrap();
        let ca_pem = new_ca(&ca_key).unwrap();
        for (purpose, serves, logs_in) in [
            (Purpose::Server, true, false),
            (Purpose::Client, false, true),
            (Purpose::Peer, true, true),
        ] {
            let file = new_certificate("a", purpose, &ca_pem, &ca_key).unwrap();
            let certificate = X509::from_pem(&file).unwrap();
            let fits = |id| {
                let mut store = X509StoreBuilder::new().unwrap();
                store.add_cert(X509::from_pem(&ca_pem).unwrap()).unwrap();
                store.set_purpose(id).unwrap();
                let (store, chain) = (store.build(), Stack::new().unwrap());
                let mut context = X509StoreContext::new().unwrap();
                context.init(&store, &certificate, &chain, |it| it.verify_cert()).unwrap()
            };
            let found = (fits(X509PurposeId::SSL_SERVER), fits(X509PurposeId::SSL_CLIENT));
            assert_eq!(found, (serves, logs_in), "{purpose:?}");
            assert_eq!(certificate.subject_alt_names().is_some(), serves, "{purpose:?}");
        }
    }
}
