//! Jaeger: the store of the traces of an observed stack, with its page. Go compiles it once into the cache that every
//! project shares, and checks each module against `go.sum`. Cargo fetches the page.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::artifacts::{checksums, hex, sha256};
use crate::directories::{cache_directory, create_public_directory, lock_file};
use crate::process::LaunchCommand;
use crate::secrets::JAEGER;
use crate::stack_state::StackState;
use crate::topology::HOST;

const GO_MODULE: &str = include_str!("../jaeger/go.mod");
const GO_CHECKSUMS: &str = include_str!("../jaeger/go.sum");
const PAGE_MANIFEST: &str = include_str!("../jaeger/page.toml");
const CONFIG: &str = include_str!("../jaeger/config.yaml");

const PACKAGE: &str = "github.com/jaegertracing/jaeger/cmd/jaeger";
const PAGE_CRATE: &str = "otlp-embedded";

/// The lines of `artifacts.sha256` about the page begin with this.
const PAGE_ARTIFACT: &str = "jaeger-page";

/// On two cores the compiler takes some minutes, beside other work more.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3_600);

/// The bound on what it keeps in memory, beside the number of traces in its configuration.
const MEMORY_LIMIT: &str = "400MiB";

/// The compiled program and its page.
pub struct Jaeger {
    program: PathBuf,
    page: PathBuf,
}

impl Jaeger {
    /// Compiles it, unless the cache has this version. `progress` gets one line for each long step.
    pub async fn build_missing(progress: &impl Fn(&str)) -> Result<Self> {
        let cache = cache_directory()?;
        let home = cache.join(format!("jaeger-{}", version()?));
        if !is_complete(&home) {
            create_public_directory(&cache)?;
            let waiting = || progress("waiting for another launcher that compiles Jaeger …");
            let _lock = lock_file(&cache.join("jaeger.lock"), &waiting).await?;
            if !is_complete(&home) {
                build(&cache, &home, progress).await?;
            }
        }
        Ok(Self { program: home.join("jaeger"), page: home.join("page") })
    }

    /// Its command line, at the ports of the stack.
    pub fn launch_command(&self, home: &Path, stack_state: &StackState) -> Result<LaunchCommand> {
        let config = home.join("config.yaml");
        fs::write(&config, CONFIG)?;
        let (query, otlp) = ("extensions.jaeger_query", "receivers.otlp.protocols.http");
        let at = |port: u16| format!("{HOST}:{port}");
        let mut settings = vec![
            (format!("{query}.http.endpoint"), at(stack_state.ports.jaeger)),
            // Its clients use HTTP.
            (format!("{query}.grpc.endpoint"), at(0)),
            (format!("{query}.ui.assets_path"), self.page.display().to_string()),
            (format!("{otlp}.endpoint"), at(stack_state.ports.otlp)),
        ];
        if stack_state.secure {
            let certificate = stack_state.secrets()?.certificate(JAEGER)?.display().to_string();
            for server in [format!("{query}.http"), otlp.to_string()] {
                for file in ["cert_file", "key_file"] {
                    settings.push((format!("{server}.tls.{file}"), certificate.clone()));
                }
                settings.push((format!("{server}.tls.reload_interval"), "5s".to_string()));
            }
        }
        let settings = settings.into_iter().map(|(name, value)| format!("--set={name}={value}"));
        Ok(LaunchCommand {
            program: self.program.clone(),
            arguments: [format!("--config={}", config.display())]
                .into_iter()
                .chain(settings)
                .collect(),
            environment: vec![("GOMEMLIMIT".to_string(), MEMORY_LIMIT.to_string())],
            unprivileged: false,
        })
    }
}

/// The version of the Go module.
fn version() -> Result<&'static str> {
    let mut lines = GO_MODULE
        .lines()
        .filter_map(|line| line.trim().strip_prefix("github.com/jaegertracing/jaeger "));
    lines
        .next()
        .and_then(|rest| rest.split(' ').next())
        .context("go.mod names no version of Jaeger")
}

