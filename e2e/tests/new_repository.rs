//! A repository that `make new` writes: it is complete or absent, for every configuration of git and cargo.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use e2e::stack_description::checkout;
use launcher::directories::programs_directory;
use serde_json::Value;

/// An empty directory of a test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Scratch> {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path)?;
        Ok(Scratch(path.canonicalize()?))
    }

    fn files(&self) -> Result<BTreeSet<String>> {
        let files = self.0.read_dir()?;
        files.map(|file| Ok(file?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Runs `make new`, without make.
    fn generate(&self, name: &str, variables: &[(&str, &Path)]) -> Result<Output> {
        let mut program = Command::new(programs_directory()?.join("e2e"));
        program.arg("new").arg(self.0.join(name)).args(["--name", name]);
        program.envs(variables.iter().copied()).output().context("e2e cannot be started")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn without_git_nothing_is_written_and_the_next_try_works_beside_the_repository_of_a_hook()
-> Result<()> {
    let scratch = Scratch::new("all-or-nothing")?;
    let failed = scratch.generate("shop", &[("PATH", Path::new("/nowhere"))])?;
    let text = String::from_utf8_lossy(&failed.stderr);
    ensure!(!failed.status.success() && text.contains("git cannot be started"), "{text}");
    ensure!(scratch.files()?.is_empty(), "{:?}", scratch.files()?);

    let foreign = scratch.0.join("foreign");
    let failed = scratch.generate("shop", &[("GIT_DIR", &foreign)])?;
    ensure!(failed.status.success(), "{}", String::from_utf8_lossy(&failed.stderr));
    ensure!(scratch.files()? == ["shop".to_owned()].into(), "{:?}", scratch.files()?);
    for file in [".git", "Cargo.toml", "src/lib.rs"] {
        ensure!(scratch.0.join("shop").join(file).exists(), "{file}");
    }
    Ok(())
}

#[test]
fn a_name_is_refused_with_the_reason_or_makes_a_repository_that_cargo_reads() -> Result<()> {
    let refused = "stack contracts build deps examples incremental tokio serde uuid saga events purchase purchases main \
                   test connect std";
    let taken = ["shop", "order", "user", "select", "replication", "all", "purchase2"];
    let scratch = Scratch::new("names")?;
    for name in refused.split_whitespace() {
        let output = scratch.generate(name, &[])?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{name} is taken");
        ensure!(text.contains("already has another meaning"), "{name}: {text}");
    }
    ensure!(scratch.files()?.is_empty(), "{:?}", scratch.files()?);
    for name in taken {
        let output = scratch.generate(name, &[])?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        target_directory(&scratch.0.join(name), &[]).context(name)?;
    }
    Ok(())
}

/// Where cargo writes programs.
fn target_directory(root: &Path, variables: &[(&str, &Path)]) -> Result<PathBuf> {
    let mut cargo = without_settings("cargo", root);
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let output = cargo.envs(variables.iter().copied()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    Ok(metadata["target_directory"].as_str().context("a directory")?.into())
}

/// A command whose environment does not say where cargo builds.
fn without_settings(program: &str, root: &Path) -> Command {
    let mut command = Command::new(program);
    let names = "CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR CARGO_BUILD_TARGET MAKEFLAGS MAKELEVEL";
    for name in names.split(' ') {
        command.env_remove(name);
    }
    command.current_dir(root);
    command
}

#[test]
fn make_runs_the_programs_where_cargo_writes_them_whoever_sets_the_folder() -> Result<()> {
    let scratch = Scratch::new("target-folders")?;
    let generated = scratch.generate("shop", &[])?;
    ensure!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));
    // What a developer has in ~/.cargo for all projects.
    let home = scratch.0.join("cargo-home");
    std::fs::create_dir_all(&home)?;
    std::fs::write(home.join("config.toml"), "[build]\ntarget-dir = \"/shared/by/all\"\n")?;
    let elsewhere = scratch.0.join("elsewhere");
    for (root, program) in [(checkout(), "ci/e2e"), (scratch.0.join("shop"), "debug/stack")] {
        for variables in [
            &[("CARGO_HOME", &*home)][..],
            &[("CARGO_BUILD_TARGET_DIR", &*elsewhere)],
            &[("CARGO_TARGET_DIR", &*elsewhere)],
            &[("CARGO_HOME", &*home), ("CARGO_TARGET_DIR", &*elsewhere)],
        ] {
            let expected = target_directory(&root, variables)?.join(program);
            let mut make = without_settings("make", &root);
            make.args(["--dry-run", "status"]).envs(variables.iter().copied());
            let output = make.output()?;
            let text = String::from_utf8(output.stdout)?;
            let last = text.lines().last().context("no command")?;
            let ran = last.split(' ').next().unwrap_or_default();
            ensure!(root.join(ran) == expected, "{variables:?}: {last}, and not {expected:?}");
        }
        let shown = scratch.0.join("shown.mk");
        std::fs::write(&shown, "shown:\n\t@echo \"$${CARGO_BUILD_TARGET-withheld}\"\n")?;
        let mut make = without_settings("make", &root);
        make.args(["--file", "Makefile", "--file"]).arg(&shown).arg("shown");
        let output = make.env("CARGO_BUILD_TARGET", "x86_64-unknown-linux-gnu").output()?;
        ensure!(output.stdout == b"withheld\n", "{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}
