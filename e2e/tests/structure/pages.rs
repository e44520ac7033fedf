//! The pages: their links, and that everything that they name exists.

use std::collections::BTreeSet;
use std::path::Path;

use super::{CHASSIS, files, read, root, sources};

/// Every page, from the root of the checkout.
pub(super) fn pages() -> Vec<String> {
    let named = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(String::from);
    named.into_iter().chain(files("docs", &[".md"])).collect()
}

/// The lines of a page that are no code.
fn prose(page: &str) -> Vec<String> {
    let mut in_code = false;
    let text = read(page);
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    });
    lines.map(str::to_string).collect()
}

/// The texts between backquotes in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn every_link_leads_to_a_page_and_a_heading() {
    let anchor = |heading: &str| -> String {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let headings = |page: &str| -> BTreeSet<String> {
        let titles = prose(page);
        titles
            .iter()
            .filter_map(|line| Some(anchor(line.strip_prefix('#')?.trim_start_matches('#').trim())))
            .collect()
    };
    let mut wrong = Vec::new();
    for page in pages() {
        let folder = Path::new(&page).parent().unwrap().to_path_buf();
        for line in prose(&page) {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                if target.contains("://") {
                    continue;
                }
                let (file, heading) = target.split_once('#').unwrap_or((target, ""));
                let path = if file.is_empty() {
                    page.clone()
                } else {
                    folder.join(file).display().to_string()
                };
                let exists = root().join(&path).exists();
                if !exists || !heading.is_empty() && !headings(&path).contains(heading) {
                    wrong.push(format!("{page}: {target}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A name of six words or more, with underscores, is that of a test.
#[test]
fn every_test_and_make_target_that_a_page_names_exists() {
    let folders = ["shared", "services", "e2e"];
    // Of all sources, tests included.
    let paths = folders.into_iter().flat_map(|folder| files(folder, &[".rs", ".java"]));
    // The tutorial has the words that `make service` puts into the template.
    let template = files("e2e/template", &[".rs"]).into_iter();
    let template = template.map(|path| read(&path).replace("purchase", "order"));
    let code: String = paths.map(|path| read(&path)).chain(template).collect();
    let makefile = read("Makefile");
    let mut wrong = Vec::new();
    for page in pages() {
        for line in prose(&page) {
            for name in quoted(&line) {
                let is_test = name.matches('_').count() >= 5
                    && name
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                if is_test
                    && !code.contains(&format!("fn {name}("))
                    && !code.contains(&format!("void {name}("))
                    && !code.contains(&format!("\"{name}\""))
                {
                    wrong.push(format!("{page}: {name}"));
                }
                let target = name.strip_prefix("make ").and_then(|rest| rest.split(' ').next());
                if let Some(target) = target
                    && target.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                    && !makefile.contains(&format!("\n{target}:"))
                {
                    wrong.push(format!("{page}: make {target}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A page of a decision that was superseded may name files that are gone.
#[test]
fn every_file_that_a_page_names_exists() {
    let folders = ["shared/", "services/", "e2e/", "k8s/", "schemas/", "docs/"];
    let mut wrong = Vec::new();
    for page in pages().into_iter().filter(|page| !read(page).contains("Superseded by")) {
        for line in prose(&page) {
            let paths = quoted(&line).filter(|path| {
                folders.iter().any(|folder| path.starts_with(folder))
                    && !path.contains([' ', '<', '*', '…'])
            });
            let missing = paths.filter(|path| !root().join(path).exists());
            wrong.extend(missing.map(|path| format!("{page}: {path}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_map_names_every_folder_of_the_chassis() {
    let map = read("docs/architecture.md");
    let folder = |path: &str| Some(path.split_once("/src/")?.1.split_once('/')?.0.to_string());
    let sources = CHASSIS.into_iter().flat_map(sources);
    let folders: BTreeSet<String> = sources.filter_map(|it| folder(&it.path)).collect();
    let missing: Vec<_> = folders.iter().filter(|it| !map.contains(&format!("`{it}"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_index_of_the_decisions_lists_every_record() {
    let index = read("docs/decisions/README.md");
    let is_listed = |page: &String| match page.strip_prefix("docs/decisions/") {
        None | Some("README.md") => true,
        Some(record) => index.contains(&format!("]({record})")),
    };
    let missing: Vec<String> = pages().into_iter().filter(|page| !is_listed(page)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
