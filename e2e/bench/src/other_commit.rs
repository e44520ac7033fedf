//! The programs of another commit, and what is different about it. The load, the launcher, the settings of Kafka and
//! Postgres and the figures are those of this checkout; the services, their migrations and the contracts are the other's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::client::addresses::Addresses;
use e2e::stack_description::{SERVICES, checkout};
use launcher::Stack;

/// What a stack runs of another commit, beside the services.
const CONTRACTS: &str = "contracts";

/// The word for the commit that each change is compared with: the fastest so far. It is never replaced by a slower one,
/// so that small losses do not add up.
const REFERENCE: (&str, &str) = ("reference", include_str!("../reference"));

/// A commit whose programs are built.
pub struct OtherCommit {
    /// Its short name.
    pub name: String,
    programs: PathBuf,
    has_operator_port: bool,
}

impl OtherCommit {
    /// Builds the programs of a commit, unless an earlier run did: it takes minutes, and ten gigabytes of disk until it
    /// is done. They are kept under `target/commits`.
    pub fn build(revision: &str) -> Result<OtherCommit> {
        let revision = if revision == REFERENCE.0 { REFERENCE.1.trim() } else { revision };
        let commit = git(&["rev-parse", "--verify", &format!("{revision}^{{commit}}")])?;
        let directory = checkout().join("target/commits").join(&commit);
        let programs = directory.join("programs");
        if !programs.is_dir() {
            eprintln!("compiling {revision} …");
            compile(&commit, &directory, &programs)?;
        }
        let name = commit.chars().take(7).collect();
        // Before the admin port had its name.
        let setting = ["grep", "--quiet", "operator_addr", &commit, "--", "shared/chassis/src"];
        Ok(OtherCommit { name, programs, has_operator_port: git(&setting).is_ok() })
    }

    /// Lets a stack run the programs from its next start on.
    pub fn prepare(&self, stack: &Stack) -> Result<()> {
        stack.set_all_programs(&self.programs)?;
        for service in SERVICES.iter().filter(|_| self.has_operator_port) {
            let url = stack.admin_url(service)?;
            let address = url.split_once("://").map_or(&*url, |(_, address)| address);
            stack.set_environment(service, "OPERATOR_ADDR", Some(address))?;
        }
        Ok(())
    }

    /// Changes where the load finds what the commit has in another place.
    pub fn adapt(&self, addresses: &mut Addresses, stack: &Stack) -> Result<()> {
        // The books were on the port of the probes.
        for service in SERVICES.iter().filter(|_| self.has_operator_port) {
            addresses.admins.insert(service.to_string(), stack.probe_url(service)?);
        }
        Ok(())
    }
}

/// Compiles the commit in a work tree of its own, keeps the programs and deletes the rest.
fn compile(commit: &str, directory: &Path, programs: &Path) -> Result<()> {
    let (source, target) = (directory.join("source"), directory.join("target"));
    if !source.is_dir() {
        let path = source.display().to_string();
        git(&["worktree", "add", "--quiet", "--force", "--detach", &path, commit])?;
    }
    let mut cargo = Command::new("cargo");
    // Cargo reads the settings of the working directory and of all above it, which are those of this checkout.
    cargo.current_dir("/");
    let settings = source.join(".cargo/config.toml");
    if settings.is_file() {
        cargo.arg("--config").arg(settings);
    }
    cargo.args(["build", "--release", "--locked", "--quiet", "--manifest-path"]);
    cargo.arg(source.join("Cargo.toml")).arg("--target-dir").arg(&target);
    cargo.args(SERVICES.iter().chain([&CONTRACTS]).flat_map(|program| ["--bin", program]));
    let built = cargo.status().context("cargo")?;
    ensure!(built.success(), "{commit} does not compile");
    // Under another name first, so that the directory is complete or missing.
    let fresh = directory.join("programs.new");
    std::fs::create_dir_all(&fresh)?;
    for program in SERVICES.iter().chain([&CONTRACTS]) {
        std::fs::copy(target.join("release").join(program), fresh.join(program))?;
    }
    std::fs::rename(fresh, programs)?;
    std::fs::remove_dir_all(target)?;
    git(&["worktree", "remove", "--force", &source.display().to_string()]).map(drop)
}

/// The output of a command of git in this checkout.
fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(checkout()).args(arguments).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), error.trim());
    Ok(String::from_utf8(output.stdout)?.trim().to_string())
}
