//! A service on a terminal without input.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use launcher::directories::programs_directory;
use openssl::rsa::Rsa;
use openssl::symm::Cipher;

use crate::environment::{BAD_CONFIGURATION, REQUIRED};

/// OpenSSL asks a terminal for the pass phrase of a key, and waits for an answer.
#[test]
fn a_key_with_a_pass_phrase_ends_a_service_on_a_terminal_within_seconds_and_with_the_reason()
-> Result<()> {
    let directory = std::env::temp_dir().join(format!("encrypted-key-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let (key, certificate) = (directory.join("key.pem"), directory.join("certificate.pem"));
    std::fs::write(
        &key,
        Rsa::generate(2048)?.private_key_to_pem_passphrase(Cipher::aes_256_cbc(), b"phrase")?,
    )?;
    std::fs::write(&certificate, "no certificate is read before the key")?;
    let serve = format!("{} serve", programs_directory()?.join("order").display());
    let began = Instant::now();
    // It gives the service a terminal on which no person writes.
    let output = Command::new("timeout")
        .args(["-s", "KILL", "10", "script", "--quiet", "--return", "--command", &serve])
        .arg("/dev/null")
        .stdin(Stdio::null())
        .envs(REQUIRED)
        .env("HTTP_TLS_CERTIFICATE_LOCATION", &certificate)
        .env("HTTP_TLS_KEY_LOCATION", &key)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(BAD_CONFIGURATION), "{:?}: {text}", output.status);
    ensure!(text.contains("HTTP_TLS_KEY_LOCATION holds an encrypted key"), "{text}");
    ensure!(!text.contains("Enter PEM"), "{text}");
    ensure!(began.elapsed() < Duration::from_secs(5), "after {:?}", began.elapsed());
    std::fs::remove_dir_all(directory)?;
    Ok(())
}
