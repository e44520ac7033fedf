//! The program `e2e` as a process of its own: what it leaves behind, and as which user it runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::processes_left_in;
use crate::fixture::*;
use anyhow::{Result, ensure};
use e2e::stack_description::stack_description;
use launcher::directories;
use launcher::proc_fs::ProcessIdentity;
use launcher::process::{self, NOBODY_ID, Signal};

#[tokio::test]
async fn a_command_run_with_infrastructure_decides_the_exit_status_and_leaves_nothing() -> Result<()>
{
    let _permit = stack_permit().await?;
    let directory = LauncherDirectory::new()?;
    let script = r#"test -n "$TEST_DATABASE_URL" && exit 7"#;
    let status = directory.command(&["with-infrastructure", "--", "sh", "-c", script]).status()?;
    assert_eq!(status.code(), Some(7));
    assert_eq!(processes_left_in(&directory.0), 0);
    assert!(!directory.0.join("state/test").exists());
    Ok(())
}

#[tokio::test]
async fn a_launcher_that_was_killed_or_ended_leaves_nothing_that_blocks_the_next_start()
-> Result<()> {
    let _permit = stack_permit().await?;
    let directory = LauncherDirectory::new()?;
    let (marker, pid) = (directory.0.join("started"), directory.0.join("pid"));
    // Like cargo and a test: the started process starts another one.
    let below = format!("echo $$ > {}; touch {}; exec sleep 300", pid.display(), marker.display());
    let script = format!("sh -c '{below}'; true");
    let sleeping = || -> Result<ProcessIdentity> {
        let sleeping = ProcessIdentity::from_pid(std::fs::read_to_string(&pid)?.trim().parse()?);
        ensure!(sleeping.is_alive(), "it ended by itself");
        Ok(sleeping)
    };
    let run = ["with-infrastructure", "--", "sh", "-c", &script];
    let mut launcher = directory.command(&run).spawn()?;
    wait_for_file(&marker).await?;
    launcher.kill()?;
    launcher.wait()?;
    // A launcher that is killed cannot take its stack along.
    assert!(processes_left_in(&directory.0) > 0);
    process::send_signal(Signal::KILL, &[sleeping()?])?;

    std::fs::remove_file(&marker)?;
    let mut launcher = directory.command(&run).spawn()?;
    wait_for_file(&marker).await?;
    let sleeping = sleeping()?;
    process::send_signal(Signal::TERM, &[ProcessIdentity::from_pid(launcher.id())])?;
    assert_eq!(launcher.wait()?.code(), Some(143));
    assert!(!sleeping.is_alive(), "a process of the command has outlived it");
    assert_eq!(processes_left_in(&directory.0), 0);
    Ok(())
}

#[tokio::test]
async fn databases_kafka_and_registry_run_as_an_ordinary_user() -> Result<()> {
    let _permit = stack_permit().await?;
    if !directories::is_root() {
        // As an ordinary user, every other test in this file proves it.
        return Ok(());
    }
    let directory = LauncherDirectory::new()?;
    // Every Linux machine has this user beside root.
    let id = NOBODY_ID.to_string();
    let own = directory.0.join("user");
    std::fs::create_dir(&own)?;
    std::os::unix::fs::chown(&own, Some(NOBODY_ID), Some(NOBODY_ID))?;
    // An ordinary user may not be able to enter the checkout.
    let program = directory.0.join("e2e");
    // A program of its own copies it: a process that another test starts meanwhile would inherit a file that this one
    // has open to write, and such a file cannot be executed.
    let copied = Command::new("install")
        .args(["-m", "755", env!("CARGO_BIN_EXE_e2e")])
        .arg(&program)
        .status()?;
    assert!(copied.success());
    let status = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
        .arg(&program)
        .args(["with-infrastructure", "--", "sh", "-c", "test $(id -u) != 0 && exit 7"])
        .env("HOME", &own)
        .env("HOLDFAST_STATE", own.join("state"))
        .env("HOLDFAST_CACHE", directories::cache_directory()?)
        .current_dir(&own)
        .status()?;
    assert_eq!(status.code(), Some(7));
    assert_eq!(processes_left_in(&directory.0), 0);
    Ok(())
}

/// Each describes a stack of a project of its own, and needs nothing of this one.
#[tokio::test]
async fn the_examples_of_the_launcher_run_and_leave_nothing() -> Result<()> {
    let _permit = stack_permit().await?;
    let directory = LauncherDirectory::new()?;
    for (example, shown) in [
        ("infrastructure", ["postgres://postgres:", "/apis/ccompat/v7"]),
        ("outage", ["shop has started 2 times", "shop-db killed at "]),
    ] {
        let program = directories::programs_directory()?.join("examples").join(example);
        let output = Command::new(program).env("TMPDIR", &directory.0).output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(shown.iter().all(|shown| text.contains(shown)), "{text}");
        assert_eq!(std::fs::read_dir(&directory.0)?.count(), 0, "{example}");
    }
    assert_eq!(processes_left_in(&directory.0), 0);
    Ok(())
}

/// The state directory of a launcher that is started as a program.
struct LauncherDirectory(PathBuf);

impl LauncherDirectory {
    fn new() -> Result<Self> {
        let name = format!("launcher-{:08x}", rand::random::<u32>());
        let directory = Self(stack_description().own_temp_directory(&name));
        directories::create_public_directory(&directory.0)?;
        Ok(directory)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_e2e"));
        command.args(arguments).env("HOLDFAST_STATE", self.0.join("state")).stdin(Stdio::null());
        command
    }
}

impl Drop for LauncherDirectory {
    fn drop(&mut self) {
        let _ = stack_description().kill_all_in(&self.0);
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn wait_for_file(file: &Path) -> Result<()> {
    let begun = Instant::now();
    while !file.exists() {
        ensure!(begun.elapsed() < Duration::from_secs(300), "{} did not appear", file.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
