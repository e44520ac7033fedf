//! A service that `make service` generates builds without a warning, passes its own tests, survives
//! its own outage on a stack of its own, and keeps the structure rules.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use e2e::mutants::worktree::Worktree;
use e2e::new_service::{self, participant::Words};
use e2e::stack_description::{SERVICES, checkout};
use launcher::directories::programs_directory;
use serde_json::Value;

use crate::fixture::*;
use crate::manifests::{self, render};

/// The number of files that a new service may change: seven, and six lists of `k8s`.
const CHANGED_FILES_MAX: usize = 13;

/// The same for a participant: those, and what knows participants.
const CHANGED_BY_A_PARTICIPANT_MAX: usize = 27;

/// A checkout with a service that `make service` has made, and the name of the service.
async fn generate() -> Result<(Worktree, String)> {
    let scratch = Worktree::create("service").await?;
    // A fork may already have a parcel service.
    let names = ["parcel".to_string()].into_iter().chain((2..).map(|n| format!("parcel{n}")));
    let free = |name: &String| !scratch.root.join("services").join(name).exists();
    let name = names.take(100).find(free).context("a free name")?;
    let made = new_service::generate(&scratch.root, &name, None)?;
    ensure!(made.changed.len() <= CHANGED_FILES_MAX, "it changed {} files", made.changed.len());
    let own = ["src/lib.rs", "tests/outage.rs"].map(|file| format!("services/{name}/{file}"));
    let tidy = ["--check", "--edition", "2024", &own[0], &own[1]];
    scratch.run("rustfmt", &tidy).await?;
    Ok((scratch, name))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_made_from_the_template_is_formatted_and_deployed_as_stock_is() -> Result<()> {
    without_fixture(async || {
        let (scratch, name) = generate().await?;
        for overlay in ["demo", "production"] {
            let Some(objects) = render(&scratch.root, overlay) else { return Ok(()) };
            let [own, stocks] = [&*name, "stock"].map(|service| of_service(&objects, service));
            ensure!(own == stocks, "{overlay}: {:#?}", &own ^ &stocks);
            ensure!(own.len() >= 10, "{overlay}: {own:#?}");
        }
        Ok(())
    })
    .await
}

/// The objects of a service, under the name of stock: but for Secrets, in whose names a hash stands for their content,
/// and for its user of Kafka, which `make schema` writes.
fn of_service(objects: &[Value], service: &str) -> BTreeSet<String> {
    let is_own = |object: &&Value| {
        let rest = manifests::name(object).strip_prefix(service);
        let is_other = ["Secret", "KafkaUser"].iter().any(|kind| object["kind"] == *kind);
        rest.is_some_and(|it| it.is_empty() || it.starts_with('-')) && !is_other
    };
    let renamed = objects.iter().filter(is_own).map(|it| it.to_string().replace(service, "stock"));
    let secret = "stock-database-";
    let is_hash = |c: char| c.is_ascii_alphanumeric();
    let unhashed = |text: String| {
        let parts = text.split(secret).map(|part| part.trim_start_matches(is_hash));
        parts.collect::<Vec<_>>().join(secret)
    };
    renamed.map(unhashed).collect()
}

/// `faults::long::participant` builds and runs one.
#[tokio::test(flavor = "multi_thread")]
async fn a_participant_made_from_the_template_is_formatted_and_changes_few_files() -> Result<()> {
    without_fixture(async || {
        let scratch = Worktree::create("service").await?;
        let words = Words::default();
        // Modules of the new service, of the events and of the order service.
        for taken in ["rule", "orders", "payments"] {
            let refused = new_service::generate(&scratch.root, taken, Some(&words));
            let refused = refused.err().context("it was generated")?.to_string();
            ensure!(refused.contains("already has another meaning"), "{taken}: {refused}");
        }
        let made = new_service::generate(&scratch.root, "fraud", Some(&words))?;
        let changed = made.changed.len();
        ensure!(changed <= CHANGED_BY_A_PARTICIPANT_MAX, "it changed {changed} files");
        let own = made.created.iter().map(|path| path.display().to_string());
        let sources = Vec::from_iter(own.filter(|path| path.ends_with(".rs")));
        let tidy = ["--check", "--edition", "2024"];
        let tidy: Vec<&str> = tidy.into_iter().chain(sources.iter().map(|path| &**path)).collect();
        scratch.run("rustfmt", &tidy).await.map(drop)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "compiles for minutes: make faults"]
async fn a_service_made_from_the_template_builds_and_survives_its_outage() -> Result<()> {
    without_fixture(async || {
        let (scratch, name) = generate().await?;
        // Of the tests those that run below: each program of tests that is linked takes seconds.
        let tests = ["test", "--no-run", "--lib", "--test", "main", "--test", "outage"];
        let built = scratch.cargo(&["build"]).await? + &scratch.cargo(&tests).await?;
        ensure!(!built.contains("warning:"), "{built}");

        let cargo = "cargo test --workspace --profile ci --locked";
        // With `bench`, as for `make test SERVICE=x`, nothing is compiled a second time.
        let own =
            format!("cargo test --package {name} --package bench --lib --profile ci --locked");
        // Also the quick tests of the other crates: no test may assume a fixed list of services.
        let quick = "checker::orders stack_description:: new_service::";
        let unit = format!("{own} && {cargo} --lib -- {quick}");
        let all = format!("{cargo} --test main -- structure:: manifests::");
        let outage = format!("{cargo} --test outage");
        let tests = format!("{unit} && {all} && {outage}");
        let program = scratch.programs_directory().join("e2e");
        let ran = scratch.run(program, &["with-infrastructure", "--", "sh", "-c", &tests]).await?;
        for test in ["records_none_twice ... ok", "stored_once_readable_and_balanced ... ok"] {
            ensure!(ran.contains(test), "not run: {test}\n{ran}");
        }
        Ok(())
    })
    .await
}

#[test]
fn the_template_wires_what_stock_wires_but_for_commands() -> Result<()> {
    let used = |file: &str| -> Result<BTreeSet<String>> {
        let text = std::fs::read_to_string(checkout().join(file))?;
        let body = text.split_once("async fn serve").context("a body")?.1;
        let body: String = body.split_whitespace().collect();
        let of = |part: &str| -> Vec<String> {
            let ends = |c: char| !c.is_ascii_alphanumeric() && c != '_';
            let start = format!("{part}.");
            let calls = body.split(&start).skip(1);
            calls.filter_map(|rest| Some(start.clone() + rest.split(ends).next()?)).collect()
        };
        Ok(["service", "consumer"].into_iter().flat_map(of).collect())
    };
    let mut stock = used("services/stock/src/lib.rs")?;
    stock.remove("service.commands");
    assert_eq!(used("e2e/template/src/lib.rs")?, stock);
    Ok(())
}

/// `make openapi` writes the files of services, and the template is not a service.
#[test]
fn the_template_describes_its_answers_as_stock_does() -> Result<()> {
    let described = |file: &str| -> Result<[Value; 2]> {
        let document = std::fs::read_to_string(checkout().join(file))?;
        let document: Value = serde_json::from_str(&document)?;
        Ok(["/info/description", "/components/responses"]
            .map(|part| document.pointer(part).cloned().unwrap_or_default()))
    };
    let [about, answers] = described("e2e/template/openapi.json")?;
    let [stocks, others] = described("services/stock/openapi.json")?;
    assert_eq!(about, stocks);
    let answers = answers.as_object().context("answers")?;
    ensure!(
        !answers.is_empty() && answers.iter().all(|(name, is)| others[name] == *is),
        "{answers:?}"
    );
    Ok(())
}

#[test]
fn help_prints_what_a_service_alone_reads_and_a_page_names_every_variable() -> Result<()> {
    let page = std::fs::read_to_string(checkout().join("docs/configuration.md"))?;
    let variables = |service: &str| -> Result<Vec<String>> {
        let output = std::process::Command::new(programs_directory()?.join(service))
            .arg("--help")
            .output()?;
        let help = String::from_utf8(output.stdout)?;
        let is_name = |word: &&str| word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
        let names = lines.filter_map(|line| line.split(' ').next()).filter(is_name);
        Ok(names.filter(|name| !name.is_empty()).map(str::to_string).collect())
    };
    for service in SERVICES {
        let variables = variables(service)?;
        ensure!(variables.len() > 10, "{service} --help: {variables:?}");
        for name in variables {
            ensure!(page.contains(&format!("`{name}`")), "{service} reads {name}");
        }
    }
    ensure!(variables("order")?.contains(&"ORDER_DEADLINE_SECONDS".to_string()));
    ensure!(variables("stock")?.contains(&"CURRENCY".to_string()));
    Ok(())
}
