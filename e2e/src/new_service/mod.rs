//! Generates a new service: `make service NAME=loyalty` writes `services/loyalty` from the template, for
//! `orders.confirmed`.
//!
//! Outside of the folder it adds the name to the list of services, to the crate that links them and to the readers of
//! `orders.confirmed`, regenerates the files of docker compose and `Cargo.lock`, and copies what `k8s` has of stock.

mod compose;
mod kubernetes;
pub(crate) mod names;
pub mod participant;
pub(crate) mod template;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::new_service::names::{
    ANOTHER_MEANING, SERVICE_LIST, check_clean, check_name, read_file,
};
use crate::new_service::participant::Words;
use crate::new_service::template::{Change, TemplateFile, append, unknown_form};
use crate::stack_description::checkout;

/// The files that only a service of the workspace has.
const OWN_FILES: &str = "e2e/workspace_template";

/// The crate that links every service: its manifest, and what each service consumes.
const MANIFEST: &str = "shared/declaration/Cargo.toml";
const SUBSCRIPTIONS: &str = "shared/declaration/src/lib.rs";

/// Declares `orders.confirmed`, whose readers it names.
const EVENTS: &str = "shared/events/src/orders.rs";

/// The words of the template, and those of a service that consumes `orders.confirmed`.
const WORDS: [(&str, &str); 5] = [
    ("a purchase", "an order"),
    ("A purchase", "An order"),
    ("purchase", "order"),
    ("Purchase", "Order"),
    ("PURCHASE", "ORDER"),
];

