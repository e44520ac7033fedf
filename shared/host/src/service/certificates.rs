//! The metric of the certificates in use: how long each is valid.

use metrics::gauge;
use openssl::asn1::Asn1Time;
use openssl::x509::X509;

use crate::config::Config;

/// Reports for each file of certificates how long the service can use it. A file without a certificate has no value.
pub(super) fn report_expiry(config: &Config) {
    let (kafka, (https, _)) = (&config.kafka, config.http_tls.certificate().unzip());
    let registry = config.schema_registry.trusted_certificates();
    let presented: fn(f64, f64) -> f64 = f64::min;
    // A renewal leaves the old authority beside the new one, and the bundle of a system has expired ones as well.
    let trusted: fn(f64, f64) -> f64 = f64::max;
    for (variable, file, choose) in [
        ("HTTP_TLS_CERTIFICATE_LOCATION", https, presented),
        (
            "KAFKA_SSL_CERTIFICATE_LOCATION",
            kafka.kafka_ssl_certificate_location.as_deref(),
            presented,
        ),
        ("KAFKA_SSL_CA_LOCATION", kafka.kafka_ssl_ca_location.as_deref(), trusted),
        ("SSL_CERT_FILE", registry.as_deref(), trusted),
    ] {
        let pem = file.and_then(|file| std::fs::read(file).ok());
        if let Some(seconds) = pem.and_then(|pem| seconds_until_expiry(&pem, choose)) {
            gauge!("certificate_expires_seconds", "file" => variable).set(seconds);
        }
    }
}

/// How long until one of these certificates expires, the one that `choose` takes; negative after that.
fn seconds_until_expiry(pem: &[u8], choose: fn(f64, f64) -> f64) -> Option<f64> {
    let now = Asn1Time::days_from_now(0).ok()?;
    let left = |certificate: &X509| {
        let left = now.diff(certificate.not_after()).ok()?;
        Some(f64::from(left.days) * 86_400.0 + f64::from(left.secs))
    };
    X509::stack_from_pem(pem).ok()?.iter().filter_map(left).reduce(choose)
}

#[cfg(test)]
mod tests {
    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::rsa::Rsa;

    use super::*;

    fn certificate(days: u32) -> Vec<u8> {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let mut builder = X509::builder().unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(days).unwrap()).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        builder.build().to_pem().unwrap()
    }

    #[test]
    fn a_chain_ends_with_its_first_certificate_and_a_bundle_with_its_last() {
        let both = [certificate(2), certificate(9)].concat();
        let days = |choose| (seconds_until_expiry(&both, choose).unwrap() / 86_400.0).round();
        assert_eq!((days(f64::min), days(f64::max)), (2.0, 9.0));
        assert_eq!(seconds_until_expiry(b"", f64::max), None);
    }
}
