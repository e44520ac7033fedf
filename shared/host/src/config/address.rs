//! Parsers for the addresses in settings. Each returns the address in its normal form, or the reason why it can
//! never work. A name that does not resolve is accepted, because it may resolve later.

use std::fs::File;
use std::net::Ipv6Addr;
use std::path::Path;
use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::{Host, Url};

use crate::config::env::BadConfiguration;
use crate::config::private_key::PemSetting;
use crate::config::secret::Secret;

/// The port of a broker that is given without one, as in Kafka's own clients.
const BROKER_PORT_DEFAULT: &str = "9092";

/// Refuses an address for a reason, unless this holds.
fn require(holds: bool, reason: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason.to_owned()) }
}

/// Parses brokers as `host:port`, comma-separated.
pub(super) fn parse_brokers(text: &str) -> Result<String, String> {
    require(
        !text.contains("://"),
        "a broker is `host:port`, without a scheme: KAFKA_SECURITY_PROTOCOL is the protocol",
    )?;
    let brokers = text.split(',').map(str::trim).filter(|broker| !broker.is_empty());
    let brokers = brokers.map(parse_broker).collect::<Result<Vec<String>, String>>()?;
    require(!brokers.is_empty(), "it names no broker")?;
    Ok(brokers.join(","))
}

fn parse_broker(text: &str) -> Result<String, String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, BROKER_PORT_DEFAULT),
    };
    let host = Host::parse(host).map_err(
        |_| "a broker is `host:port`, with an IPv6 address in brackets as in `[::1]:9092`",
    )?;
    let port = Some(port).filter(|port| port.bytes().all(|digit| digit.is_ascii_digit()));
    let port: Option<u16> = port.and_then(|port| port.parse().ok()).filter(|port| *port > 0);
    let port = port.ok_or("a port is a number from 1 to 65535")?;
    Ok(format!("{host}:{port}"))
}

/// Parses the base URL of an HTTP API, and removes slashes at its end.
pub(super) fn parse_base_url(text: &str) -> Result<String, String> {
    const FORM: &str = "it is not a URL like http://host:8081/path";
    let list = "it is a list: give one address, for several servers that of a load balancer";
    require(!text.contains(','), list)?;
    let is_bad = |c: u8| c.is_ascii_whitespace() || c.is_ascii_control() || c == b'\\';
    require(!text.bytes().any(is_bad), "it holds blanks, backslashes or control characters")?;
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let start = text.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(&text[scheme.len()..])
    });
    let rest = rest.ok_or("it does not begin with http:// or https://")?;
    let url = Url::parse(text).map_err(|error| format!("{FORM}: {error}"))?;
    let has_host = !rest.starts_with('/') && url.host_str().is_some_and(|host| !host.is_empty());
    require(has_host && url.port() != Some(0), FORM)?;
    let is_open = url.username().is_empty() && url.password().is_none();
    require(is_open, "it contains credentials, which have their own variables")?;
    let is_base = url.query().is_none() && url.fragment().is_none();
    require(is_base, "it contains a query or a fragment, and paths are appended to it")?;
    let has_parts = !url.path().trim_end_matches('/').contains("//");
    require(has_parts, "a part of its path is empty")?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// The parameters that sqlx supports. sqlx ignores all others, so they are refused here.