/// The stamp changes with everything that goes into the build.
fn stamp() -> String {
    let mut hash = Sha256::new();
    for part in [GO_MODULE, GO_CHECKSUMS, PAGE_MANIFEST] {
        hash.update(part);
    }
    hex(&hash.finalize())
}

fn is_complete(home: &Path) -> bool {
    fs::read_to_string(home.join("complete")).is_ok_and(|found| found == stamp())
}

async fn build(cache: &Path, home: &Path, progress: &impl Fn(&str)) -> Result<()> {
    let begun = Instant::now();
    progress("compiling Jaeger with Go, once (some minutes) …");
    // Under the lock no other launcher builds, so these files are left from an interrupted build.
    let work = cache.join("jaeger.partial");
    let _ = fs::remove_dir_all(&work);
    let ready = work.join("ready");
    fs::create_dir_all(&ready)?;
    fetch_page(&work, &ready.join("page")).await?;
    fs::write(work.join("go.mod"), GO_MODULE)?;
    fs::write(work.join("go.sum"), GO_CHECKSUMS)?;
    let into = ready.join("jaeger").display().to_string();
    let flags = ["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", &into, PACKAGE];
    let environment =
        [("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local"), ("GOFLAGS", "-mod=readonly")];
    run("go", &flags, &environment, &work).await.context("Go cannot compile Jaeger")?;
    fs::write(ready.join("complete"), stamp())?;
    let _ = fs::remove_dir_all(home);
    fs::rename(&ready, home)?;
    fs::remove_dir_all(&work)?;
    progress(&format!("compiled Jaeger in {:.0} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Copies the page out of its crate, and checks each file.
async fn fetch_page(work: &Path, into: &Path) -> Result<()> {
    let package = work.join(PAGE_ARTIFACT);
    create_public_directory(&package.join("src"))?;
    fs::write(package.join("src/lib.rs"), "")?;
    fs::write(package.join("Cargo.toml"), PAGE_MANIFEST)?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string());
    run(&cargo, &["fetch"], &[], &package).await.context("cargo cannot fetch Jaeger's page")?;
    let described =
        run(&cargo, &["metadata", "--offline", "--format-version=1"], &[], &package).await?;
    let line = described.lines().find(|line| line.starts_with('{')).unwrap_or_default();
    let metadata: Value = serde_json::from_str(line)?;
    let mut packages = metadata["packages"].as_array().into_iter().flatten();
    let manifest = packages.find(|it| it["name"] == PAGE_CRATE);
    let manifest = manifest.and_then(|it| it["manifest_path"].as_str());
    let manifest = Path::new(manifest.context("cargo knows no crate with Jaeger's page")?);
    let from = manifest.with_file_name("jaeger-ui").join("build");
    for (file, sum) in checksums(PAGE_ARTIFACT) {
        let found = sha256(&from.join(&file))?;
        ensure!(found == sum, "{file} does not match artifacts.sha256: its sha256 is {found}");
        let copy = into.join(&file);
        create_public_directory(copy.parent().unwrap_or(into))?;
        fs::copy(from.join(&file), copy)?;
    }
    Ok(())
}

/// Runs a command to its end, and returns what it printed.
async fn run(
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
    work: &Path,
) -> Result<String> {
    let variable = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    let launch = LaunchCommand {
        program: program.into(),
        arguments: arguments.iter().map(|word| word.to_string()).collect(),
        environment: environment.iter().map(variable).collect(),
        unprivileged: false,
    };
    let log = work.join(format!("{}.log", arguments[0]));
    let succeeded = launch.run(work, &log, BUILD_TIMEOUT).await?;
    let text = fs::read_to_string(&log).unwrap_or_default();
    let end = text.lines().rev().take(5).collect::<Vec<_>>().join("; ");
    ensure!(succeeded, "`{program} {}` failed: {end}", arguments[0]);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_module() {
        assert!(version().unwrap().starts_with("v1."));
        assert!(checksums(PAGE_ARTIFACT).contains_key("index.html"));
    }
}
