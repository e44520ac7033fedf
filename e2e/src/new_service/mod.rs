//! Generates a new service: `make service NAME=shipping` writes `services/shipping` from the template, for
//! `orders.confirmed`.
//!
//! Outside of the folder it adds a line to two lists, and regenerates from them the files of docker compose and
//! `Cargo.lock`.

mod compose;
pub(crate) mod names;
pub(crate) mod template;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::new_service::names::{SERVICE_LIST, check_clean, check_name, read_file};
use crate::stack_description::checkout;

/// The files that only a service of the workspace has.
const OWN_FILES: &str = "e2e/workspace_template";

const SUBSCRIBERS: &str = "shared/events/src/confirmed_subscribers.rs";

/// The words of the template, and those of a service that consumes `orders.confirmed`.
const WORDS: [(&str, &str); 5] = [
    ("a purchase", "an order"),
    ("A purchase", "An order"),
    ("purchase", "order"),
    ("Purchase", "Order"),
    ("PURCHASE", "ORDER"),
];

/// The files created in the service's folder, and the files changed outside with the reason.
pub struct GeneratedService {
    pub created: Vec<PathBuf>,
    pub changed: Vec<(PathBuf, &'static str)>,
}

/// Generates a service in this checkout, and prints what was written and what is next.
pub fn run(name: &str) -> Result<()> {
    let root = checkout();
    let generated = generate(&root, name)?;
    let shown = |path: &Path| path.strip_prefix(&root).unwrap_or(path).display().to_string();
    println!("created services/{name}:");
    generated.created.iter().for_each(|path| println!("  {}", shown(path)));
    println!("changed outside services/{name}:");
    generated.changed.iter().for_each(|(path, why)| println!("  {:<42} {why}", shown(path)));
    println!("next: `make test`, or `make up` and then `make kill SERVICE={name}`");
    Ok(())
}

/// Writes again what docker compose has of the services that `docker-compose.yml` does not name.
pub fn write_compose_overrides() -> Result<()> {
    compose::write(&compose::files(&checkout(), &names::services(&checkout())?)?)
}

/// Generates a service in the checkout at `root`.
pub fn generate(root: &Path, name: &str) -> Result<GeneratedService> {
    check_name(root, name)?;
    check_clean(root)?;
    let words: Vec<(&str, &str)> = WORDS.into_iter().chain([("shop", name)]).collect();
    let files = template::read(OWN_FILES, &words)?;
    template::check_modules(name, &files)?;
    let services = names::services(root)?.into_iter().chain([name.to_string()]);
    let compose = compose::files(root, &Vec::from_iter(services))?;
    let changed = [
        (SERVICE_LIST, with_line(root, SERVICE_LIST, name)?, "the stack has it"),
        (SUBSCRIBERS, with_line(root, SUBSCRIBERS, name)?, "it subscribes to orders.confirmed"),
    ];

    let created = template::write(&root.join("services").join(name), &files)?;
    let mut generated = GeneratedService { created, changed: Vec::new() };
    for (file, text, why) in changed {
        fs::write(root.join(file), text)?;
        generated.changed.push((root.join(file), why));
    }
    compose::write(&compose)?;
    let compose = compose.into_iter().map(|(file, _)| (file, "docker compose starts it"));
    generated.changed.extend(compose);
    add_to_lockfile(root)?;
    generated.changed.push((root.join("Cargo.lock"), "the workspace has a new member"));
    Ok(generated)
}

/// The text of a list with one more name.
fn with_line(root: &Path, file: &str, name: &str) -> Result<String> {
    let text = read_file(&root.join(file))?;
    let list = text.trim_end().strip_suffix(']');
    let list =
        list.with_context(|| format!("{file} does not end with `]`: nothing was changed"))?;
    Ok(format!("{list}    \"{name}\",\n]\n"))
}

/// Cargo adds a member of the workspace by itself, but not with `--locked`, which every command of make has.
fn add_to_lockfile(root: &Path) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["update", "--workspace", "--offline", "--quiet"]).current_dir(root);
    let is_updated = cargo.status().is_ok_and(|updated| updated.success());
    ensure!(
        is_updated,
        "Cargo.lock lacks the new service: run `cargo update --workspace`, or take everything back with `git stash -u`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_service_depends_on_what_the_template_uses_and_on_nothing_else() {
        let files = template::read(OWN_FILES, &[]).unwrap();
        let text = |wanted: &str| &files.iter().find(|(path, _)| path == wanted).unwrap().1;
        let (_, dependencies) = text("Cargo.toml").split_once("[dependencies]").unwrap();
        let (dependencies, of_tests) = dependencies.split_once("[dev-dependencies]").unwrap();
        for (dependencies, folders) in
            [(dependencies, &["src/"][..]), (of_tests, &["src/", "tests/"])]
        {
            for name in dependencies.lines().filter_map(|it| it.strip_suffix(".workspace = true")) {
                let path = format!("{}::", name.replace('-', "_"));
                let mut files = files
                    .iter()
                    .filter(|(file, _)| folders.iter().any(|folder| file.starts_with(folder)));
                assert!(files.any(|(_, text)| text.contains(&path)), "{name} is not used");
            }
        }
    }

    #[test]
    fn a_name_is_added_at_the_end_of_a_list() {
        for list in [SERVICE_LIST, SUBSCRIBERS] {
            let before = read_file(&checkout().join(list)).unwrap();
            let after = with_line(&checkout(), list, "shipping").unwrap();
            let rest = after.strip_prefix(before.trim_end().trim_end_matches(']')).unwrap();
            assert_eq!(rest, "    \"shipping\",\n]\n", "{list}");
        }
    }
}
