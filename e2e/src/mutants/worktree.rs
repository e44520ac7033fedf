//! A copy of the checkout, to be changed and built beside the original.
//!
//! Compiled dependencies are shared by hard links, so only the crates of the workspace are built
//! again. Nothing else is shared, since cargo and rustc write some files in place and the original
//! target must not change.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use launcher::directories::{self, TEST_STACK_VARIABLE};
use tokio::process::Command;

use crate::stack_description::{checkout, stack_description};

/// What a checkout contains beside its source.
const EXCLUDED: [&str; 3] = [".git", ".holdfast", "target"];

/// The timeout of a command that hangs; a build may take long beside other work.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1_800);

/// A copy of the checkout, deleted when it is dropped.
pub struct Worktree {
    pub root: PathBuf,
    /// The directory of its stacks: one that PostgreSQL may enter, even if the checkout belongs to
    /// another user.
    pub state: PathBuf,
    /// Only one worktree of a name exists at a time.
    _lock: File,
}

impl Worktree {
    /// A copy of the checkout with this name.
    pub async fn create(name: &str) -> Result<Worktree> {
        Worktree::create_with(name, false).await
    }

    /// The same, for repeated changes and builds.
    pub async fn create_incremental(name: &str) -> Result<Worktree> {
        Worktree::create_with(name, true).await
    }

    async fn create_with(name: &str, incremental: bool) -> Result<Worktree> {
        let own = std::env::current_exe()?;
        let mut built = own.parent().context("a program lies in a directory")?;
        if built.ends_with("deps") {
            built = built.parent().context("tests lie in target/ci/deps")?;
        }
        ensure!(
            built.ends_with("ci"),
            "build this with `--profile ci`: otherwise no compiled dependency is shared"
        );
        // In the target directory: hard links need the same file system.
        let copies = built.with_file_name("worktrees");
        std::fs::create_dir_all(&copies)?;
        let waiting = || eprintln!("waiting for another run that uses {name} …");
        let lock = directories::lock_file(&copies.join(format!("{name}.lock")), &waiting).await?;
        let root = copies.join(name);
        // The remains of an interrupted run.
        let _ = std::fs::remove_dir_all(&root);
        let state = stack_description().own_temp_directory(name);
        directories::create_public_directory(&state)?;
        let worktree = Worktree { root, state, _lock: lock };
        copy_folder(&checkout(), &worktree.root, &EXCLUDED)?;

        let target = worktree.root.join("target/ci");
        std::fs::create_dir_all(&target)?;
        // Cargo compares fingerprints to find what is older than its source, and build scripts
        // write files of any kind.
        for (how, folders) in [("-a", &[".fingerprint", "build"][..]), ("-al", &["deps"])] {
            let folders = folders.iter().map(|folder| built.join(folder));
            let copied =
                std::process::Command::new("cp").arg(how).args(folders).arg(&target).status()?;
            ensure!(copied.success(), "the compiled dependencies could not be copied");
        }
        // Beside the settings of the checkout.
        let settings = File::options().append(true).open(worktree.root.join(".cargo/config.toml"));
        write!(settings?, "[net]\noffline = true\n[profile.ci]\nincremental = {incremental}\n")?;
        // The crates of the workspace have the same names in the copy, so the links to their
        // artifacts are removed.
        worktree.cargo(&["clean"]).await?;
        Ok(worktree)
    }

    /// The directory of its programs.
    pub fn programs_directory(&self) -> PathBuf {
        self.root.join("target/ci")
    }

    /// Replaces a text that a file contains exactly once.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let text = replaced_once(&self.root, file, from, to)?;
        Ok(std::fs::write(self.root.join(file), text)?)
    }

    /// Applies a patch, or reverts it.
    pub async fn patch(&self, patch: &Path, reverse: bool) -> Result<()> {
        let patch = std::path::absolute(patch)?.display().to_string();
        let way: &[&str] = if reverse { &["--reverse"] } else { &[] };
        self.run("git", &[&["apply", "-C1"][..], way, &[patch.as_str()]].concat()).await.map(drop)
    }

    /// Adds a new file.
    pub fn add_file(&self, file: &str, text: &str) -> Result<()> {
        let path = self.root.join(file);
        ensure!(!path.exists(), "{file} exists already");
        Ok(std::fs::write(path, text)?)
    }

    /// Compiles with the lowest priority: other tests run meanwhile.
    pub async fn cargo(&self, arguments: &[&str]) -> Result<String> {
        let cargo = ["-n", "19", "cargo"];
        let workspace = ["--workspace", "--profile", "ci", "--locked"];
        let (command, rest) = arguments.split_first().context("a command of cargo")?;
        self.run("nice", &[&cargo, &[*command][..], &workspace, rest].concat()).await
    }

    /// Runs a command in the copy, and returns its output; a failure contains the output as well.
    pub async fn run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program.as_ref());
        command.args(arguments).current_dir(&self.root);
        for elsewhere in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "CARGO_BUILD_TARGET"] {
            command.env_remove(elsewhere);
        }
        command.env("HOLDFAST_STATE", &self.state);
        // The copy is inside the target of the original checkout, and not part of its repository.
        command.env("GIT_CEILING_DIRECTORIES", self.root.parent().unwrap_or(&self.root));
        run_to_end(command).await
    }
}

/// Runs a command of another checkout, without what it would inherit of this one. Returns its output; a failure
/// contains the output as well.
pub async fn run_to_end(mut command: Command) -> Result<String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    for inherited in ["CARGO_INCREMENTAL", "MAKEFLAGS", TEST_STACK_VARIABLE] {
        command.env_remove(inherited);
    }
    let output = tokio::time::timeout(COMMAND_TIMEOUT, command.output())
        .await
        .context("the command takes too long")??;
    let [out, error] =
        [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    ensure!(output.status.success(), "{:?}:\n{out}\n{error}", command.as_std());
    Ok(out + &error)
}

fn copy_folder(from: &Path, to: &Path, but: &[&str]) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if but.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy_folder(&from, &to, &[])?,
            false => std::fs::copy(from, to).map(drop)?,
        }
    }
    Ok(())
}

/// The text of a file with one text replaced, which must occur exactly once.
pub fn replaced_once(root: &Path, file: &str, from: &str, to: &str) -> Result<String> {
    let text = std::fs::read_to_string(root.join(file)).with_context(|| file.to_string())?;
    let found = text.matches(from).count();
    ensure!(found == 1, "`{from}` occurs {found} times in {file}");
    Ok(text.replace(from, to))
}

impl Drop for Worktree {
    fn drop(&mut self) {
        // A launcher that was killed has left its stack.
        let _ = stack_description().kill_all_in(&self.state);
        let _ = std::fs::remove_dir_all(&self.root);
        let _ = directories::remove_directory(&self.state);
    }
}