const POSTGRES_URL_PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Parses a database's URL. It sets every option that the URL leaves open: sqlx would read these options from the
/// variables of Postgres' own clients (PGHOST, PGSSLMODE and others) and from `~/.pgpass`.
///
/// No reason quotes the URL, because it may contain a password.
pub(crate) fn postgres_options(text: &str) -> Result<PgConnectOptions, String> {
    const FORM: &str = "it is not a URL like postgres://user@host:5432/database";
    let url = Url::parse(text).map_err(|_| FORM)?;
    let is_postgres = ["postgres", "postgresql"].contains(&url.scheme());
    require(is_postgres && url.fragment().is_none(), FORM)?;
    let parameters: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let given = |names: &[&str]| {
        let named = |(name, _): &&(String, String)| names.contains(&name.as_str());
        parameters.iter().rev().find(named).map(|(_, value)| value.as_str())
    };
    for (name, value) in &parameters {
        check_parameter(name, value)?;
    }
    let mode = given(&["sslmode", "ssl-mode"]);
    require(
        mode.is_none_or(|mode| mode.parse::<PgSslMode>().is_ok()),
        "its sslmode is not one of disable, allow, prefer, require, verify-ca, verify-full",
    )?;
    let [certificate, key] = [given(&["sslcert", "ssl-cert"]), given(&["sslkey", "ssl-key"])];
    let is_whole = certificate.is_some() == key.is_some();
    require(is_whole, "it has only one of sslcert and sslkey: set both or neither")?;
    let in_url = url.host_str().filter(|host| !host.is_empty());
    let host = given(&["host", "hostaddr"]).or(in_url).ok_or("it names no host")?;
    require(!url.username().is_empty() || given(&["user"]).is_some(), "it names no user")?;
    let has_path = !url.path().trim_start_matches('/').is_empty();
    require(has_path || given(&["dbname"]).is_some(), "it names no database")?;
    let unbracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_socket = host.starts_with('/') || host.to_ascii_lowercase().starts_with("%2f");
    let is_host = Host::parse(host).is_ok() || host.parse::<Ipv6Addr>().is_ok();
    let is_one = is_host && !host.contains(',');
    require(is_socket || is_one, "its host is neither a name nor an address")?;
    let mut options = PgConnectOptions::from_str(text).map_err(|_| FORM)?;
    if let Some(address) = unbracketed {
        // sqlx would resolve `[::1]` as a name.
        options = options.host(address);
    }
    if url.port().is_none() && given(&["port"]).is_none() {
        options = options.port(5432);
    }
    if mode.is_none() {
        options = options.ssl_mode(PgSslMode::Prefer);
    }
    if url.password().is_none() && given(&["password"]).is_none() {
        options = options.password("");
    }
    require(options.get_port() != 0, "its port is 0")?;
    Ok(options)
}

/// Checks one parameter of a database's URL: its name, and its file if it names one.
fn check_parameter(name: &str, value: &str) -> Result<(), String> {
    if !POSTGRES_URL_PARAMETERS.contains(&name) && !name.starts_with("options[") {
        // If a password contains a `?`, the rest of the password is in this name.
        let is_plain = name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c));
        let name = if is_plain { format!(" `{name}`") } else { String::new() };
        return Err(format!("its parameter{name} is unknown"));
    }
    let is_file = name.starts_with("ssl") && !name.ends_with("mode");
    // The value may also be the certificate itself.
    if is_file && !value.starts_with("-----BEGIN") {
        check_readable(value).map_err(|why| format!("its parameter {name} is {value:?}: {why}"))?;
    }
    Ok(())
}

/// Checks the key that a database's URL names for the certificate of the client.
///
/// # Errors
/// If no connection can be made with it. The error names `variable`, which holds the URL, and not the URL.
pub(super) fn check_database_key(variable: &str, url: &Secret) -> Result<(), BadConfiguration> {
    let Ok(url) = Url::parse(url.expose()) else { return Ok(()) };
    let given = |names: [&str; 2]| {
        let named = url.query_pairs().filter(|(name, _)| names.contains(&&**name));
        named.map(|(_, value)| value).last()
    };
    let files = given(["sslcert", "ssl-cert"]).zip(given(["sslkey", "ssl-key"]));
    let Some((certificate, key)) = files else { return Ok(()) };
    let certificate_name = format!("{variable}'s sslcert");
    let key_name = format!("{variable}'s sslkey");
    let certificate = PemSetting::read_or_inline(&certificate_name, certificate)?;
    let key = PemSetting::read_or_inline(&key_name, key)?;
    key.key_of(&certificate)?;
    let refusal = "does not begin with a key in PKCS#8 format: convert it with `openssl pkey`.";
    // The client of Postgres looks at nothing but this line.
    let is_read = key.starts_with("-----BEGIN PRIVATE KEY-----");
    BadConfiguration::require(is_read, format!("{key_name} {refusal}"))
}

pub(super) fn readable_file(text: &str) -> Result<String, String> {
    check_readable(text).map(|()| text.to_owned())
}

pub(super) fn readable_file_or_directory(text: &str) -> Result<String, String> {
    if Path::new(text).is_dir() {
        std::fs::read_dir(text).map_err(|error| error.to_string())?;
        return Ok(text.to_owned());
    }
    readable_file(text)
}

fn check_readable(path: &str) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("it cannot be read: {error}"))?;
    let is_directory = file.metadata().is_ok_and(|found| found.is_dir());
    require(!is_directory, "it cannot be read: it is a directory")
}
