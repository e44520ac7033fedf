//! The directories and locks of this checkout's stacks: state, programs, and the remains of killed
//! processes.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::launcher::proc_fs::processes_in;
use crate::launcher::process;
use crate::launcher::topology::SERVICES;

/// The variable with the directory of the stack that the tests share.
pub const TEST_STACK_VARIABLE: &str = "HOLDFAST_TEST_STACK";

/// A lock that one run of a kind holds at a time: its stack has the same directory as the previous
/// one.
pub async fn lock_exclusive_run(kind: &str) -> Result<File> {
    let state = state_directory()?;
    create_public_directory(&state)?;
    let waiting = || eprintln!("waiting for another run of {kind} …");
    lock_file(&state.join(format!("{kind}.lock")), &waiting).await
}

/// A directory for this process alone, for one or more stacks. If the process is killed, the next
/// run of the tests ends its components and deletes the directory.
pub fn own_temp_directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("holdfast-{}-{name}", std::process::id()))
}

/// Kills the components of every stack in a directory or below it.
pub fn kill_all_in(directory: &Path) -> Result<()> {
    let programs: Vec<&str> = ["java", "postgres"].into_iter().chain(SERVICES).collect();
    process::kill_until_gone(|| processes_in(directory, &programs))
}

/// Deletes a directory. The supervisor of a process that was just killed may still write into it;
/// then the deletion is repeated.
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

/// The directory of the services' programs: beside the launcher, or beside the test that uses it.
pub fn programs_directory() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().context("a program lies in a directory")?;
    let beside = if directory.ends_with("deps") { directory.parent() } else { Some(directory) };
    Ok(beside.context("a program lies in a directory")?.to_path_buf())
}

/// The directory of everything that this checkout's stacks write.
pub fn state_directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("HOLDFAST_STATE").filter(|value| !value.is_empty()) {
        return Ok(std::path::absolute(directory)?);
    }
    let checkout = checkout()?;
    if !is_root() {
        return Ok(checkout.join(".holdfast"));
    }
    // Not in the checkout: PostgreSQL runs as an unprivileged user, which may not be able to enter
    // it.
    let name = checkout.file_name().unwrap_or_default().to_string_lossy();
    let hash = Sha256::digest(checkout.as_os_str().as_encoded_bytes());
    let hash: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Ok(PathBuf::from("/var/lib/holdfast").join(format!("{name}-{hash}")))
}

/// Takes a lock that is released when this process ends, in any way. `waiting` is called once.
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

/// Creates a directory that every user may enter, in spite of the umask: PostgreSQL runs as another
/// user.
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

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Ends and deletes the stacks of killed processes, and the directories of such processes that
/// contain stacks.
pub async fn clean_orphans() -> Result<()> {
    let own = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("holdfast-")?.split_once('-'));
        let pid = pid.and_then(|(pid, _)| pid.parse::<u32>().ok());
        let is_left = pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        let is_own = entry.metadata().is_ok_and(|of| of.is_dir() && of.uid() == own);
        if is_left && is_own {
            kill_all_in(&entry.path())?;
            remove_directory(&entry.path())?;
        }
    }
    Ok(())
}

/// The checkout that this program was built from.
pub fn checkout() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("e2e lies in a checkout")?;
    Ok(root.to_path_buf())
}

/// The directory of artifacts and worktrees, shared by every checkout of one user.
pub fn cache_directory() -> Result<PathBuf> {
    if let Some(cache) = path_variable("HOLDFAST_CACHE") {
        return Ok(std::path::absolute(cache)?);
    }
    if is_root() {
        return Ok("/var/cache/holdfast".into());
    }
    let user =
        path_variable("XDG_CACHE_HOME").or_else(|| Some(path_variable("HOME")?.join(".cache")));
    Ok(user.context("neither HOLDFAST_CACHE nor HOME is set")?.join("holdfast"))
}

/// A path from an environment variable.
pub(crate) fn path_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
