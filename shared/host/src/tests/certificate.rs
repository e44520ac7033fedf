//! A certificate of a test, with its key.

use std::path::PathBuf;

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::symm::Cipher;
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509NameBuilder};

/// A key with its own certificate for 127.0.0.1, in one file.
pub(crate) struct Certificate(PathBuf);

impl Certificate {
    pub(crate) fn new(name: &str) -> Certificate {
        let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap();
        let mut subject = X509NameBuilder::new().unwrap();
        subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
        let subject = subject.build();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        builder.set_subject_name(&subject).unwrap();
        builder.set_issuer_name(&subject).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        let names = SubjectAlternativeName::new()
            .ip("127.0.0.1")
            .build(&builder.x509v3_context(None, None))
            .unwrap();
        builder.append_extension(names).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let mut text = key.private_key_to_pem_pkcs8().unwrap();
        text.extend(builder.build().to_pem().unwrap());
        let path = std::env::temp_dir().join(format!("{}-{name}.pem", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Certificate(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// The same with its key in other forms: with a pass phrase in the form of PKCS#8 and in the older one, and without
    /// one in the older form.
    pub(crate) fn in_other_forms(&self) -> [Certificate; 3] {
        let text = std::fs::read(&self.0).unwrap();
        let key = EcKey::private_key_from_pem(&text).unwrap();
        let modern = PKey::from_ec_key(key.clone()).unwrap();
        let cipher = Cipher::aes_256_cbc();
        let forms = [
            modern.private_key_to_pem_pkcs8_passphrase(cipher, b"phrase"),
            key.private_key_to_pem_passphrase(cipher, b"phrase"),
            key.private_key_to_pem(),
        ];
        let certificate = X509::from_pem(&text).unwrap().to_pem().unwrap();
        let mut nth = 0;
        forms.map(|form| {
            nth += 1;
            let path = self.0.with_extension(format!("{nth}.pem"));
            std::fs::write(&path, [form.unwrap(), certificate.clone()].concat()).unwrap();
            Certificate(path)
        })
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
