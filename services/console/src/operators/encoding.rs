//! Base64 for URLs without padding, as tokens and the code flow use it (RFC 4648, 5).

use openssl::base64::{decode_block, encode_block};
use openssl::error::ErrorStack;
use openssl::rand::rand_bytes;

/// 256 bits: no stranger guesses such a value.
const RANDOM_BYTES: usize = 32;

pub fn encode(bytes: &[u8]) -> String {
    let text = encode_block(bytes).replace('+', "-").replace('/', "_");
    text.trim_end_matches('=').to_string()
}

pub fn decode(text: &str) -> Option<Vec<u8>> {
    let is_alphabet = text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c));
    // No number of bytes ends with a single character.
    let is_whole = text.len() % 4 != 1;
    let padding = "=".repeat((4 - text.len() % 4) % 4);
    let text = text.replace('-', "+").replace('_', "/") + &padding;
    decode_block(&text).ok().filter(|_| is_alphabet && is_whole)
}

/// A value that a stranger cannot guess.
///
/// # Errors
/// If the system has no random bytes.
pub fn random() -> Result<String, ErrorStack> {
    let mut bytes = [0; RANDOM_BYTES];
    rand_bytes(&mut bytes)?;
    Ok(encode(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_and_other_text_is_refused() {
        for bytes in [&b""[..], b"a", b"ab", b"abc", &[0xfb, 0xff, 0xfe]] {
            assert_eq!(decode(&encode(bytes)).unwrap(), bytes);
        }
        assert_eq!(encode(&[0xfb, 0xff, 0xfe]), "-__-");
        for text in ["a", "a+b/", "YQ==", "a b", "ß"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_ne!(random().unwrap(), random().unwrap());
    }
}