/// The files created, and the files changed with the reason.
pub struct GeneratedService {
    pub created: Vec<PathBuf>,
    pub changed: Vec<(PathBuf, &'static str)>,
}

/// Generates a service in this checkout, with these words a participant of the saga. Prints what was written and what is
/// next.
pub fn run(name: &str, words: Option<&Words>) -> Result<()> {
    let root = checkout();
    let generated = generate(&root, name, words)?;
    let shown = |path: &Path| path.strip_prefix(&root).unwrap_or(path).display().to_string();
    println!("created:");
    generated.created.iter().for_each(|path| println!("  {}", shown(path)));
    println!("changed:");
    generated.changed.iter().for_each(|(path, why)| println!("  {:<42} {why}", shown(path)));
    println!("next: `make test`, or `make up` and then `make kill SERVICE={name}`");
    Ok(())
}

/// Writes again what docker compose has of the services that `docker-compose.yml` does not name.
pub fn write_compose_overrides() -> Result<()> {
    compose::write(&compose::files(&checkout(), &names::services(&checkout())?)?)
}

/// Generates a service in the checkout at `root`, with these words a participant of the saga.
pub fn generate(root: &Path, name: &str, words: Option<&Words>) -> Result<GeneratedService> {
    check_name(root, name)?;
    check_clean(root)?;
    let (files, own_changes) = match words {
        Some(words) => participant::files(root, name, words)?,
        None => subscriber(root, name)?,
    };
    let own = files.iter().filter_map(|(path, text)| {
        Some((path.strip_prefix(&format!("services/{name}/"))?.to_string(), text.clone()))
    });
    template::check_modules(name, &Vec::from_iter(own))?;
    ensure!(!files.iter().any(|(path, _)| root.join(path).exists()), "`{name}` {ANOTHER_MEANING}");
    let mut services = names::services(root)?;
    let (manifests, lists) = kubernetes::files(root, &services, name, words.is_some())?;
    services.push(name.to_string());
    let compose = compose::files(root, &services)?;
    let changed = [
        (SERVICE_LIST, with_service(root, name)?, "the stack has it"),
        (MANIFEST, with_dependency(root, name)?, "the declaration links it"),
        (SUBSCRIPTIONS, with_subscription(root, name)?, "its handlers say what it consumes"),
    ];

    let mut created = template::write(root, &files)?;
    created.extend(template::write(root, &manifests)?);
    let mut generated = GeneratedService { created, changed: Vec::new() };
    let changed = changed.map(|(file, text, why)| (file.to_string(), text, why));
    let changes: Vec<Change> = changed.into_iter().chain(own_changes).chain(lists).collect();
    let (texts, reasons): (Vec<TemplateFile>, Vec<_>) =
        changes.into_iter().map(|(file, text, why)| ((file, text), why)).unzip();
    generated.changed.extend(template::write(root, &texts)?.into_iter().zip(reasons));
    compose::write(&compose)?;
    let compose = compose.into_iter().map(|(file, _)| (file, "docker compose starts it"));
    generated.changed.extend(compose);
    add_to_lockfile(root)?;
    generated.changed.push((root.join("Cargo.lock"), "the workspace has a new member"));
    Ok(generated)
}

/// The files of a service that consumes `orders.confirmed`, and what changes for it.
fn subscriber(root: &Path, name: &str) -> Result<(Vec<TemplateFile>, Vec<Change>)> {
    let words: Vec<(&str, &str)> = WORDS.into_iter().chain([("shop", name)]).collect();
    let mut files = template::read(OWN_FILES, &words)?;
    files.iter_mut().for_each(|(path, _)| *path = format!("services/{name}/{path}"));
    let why = "it may read the personal data of orders.confirmed";
    Ok((files, vec![(EVENTS.to_string(), with_reader(root, name)?, why)]))
}

/// The list of services with one more name.
fn with_service(root: &Path, name: &str) -> Result<String> {
    insert(root, SERVICE_LIST, "\n]", &format!("\n    \"{name}\","))
}

/// The manifest with one more dependency.
fn with_dependency(root: &Path, name: &str) -> Result<String> {
    let line = format!("\n{name} = {{ path = \"../../services/{name}\" }}");
    insert(root, MANIFEST, "\n\n[dev-dependencies]", &line)
}

/// The subscriptions with those of one more service.
fn with_subscription(root: &Path, name: &str) -> Result<String> {
    let line = format!("\n        (\"{name}\", {name}::handlers().topics()),");
    insert(root, SUBSCRIPTIONS, "\n    ])\n", &line)
}

/// The declaration of `orders.confirmed` with one more reader.
fn with_reader(root: &Path, name: &str) -> Result<String> {
    let text = read_file(&root.join(EVENTS))?;
    let place =
        "topic = \"orders.confirmed\", publisher = \"order\", key = \"order_id\", personal(";
    append(&text, place, ')', &format!("\"{name}\"")).with_context(|| unknown_form(EVENTS))
}

/// The text of a file with this part before the first place that begins so.
fn insert(root: &Path, file: &str, place: &str, part: &str) -> Result<String> {
    let text = read_file(&root.join(file))?;
    let (before, after) = text.split_once(place).with_context(|| unknown_form(file))?;
    Ok(format!("{before}{part}{place}{after}"))
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
    fn a_name_is_added_behind_the_others() {
        let root = checkout();
        for (file, text, line) in [
            (SERVICE_LIST, with_service(&root, "loyalty"), "    \"loyalty\",\n]\n"),
            (
                MANIFEST,
                with_dependency(&root, "loyalty"),
                "loyalty = { path = \"../../services/loyalty\" }\n\n[dev-dependencies]\n",
            ),
            (
                SUBSCRIPTIONS,
                with_subscription(&root, "loyalty"),
                "        (\"loyalty\", loyalty::handlers().topics()),\n    ])\n});\n",
            ),
            (EVENTS, with_reader(&root, "loyalty"), "\"loyalty\"))]\npub struct OrderConfirmed"),
        ] {
            let text = text.unwrap();
            assert_eq!(text.matches("loyalty").count(), line.matches("loyalty").count(), "{file}");
            assert!(text.contains(line), "{file}: {text}");
        }
    }
}
