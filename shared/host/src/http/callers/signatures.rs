//! The signatures of tokens, checked by OpenSSL, the library of ciphers that all other code uses. The crate that parses
//! and validates tokens leaves this one step to its caller.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey, EcPoint};
use openssl::ecdsa::EcdsaSig;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::rsa::Rsa;
use openssl::sign;

/// A signature of ES256 is two numbers of this size.
const P256_NUMBER_BYTES: usize = 32;

static OPENSSL: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: new_verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

pub(super) fn install() {
    // A second call finds it installed.
    let _ = OPENSSL.install_default();
}

struct OpensslVerifier {
    algorithm: Algorithm,
    key: PKey<Public>,
}

fn new_verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    let key = match algorithm {
        Algorithm::ES256 => p256_key(key.try_get_as_bytes()?),
        Algorithm::EdDSA => PKey::public_key_from_raw_bytes(key.try_get_as_bytes()?, Id::ED25519),
        Algorithm::RS256 => match key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => rsa_key(n, e),
            DecodingKeyKind::SecretOrDer(_) => return Err(ErrorKind::InvalidKeyFormat.into()),
        },
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    let key = key.map_err(|_| ErrorKind::InvalidKeyFormat)?;
    Ok(Box::new(OpensslVerifier { algorithm: *algorithm, key }))
}

/// A point on the curve, in its uncompressed form.
fn p256_key(point: &[u8]) -> std::result::Result<PKey<Public>, ErrorStack> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let point = EcPoint::from_bytes(&group, point, &mut *BigNumContext::new()?)?;
    let key = EcKey::from_public_key(&group, &point)?;
    key.check_key()?;
    PKey::from_ec_key(key)
}

fn rsa_key(n: &[u8], e: &[u8]) -> std::result::Result<PKey<Public>, ErrorStack> {
    let (n, e) = (BigNum::from_slice(n)?, BigNum::from_slice(e)?);
    PKey::from_rsa(Rsa::from_public_components(n, e)?)
}

impl OpensslVerifier {
    fn holds(&self, message: &[u8], signature: &[u8]) -> std::result::Result<bool, ErrorStack> {
        if self.algorithm == Algorithm::EdDSA {
            let mut verifier = sign::Verifier::new_without_digest(&self.key)?;
            return verifier.verify_oneshot(signature, message);
        }
        let mut verifier = sign::Verifier::new(MessageDigest::sha256(), &self.key)?;
        if self.algorithm != Algorithm::ES256 {
            return verifier.verify_oneshot(signature, message);
        }
        if signature.len() != 2 * P256_NUMBER_BYTES {
            return Ok(false);
        }
        let (r, s) = signature.split_at(P256_NUMBER_BYTES);
        let (r, s) = (BigNum::from_slice(r)?, BigNum::from_slice(s)?);
        let signature = EcdsaSig::from_private_components(r, s)?.to_der()?;
        verifier.verify_oneshot(&signature, message)
    }
}

impl Verifier<Vec<u8>> for OpensslVerifier {
    fn verify(
        &self,
        message: &[u8],
        signature: &Vec<u8>,
    ) -> std::result::Result<(), signature::Error> {
        let holds = self.holds(message, signature).unwrap_or(false);
        if holds { Ok(()) } else { Err(signature::Error::new()) }
    }
}

impl JwtVerifier for OpensslVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
