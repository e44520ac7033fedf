//! The metric of the certificates in use: how long each is valid.

use metrics::gauge;
use openssl::asn1::Asn1Time;
use openssl::x509::X509;

use crate::config::Config;

/// Reports for each file of certificates when its first one expires. A file without a certificate has no value.
pub(super) fn report_expiry(config: &Config) {
    let (kafka, (https, _)) = (&config.kafka, config.http_tls.certificate().unzip());
    let trusted = config.schema_registry.trusted_certificates();
    for (variable, file) in [
        ("HTTP_TLS_CERTIFICATE_LOCATION", https),
        ("KAFKA_SSL_CERTIFICATE_LOCATION", kafka.kafka_ssl_certificate_location.as_deref()),
        ("KAFKA_SSL_CA_LOCATION", kafka.kafka_ssl_ca_location.as_deref()),
        ("SSL_CERT_FILE", trusted.as_deref()),
    ] {
        if let Some(seconds) =
            file.and_then(|file| seconds_until_expiry(&std::fs::read(file).ok()?))
        {
            gauge!("certificate_expires_seconds", "file" => variable).set(seconds);
        }
    }
}

/// How long until the first of these certificates expires; negative after that.
fn seconds_until_expiry(pem: &[u8]) -> Option<f64> {
    let now = Asn1Time::days_from_now(0).ok()?;
    let left = |certificate: &X509| {
        let left = now.diff(certificate.not_after()).ok()?;
        Some(f64::from(left.days) * 86_400.0 + f64::from(left.secs))
    };
    X509::stack_from_pem(pem).ok()?.iter().filter_map(left).reduce(f64::min)
}
