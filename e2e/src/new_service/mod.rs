//! Generates a new service: `make service NAME=shipping` writes `services/shipping`.
//!
//! Files that are equal in all services are copied from `services/stock`, so that there is no
//! second copy to maintain. The rest comes from `e2e/template`, a service called shipping. The name
//! is inserted there and in the seven files outside the folder that must contain it (`edits.rs`).
//! Nothing is written before every edit is known to fit.

pub(crate) mod edits;
pub(crate) mod names;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::new_service::edits::{
    Edit, SUBSCRIBED_TOPIC, add_subscriber, add_test_module, add_to_compose, add_to_lockfile,
    add_to_profile, add_to_secured_compose, add_to_stack, run_rustfmt, with_name, without_unused,
};
use crate::new_service::names::{check_clean, check_name, read_file};
use crate::stack_description::checkout;

/// The template's files, by their path in the service.
const TEMPLATE_FILES: [(&str, &str); 8] = [
    ("src/main.rs", include_str!("../../template/main.rs")),
    ("src/shipping.rs", include_str!("../../template/aggregate.rs")),
    ("src/saga.rs", include_str!("../../template/saga.rs")),
    ("src/api.rs", include_str!("../../template/api.rs")),
    ("src/tests.rs", include_str!("../../template/tests.rs")),
    ("migrations/1_shipping.sql", include_str!("../../template/tables.sql")),
    ("outage.rs", include_str!("../../template/outage.rs")),
    ("openapi.json", include_str!("../../template/openapi.json")),
];

/// The files copied from stock.
const COPIED_FILES: [&str; 2] = ["Cargo.toml", "build.rs"];

/// The files created in the service's folder, and the files changed outside with the reason.
pub struct GeneratedService {
    pub created: Vec<PathBuf>,
    pub changed: Vec<(PathBuf, String)>,
}

/// Generates a service in this checkout, and prints what was written and what is next.
pub fn run(name: &str) -> Result<()> {
    let root = checkout();
    let generated = generate(&root, name)?;
    let shown = |path: &Path| path.strip_prefix(&root).unwrap_or(path).display().to_string();
    println!("created services/{name}:");
    generated.created.iter().for_each(|path| println!("  {}", shown(path)));
    println!("changed outside services/{name}:");
    generated.changed.iter().for_each(|(path, why)| println!("  {:<28} {why}", shown(path)));
    println!("next: `make test`, or `make up` and then `make kill SERVICE={name}`");
    Ok(())
}

/// Generates a service in the checkout at `root`.
pub fn generate(root: &Path, name: &str) -> Result<GeneratedService> {
    check_name(root, name)?;
    check_clean(root)?;
    let folder = root.join("services").join(name);
    let own = TEMPLATE_FILES
        .map(|(file, text)| (folder.join(with_name(file, name)), with_name(text, name)));
    let stock = root.join("services/stock");
    let copied = COPIED_FILES.map(|file| -> Result<_> {
        let text = without_unused(&read_file(&stock.join(file))?);
        Ok((folder.join(file), text.replace("name = \"stock\"", &format!("name = \"{name}\""))))
    });
    let copied = copied.into_iter().collect::<Result<Vec<_>>>()?;
    let edited = [
        (
            "shared/events/src/orders.rs",
            format!("{name} subscribes to {SUBSCRIBED_TOPIC}"),
            add_subscriber as Edit,
        ),
        ("e2e/src/stack_description.rs", "the native stack starts it".to_string(), add_to_stack),
        (
            "docker-compose.yml",
            "docker compose starts it on the same ports".to_string(),
            add_to_compose,
        ),
        ("docker-compose.secure.yml", "it has its own secrets".to_string(), add_to_secured_compose),
        ("e2e/tests/main.rs", "its outage test runs with the others".to_string(), add_test_module),
        (
            "Cargo.toml",
            "the profile of the tests compiles it in seconds".to_string(),
            add_to_profile,
        ),
        ("Cargo.lock", "the workspace has a new member".to_string(), add_to_lockfile),
    ];
    let edited = edited.map(|(file, why, edit)| -> Result<_> {
        let path = root.join(file);
        let text = edit(&read_file(&path)?, name).with_context(|| {
            format!(
                "{file} does not have the form that the template expects, so nothing was changed"
            )
        })?;
        Ok((path, why, text))
    });
    let edited = edited.into_iter().collect::<Result<Vec<_>>>()?;

    let mut generated = GeneratedService { created: Vec::new(), changed: Vec::new() };
    for (path, text) in copied.into_iter().chain(own) {
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        fs::write(&path, text)?;
        generated.created.push(path);
    }
    for (path, why, text) in edited {
        fs::write(&path, text)?;
        generated.changed.push((path, why));
    }
    // The length of a line and the order of names depend on the name.
    let formatted = generated.created.iter().chain(generated.changed.iter().map(|(path, _)| path));
    run_rustfmt(
        root,
        formatted.filter(|path| !path.ends_with("lib.rs") && !path.ends_with("main.rs")),
    );
    Ok(generated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::new_service::edits::UNUSED_DEPENDENCIES;

    #[test]
    fn a_new_service_depends_on_what_the_template_uses_and_on_nothing_else() {
        let stock = checkout().join("services/stock/Cargo.toml");
        let manifest = without_unused(&read_file(&stock).unwrap());
        let (_, dependencies) = manifest.split_once("[dependencies]").unwrap();
        let mut dependencies =
            dependencies.lines().filter_map(|line| line.strip_suffix(".workspace = true"));
        let is_used = |name: &str| {
            let path = format!("{}::", name.replace('-', "_"));
            TEMPLATE_FILES
                .iter()
                .any(|(file, text)| file.starts_with("src/") && text.contains(&path))
        };
        assert_eq!(dependencies.find(|name| !is_used(name)), None);
        for unused in UNUSED_DEPENDENCIES {
            assert!(!is_used(unused), "{unused} is used");
        }
    }
}
