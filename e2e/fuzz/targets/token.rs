//! The header `Authorization`: any bytes as its value, and tokens of any header and any claims that the issuer signed.

#![no_main]

use std::sync::OnceLock;

use fuzz::TokenGate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    static GATE: OnceLock<TokenGate> = OnceLock::new();
    GATE.get_or_init(TokenGate::new).send(bytes);
});
