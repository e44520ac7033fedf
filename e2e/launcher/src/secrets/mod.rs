//! The secrets of a stack: passwords, and for a secured stack a certificate authority with the
//! certificates of the servers and of the platform's clients. Each is a file that only the user of
//! the launcher may read. A file that is missing is made when it is first needed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;

use crate::description::CONNECT;
use crate::secrets::certificates::Purpose;

pub mod certificates;
pub mod containers;
pub mod registry_tokens;
pub mod scram;
pub mod token_issuer;
pub mod token_keys;

/// The superuser of every database.
pub const SUPERUSER: &str = "postgres";

/// The names in the certificates of the clients of Kafka that may do anything: its brokers, the
/// program of the contracts, and the launcher with the checker and the fault tests.
pub const BROKER: &str = "broker";
pub const CONTRACTS: &str = "contracts";
pub const ADMINISTRATOR: &str = "administrator";

/// The names in the certificates of the other servers: all databases, the registry and the control room. Each service and each stream processor has a certificate of its own name.
pub const POSTGRES: &str = "postgres";
pub const REGISTRY: &str = "registry";
pub const CONSOLE: &str = "console";

/// The brokers of a stack log in to one another, and in docker compose each has a certificate of its own. The launcher
/// and the worker of Kafka Connect use that of the worker.
const PEERS: [&str; 5] = [BROKER, "kafka", "kafka-2", "kafka-3", CONNECT];

/// The mechanism by which a service proves its name to Kafka.
pub const SCRAM: &str = "SCRAM-SHA-512";

/// The directory of the passwords of Kafka's users, one file a user.
pub const KAFKA_USERS: &str = "kafka-users";

/// The directory of the passwords of the databases' roles, a directory for each service and a file for each role.
pub const DATABASE_USERS: &str = "database-users";

/// The role that owns the tables of a service.
pub fn owner_role(service: &str) -> String {
    format!("{service}_migrator")
}

/// The role with which a connector reads the log of a service's database.
pub fn connector_role(service: &str) -> String {
    format!("{service}_connector")
}

/// The name of the secret of a role in the database of a service.
pub fn database_secret(service: &str, role: &str) -> String {
    format!("{DATABASE_USERS}/{service}/{role}")
}

/// The name of the secret of a service's user in Kafka.
pub fn kafka_secret(service: &str) -> String {
    format!("{KAFKA_USERS}/{service}")
}

/// The name of the secret with the token of the launcher's control server.
pub const CONTROL_SECRET: &str = "control.token";

/// The file names in the directory of the secrets.
const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
const NEXT_CA_KEY_FILE: &str = "ca-next.key";
const REGISTRY_KEY_FILE: &str = "registry-tokens.key";
const REGISTRY_TOKEN_FILE: &str = "registry.token";
const LOCK_FILE: &str = "lock";

/// A token is made again after this time; it is valid for a week longer.
const TOKEN_RENEWAL: Duration = Duration::from_secs(23 * 86_400);

const PASSWORD_LENGTH: usize = 32;

/// The directory of the secrets of one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    directory: PathBuf,
    /// Whether it is a copy of the secrets of another launcher, so that this one must not begin it.
    is_copy: bool,
}

