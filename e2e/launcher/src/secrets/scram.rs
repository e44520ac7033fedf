//! The verifier that Postgres stores for a password (RFC 5803). The launcher sends it in place of the password, so a
//! log of statements contains nothing with which a reader could log in.

use anyhow::Result;
use openssl::base64::encode_block;
use openssl::hash::MessageDigest;
use openssl::pkcs5::pbkdf2_hmac;
use openssl::pkey::PKey;
use openssl::sha::sha256;
use openssl::sign::Signer;

/// Postgres' own number of iterations.
const ITERATIONS: usize = 4096;
const SALT_BYTES: usize = 16;

/// The verifier of a password of letters and digits, for `create role … password`.
pub fn scram_verifier(password: &str) -> Result<String> {
    verifier_with_salt(password, &rand::random::<[u8; SALT_BYTES]>())
}

fn verifier_with_salt(password: &str, salt: &[u8]) -> Result<String> {
    let mut salted = [0; 32];
    pbkdf2_hmac(password.as_bytes(), salt, ITERATIONS, MessageDigest::sha256(), &mut salted)?;
    let hmac = |text: &[u8]| -> Result<Vec<u8>> {
        let key = PKey::hmac(&salted)?;
        Ok(Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(text)?)
    };
    let (stored_key, server_key) = (sha256(&hmac(b"Client Key")?), hmac(b"Server Key")?);
    let [salt, stored_key, server_key] = [salt, &stored_key[..], &server_key[..]].map(encode_block);
    Ok(format!("SCRAM-SHA-256${ITERATIONS}:{salt}${stored_key}:{server_key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, as Postgres would keep it.
    #[test]
    fn a_verifier_is_computed_as_by_postgres() {
        let salt = openssl::base64::decode_block("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!(
            verifier_with_salt("pencil", &salt).unwrap(),
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
             wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
    }
}
