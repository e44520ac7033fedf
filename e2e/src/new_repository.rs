//! Generates a separate repository: `make new DIR=../shop NAME=shop` writes a service that depends on the crates of
//! Holdfast.
//!
//! The files are those of `make service` and of `e2e/repository_template`. The name is inserted, and where the crates
//! come from. The directory must be new or empty. Afterwards it is complete or unchanged.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::new_service::names::{check_word, git};
use crate::new_service::template::{self, TemplateFile};

/// Where the crates lie in a checkout of Holdfast.
const CRATES: [(&str, &str); 5] = [
    ("holdfast-chassis", "shared/chassis"),
    ("holdfast-contracts", "shared/contracts"),
    ("holdfast-testing", "shared/testing"),
    ("holdfast-launcher", "e2e/launcher"),
    ("holdfast-checker", "e2e/checker"),
];

/// The version of all crates, which the template names as `0.1.0`.
const TEMPLATE_VERSION: &str = "version = \"0.1.0\" }";

/// The files that only a repository has.
const OWN_FILES: &str = "e2e/repository_template";

/// What to generate.
#[derive(Clone, Debug, clap::Args)]
pub struct RepositoryOptions {
    /// The directory of the new repository: it is created, or empty
    pub directory: PathBuf,
    /// The name of its service: one word of lower-case letters and digits
    #[arg(long)]
    pub name: String,
    /// Where the crates come from: the path of a checkout, or the URL of a git repository. Without it, from the
    /// registry
    #[arg(long)]
    pub from: Option<String>,
}

/// Generates the repository, and prints what is next.
pub fn run(options: &RepositoryOptions) -> Result<()> {
    let RepositoryOptions { directory, name, from } = options;
    let written = generate(directory, name, from.as_deref())?;
    println!("created {} with {} files", directory.display(), written.len());
    println!("next: cd {} && make test", directory.display());
    Ok(())
}

/// Generates the repository. Returns its files.
pub fn generate(directory: &Path, name: &str, from: Option<&str>) -> Result<Vec<PathBuf>> {
    check_word(name)?;
    // The service whose events it consumes.
    ensure!(name != "purchase", "`{name}` already has another meaning: choose another name");
    let mut files = template::read(OWN_FILES, &[("shop", name)])?;
    template::check_modules(name, &files)?;
    let is_empty = directory.read_dir().map_or(true, |mut files| files.next().is_none());
    ensure!(is_empty, "{} is not empty", directory.display());
    let location = from.map(location).transpose()?;
    for (_, manifest) in files.iter_mut().filter(|(path, _)| path == "Cargo.toml") {
        *manifest = with_location(manifest, location.as_ref());
    }
    let directory = std::path::absolute(directory)?;
    let last = directory.file_name().context("the directory has no name")?;
    // Beside the directory: a rename stays within one file system.
    let mut incomplete = std::ffi::OsString::from(".incomplete-");
    incomplete.push(last);
    let incomplete = directory.with_file_name(incomplete);
    let written = write_files(&incomplete, &files).and_then(|written| {
        fs::rename(&incomplete, &directory).context("the new repository could not be moved")?;
        Ok(written)
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&incomplete);
    }
    let moved = |path: PathBuf| Ok(directory.join(path.strip_prefix(&incomplete)?));
    written?.into_iter().map(moved).collect()
}

fn write_files(directory: &Path, files: &[TemplateFile]) -> Result<Vec<PathBuf>> {
    let _ = fs::remove_dir_all(directory);
    let mut written = template::write(directory, files)?;
    // The versions of dependencies that this checkout was tested with.
    let lockfile = include_str!("../../Cargo.lock");
    fs::write(directory.join("Cargo.lock"), lockfile)?;
    written.extend(contracts::record_versions(&directory.join("schemas"))?);
    let initialised = git().args(["init", "--quiet"]).arg(directory).status();
    let initialised = initialised.context("git cannot be started")?;
    ensure!(initialised.success(), "`git init` failed: {initialised}");
    Ok(written)
}

/// Where the crates come from.
#[derive(Debug)]
enum Location {
    Path(PathBuf),
    Git(String),
}

fn location(from: &str) -> Result<Location> {
    let path = Path::new(from);
    if path.is_dir() {
        let path = path.canonicalize()?;
        let chassis = path.join(CRATES[0].1);
        ensure!(
            chassis.is_dir(),
            "{} is not a checkout of Holdfast: {} is missing",
            path.display(),
            CRATES[0].1
        );
        return Ok(Location::Path(path));
    }
    if from.contains("://") || from.starts_with("git@") {
        return Ok(Location::Git(from.to_owned()));
    }
    bail!("FROM={from} is neither a directory nor the URL of a git repository")
}

/// The manifest with the version of this checkout, and with the place of each crate.
fn with_location(manifest: &str, location: Option<&Location>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let lines = manifest.lines().map(|line| {
        let known = CRATES.iter().find(|(name, _)| line.contains(&format!("\"{name}\"")));
        let Some((_, folder)) = known else { return line.to_owned() };
        let place = match location {
            None => String::new(),
            Some(Location::Path(root)) => format!(", path = {:?}", root.join(folder)),
            Some(Location::Git(url)) => format!(", git = {url:?}"),
        };
        line.replace(TEMPLATE_VERSION, &format!("version = \"{version}\"{place} }}"))
    });
    lines.map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crates_come_from_a_registry_a_path_or_git() {
        let manifest =
            "chassis = { package = \"holdfast-chassis\", version = \"0.1.0\" }\nserde = \"1\"\n";
        let version = env!("CARGO_PKG_VERSION");
        for (location, place) in [
            (None, String::new()),
            (Some(Location::Path("/h".into())), ", path = \"/h/shared/chassis\"".to_owned()),
            (Some(Location::Git("https://h.git".into())), ", git = \"https://h.git\"".to_owned()),
        ] {
            let line = format!(
                "chassis = {{ package = \"holdfast-chassis\", version = \"{version}\"{place} }}"
            );
            assert_eq!(
                with_location(manifest, location.as_ref()),
                format!("{line}\nserde = \"1\"\n")
            );
        }
        location("nowhere").unwrap_err();
    }

    /// A team has to read all of it.
    #[test]
    fn a_new_repository_is_small_and_knows_no_domain_of_ours() {
        let files = template::read(OWN_FILES, &[]).unwrap();
        let rust = files.iter().filter(|(path, _)| path.ends_with(".rs"));
        let lines: usize = rust.map(|(_, text)| text.lines().count()).sum();
        assert!(lines < 700, "{lines} lines of Rust");
        for (path, text) in &files {
            let words = text.split(|c: char| !c.is_alphanumeric());
            for word in words.map(|word| word.to_lowercase()) {
                let ours = ["order", "payment", "stock"];
                assert!(!ours.contains(&word.trim_end_matches('s')), "{path} has the word {word}");
            }
        }
    }

    #[test]
    fn a_directory_with_files_is_left_alone() {
        let directory = std::env::temp_dir().join(format!("repository-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("mine"), "mine").unwrap();
        generate(&directory, "shop", None).unwrap_err();
        assert_eq!(directory.read_dir().unwrap().count(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }
}