impl Secrets {
    pub fn in_directory(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), is_copy: false }
    }

    /// The secrets that a container has made, once they are copied.
    pub fn copied_to(directory: impl Into<PathBuf>) -> Self {
        Self { is_copy: true, ..Self::in_directory(directory) }
    }

    /// Creates the directory, which only this user may enter.
    pub fn create(&self) -> Result<()> {
        create_private_directory(&self.directory)
    }

    /// The path of a secret, by its name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The password of a user. It has only letters and digits, so that it can stand in a URL.
    pub fn password(&self, user: &str) -> Result<String> {
        let file = self.password_file(user)?;
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    }

    /// The file of the password of a user.
    pub fn password_file(&self, user: &str) -> Result<PathBuf> {
        let file = self.path(user);
        self.make(&file, |_| true, || Ok(new_password().into_bytes()))?;
        Ok(file)
    }

    /// What signs the webhooks of a system outside, in the form of Standard Webhooks: the letters and digits of a password
    /// are base64.
    pub fn webhook_secret(&self, system: &str) -> Result<String> {
        Ok(format!("whsec_{}", self.password(&format!("{system}-webhooks"))?))
    }

    /// Replaces the password of a user by a new one, and returns it.
    pub fn renew_password(&self, user: &str) -> Result<String> {
        let password = new_password();
        self.store_password(user, &password)?;
        Ok(password)
    }

    /// Stores a password that a server has accepted already.
    pub fn store_password(&self, user: &str, password: &str) -> Result<()> {
        self.write(&self.path(user), password.as_bytes())
    }

    /// The file of a URL that holds a password, for the variable `DATABASE_URL_FILE`.
    pub fn url_file(&self, name: &str, url: &str) -> Result<PathBuf> {
        let file = self.directory.join(format!("{name}.url"));
        let is_current = |file: &Path| fs::read_to_string(file).is_ok_and(|text| text == url);
        self.make(&file, is_current, || Ok(url.as_bytes().to_vec()))?;
        Ok(file)
    }

    /// The certificate of the authority that signs all others.
    pub fn ca(&self) -> Result<PathBuf> {
        let (file, key) = (self.directory.join(CA_FILE), self.directory.join(CA_KEY_FILE));
        self.make(&key, |_| true, certificates::new_key)?;
        let made = || certificates::new_ca(&fs::read(&key)?);
        self.make(&file, certificates::is_fresh, made)?;
        Ok(file)
    }

    /// A key with its certificate, both in one file. The name is that of a server or a client, and
    /// the certificate's common name. It is made again a week before it expires.
    pub fn certificate(&self, name: &str) -> Result<PathBuf> {
        self.certificate_for(name, purpose_of(name))
    }

    /// The certificate of a client of the platform, whatever its name.
    pub fn client_certificate(&self, name: &str) -> Result<PathBuf> {
        self.certificate_for(name, Purpose::Client)
    }

    fn certificate_for(&self, name: &str, purpose: Purpose) -> Result<PathBuf> {
        let (file, ca) = (self.directory.join(format!("{name}.pem")), self.ca()?);
        let made = || {
            let key = fs::read(self.directory.join(CA_KEY_FILE))?;
            certificates::new_certificate(name, purpose, &fs::read(&ca)?, &key)
        };
        self.make(&file, certificates::is_fresh, made)?;
        Ok(file)
    }

    /// Replaces a key and its certificate by new ones, of the present authority.
    pub fn renew_certificate(&self, name: &str) -> Result<()> {
        let (ca, key) = (fs::read(self.ca()?)?, fs::read(self.directory.join(CA_KEY_FILE))?);
        let made = certificates::new_certificate(name, purpose_of(name), &ca, &key)?;
        self.write(&self.directory.join(format!("{name}.pem")), &made)
    }

    /// Makes a new authority, which is trusted beside the old one. The old one still signs.
    pub fn add_ca(&self) -> Result<()> {
        let new_key = certificates::new_key()?;
        let mut trusted = fs::read(self.ca()?)?;
        trusted.extend(certificates::new_ca(&new_key)?);
        self.write(&self.directory.join(NEXT_CA_KEY_FILE), &new_key)?;
        self.write(&self.ca()?, &trusted)
    }

    /// From now on, the new authority signs. It is the first of the file: a client of a database trusts the first one
    /// and those of `SSL_CERT_FILE`.
    pub fn sign_with_new_ca(&self) -> Result<()> {
        let file = self.ca()?;
        let key = fs::read(self.directory.join(NEXT_CA_KEY_FILE))?;
        self.write(&self.directory.join(CA_KEY_FILE), &key)?;
        self.write(&file, &certificates::reversed(&fs::read(&file)?)?)
    }

    /// From now on, only the newest authority is trusted.
    pub fn drop_old_ca(&self) -> Result<()> {
        let file = self.ca()?;
        self.write(&file, &certificates::first(&fs::read(&file)?)?)
    }

    /// The key that signs the tokens of the registry.
    pub fn registry_key(&self) -> Result<Vec<u8>> {
        let file = self.path(REGISTRY_KEY_FILE);
        self.make(&file, |_| true, registry_tokens::new_key)?;
        Ok(fs::read(file)?)
    }

    /// The file of the token with which the program of the contracts writes to the registry.
    pub fn registry_token(&self) -> Result<PathBuf> {
        let (file, key) = (self.path(REGISTRY_TOKEN_FILE), self.registry_key()?);
        let is_current = |file: &Path| {
            let age = fs::metadata(file).and_then(|of| of.modified()).map(|then| then.elapsed());
            age.is_ok_and(|age| age.is_ok_and(|age| age < TOKEN_RENEWAL))
        };
        self.make(&file, is_current, || registry_tokens::new_token(&key))?;
        Ok(file)
    }

    fn write(&self, file: &Path, content: &[u8]) -> Result<()> {
        let _lock = self.lock()?;
        write_private(file, content).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Other launchers may write at this moment.
    fn lock(&self) -> Result<File> {
        let path = self.directory.join(LOCK_FILE);
        let lock =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        lock.lock()?;
        Ok(lock)
    }

    /// Makes a file unless a current one exists.
    pub fn make(
        &self,
        file: &Path,
        is_current: impl Fn(&Path) -> bool,
        content: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<()> {
        let current = || file.exists() && is_current(file);
        if current() {
            return Ok(());
        }
        let is_begun = !self.is_copy || self.directory.join(CA_FILE).exists();
        ensure!(is_begun, "{} is empty: `make up` copies the secrets", self.directory.display());
        let _lock = self.lock()?;
        if current() {
            return Ok(());
        }
        // The directory itself exists unless the stack was deleted.
        create_private_directory(file.parent().unwrap_or(file))?;
        write_private(file, &content()?).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// What the certificate with this name is for.
fn purpose_of(name: &str) -> Purpose {
    match name {
        CONTRACTS | ADMINISTRATOR => Purpose::Client,
        _ if PEERS.contains(&name) => Purpose::Peer,
        _ => Purpose::Server,
    }
}

pub fn create_private_directory(directory: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("cannot create {}", directory.display()))
}

/// Writes a file that only this user may read, complete or not at all.
pub fn write_private(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let fresh = file.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    written.write_all(content)?;
    fs::rename(fresh, file)
}

/// A new password.
pub fn new_password() -> String {
    let letters = rand::rng().sample_iter(rand::distr::Alphanumeric);
    letters.take(PASSWORD_LENGTH).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_only_its_user_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::in_directory(directory.path().join("secrets"));
        secrets.create().unwrap();
        let password = secrets.password("users/a").unwrap();
        assert_eq!(password.len(), PASSWORD_LENGTH);
        assert_eq!(secrets.password("users/a").unwrap(), password);
        assert_ne!(secrets.password("users/b").unwrap(), password);
        let certificate = fs::read(secrets.certificate("server").unwrap()).unwrap();
        assert_eq!(fs::read(secrets.certificate("server").unwrap()).unwrap(), certificate);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&secrets.directory), 0o700);
        assert_eq!(mode(&secrets.path("users")), 0o700);
        let token = secrets.token_issuer().unwrap().sign("a", "", Duration::from_secs(1));
        token.unwrap();
        let issuer = ["token-issuer.json", "token-issuer.jwks"];
        for file in
            ["users/a", "users/b", "server.pem", CA_FILE, CA_KEY_FILE].into_iter().chain(issuer)
        {
            assert_eq!(mode(&secrets.path(file)), 0o600, "{file}");
        }
    }
}
