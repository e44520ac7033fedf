//! The directories and locks of a project's stacks: state, cache and programs.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::description::StackDescription;
use crate::environment::path;

/// The variable with the directory of the stack that the tests share.
pub const TEST_STACK_VARIABLE: &str = "HOLDFAST_TEST_STACK";

/// The project's own directories.
impl StackDescription {
    /// The directory of everything that this checkout's stacks write: that of `HOLDFAST_STATE`, or
    /// `.holdfast` in the checkout. For the user root it is a directory of `/var/lib/holdfast`.
    ///
    /// # Errors
    /// If the path of `HOLDFAST_STATE` is relative and there is no working directory.
    pub fn state_directory(&self) -> Result<PathBuf> {
        if let Some(directory) = path("HOLDFAST_STATE") {
            return Ok(std::path::absolute(directory)?);
        }
        if !is_root() {
            return Ok(self.root.join(".holdfast"));
        }
        // Not in the checkout: PostgreSQL runs as an unprivileged user, which may not be able to
        // enter it.
        let name = self.root.file_name().unwrap_or_default().to_string_lossy();
        let hash = Sha256::digest(self.root.as_os_str().as_encoded_bytes());
        let hash = hex::encode(&hash[..4]);
        Ok(PathBuf::from("/var/lib/holdfast").join(format!("{name}-{hash}")))
    }

    /// A directory for this process alone, for one or more stacks; it is not created. If the process
    /// is killed, [`StackDescription::clean_orphans`] ends its components and deletes the directory.
    pub fn own_temp_directory(&self, name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("{}-{}-{name}", self.project, std::process::id()))
    }

    /// A lock that one run of a kind holds at a time: its stack has the same directory as the
    /// previous one. It is released when the file is dropped or the process ends.
    ///
    /// # Errors
    /// If the file of the lock cannot be created.
    pub async fn lock_exclusive_run(&self, kind: &str) -> Result<File> {
        let state = self.state_directory()?;
        create_public_directory(&state)?;
        let waiting = || eprintln!("waiting for another run of {kind} …");
        lock_file(&state.join(format!("{kind}.lock")), &waiting).await
    }
}

/// Deletes a directory, unless it is missing. The supervisor of a process that was just killed may
/// still write into it; then the deletion is repeated.
///
/// # Errors
/// If the directory is still there afterwards.
pub fn remove_directory(directory: &Path) -> Result<()> {
    let mut removed = fs::remove_dir_all(directory);
    for _ in 0..10 {
        if removed.as_ref().is_err_and(|error| error.kind() == ErrorKind::DirectoryNotEmpty) {
            removed = fs::remove_dir_all(directory);
        }
    }
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The directory of the services' programs, where cargo puts them: that of this program, or the one
/// above it for a test or an example.
///
/// # Errors
/// If the path of this program is unknown.
pub fn programs_directory() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().context("a program lies in a directory")?;
    let is_below = ["deps", "examples"].iter().any(|name| directory.ends_with(name));
    let beside = if is_below { directory.parent() } else { Some(directory) };
    Ok(beside.context("a program lies in a directory")?.to_path_buf())
}

/// Takes a lock on a file, and waits while another process holds it. The lock is released when the
/// returned file is dropped or this process ends, in any way. `waiting` is called once, after a
/// second.
///
/// # Errors
/// If the file cannot be opened or locked.
pub async fn lock_file(path: &Path, waiting: &impl Fn()) -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let mut attempts = 0;
    while let Err(error) = file.try_lock() {
        if let fs::TryLockError::Error(error) = error {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
        attempts += 1;
        if attempts == 50 {
            waiting();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(file)
}

/// Creates a directory, with those above it, that every user may enter in spite of the umask:
/// PostgreSQL runs as another user if this one is root.
///
/// # Errors
/// If a directory cannot be created.
pub fn create_public_directory(path: &Path) -> Result<()> {
    let absent: Vec<&Path> = path.ancestors().take_while(|parent| !parent.exists()).collect();
    for directory in absent.into_iter().rev() {
        fs::create_dir(directory).or_else(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Creates a directory that no other user may enter, in directories that every user may.
///
/// # Errors
/// If a directory cannot be created, or belongs to another user.
pub fn create_closed_directory(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        create_public_directory(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        // Earlier versions of the launcher created public ones.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        }
        created => created,
    }
    .with_context(|| path.display().to_string())
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The directory of the fetched artifacts, which every checkout and every project of one user share:
/// that of `HOLDFAST_CACHE`, or `holdfast` in `XDG_CACHE_HOME` or `~/.cache`. For the user root it is
/// `/var/cache/holdfast`.
///
/// # Errors
/// If no variable names a directory.
pub fn cache_directory() -> Result<PathBuf> {
    if let Some(cache) = path("HOLDFAST_CACHE") {
        return Ok(std::path::absolute(cache)?);
    }
    if is_root() {
        return Ok("/var/cache/holdfast".into());
    }
    let user = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    Ok(user.context("neither HOLDFAST_CACHE nor HOME is set")?.join("holdfast"))
}
