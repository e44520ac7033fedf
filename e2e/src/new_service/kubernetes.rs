//! What Kubernetes has of a new service: the files of stock under its name, and its name in the files that list services.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::new_service::names::{ANOTHER_MEANING, COPIED};
use crate::new_service::template::{Change, TemplateFile, read_folder};

const FOLDER: &str = "k8s";

/// The files that list the services, and why they change. Docker compose mounts the last one.
const LISTS: [(&str, &str); 6] = [
    ("k8s/base/kustomization.yaml", "every cluster has it"),
    ("k8s/overlays/demo/kustomization.yaml", "the demo has its database"),
    ("k8s/overlays/production/kustomization.yaml", "production has it"),
    ("k8s/monitoring/rules.yaml", "an alert misses it"),
    ("k8s/monitoring/prometheus.yml", "Prometheus scrapes it in docker compose"),
    ("k8s/monitoring/compose-configs.yaml", "docker compose has a copy of both"),
];

/// Further such files, for a service that publishes events.
const PUBLISHERS: [(&str, &str); 3] = [
    ("k8s/components/cdc/kustomization.yaml", "a connector may carry its outbox"),
    ("k8s/components/cdc/network.yaml", "the connector reaches its database"),
    ("k8s/components/cdc/worker.yaml", "the connector has its passwords"),
];

/// The files that a new service adds, and those that it changes. Without the folder there are none.
///
/// # Errors
/// If a file exists that it would add.
pub fn files(
    root: &Path,
    services: &[String],
    name: &str,
    publishes: bool,
) -> Result<(Vec<TemplateFile>, Vec<Change>)> {
    let mut files = Vec::new();
    if root.join(FOLDER).exists() {
        read_folder(&root.join(FOLDER), &format!("{FOLDER}/"), &mut files)?;
    }
    files.sort();
    let is_copied = |path: &str| path.split(['/', '-', '.']).any(|part| part == COPIED);
    let renamed = |text: &String| text.replace(COPIED, name);
    let copied = files.iter().filter(|(path, _)| is_copied(path));
    let created: Vec<_> = copied.map(|(path, text)| (renamed(path), renamed(text))).collect();
    let is_taken = created.iter().any(|(path, _)| root.join(path).exists());
    ensure!(!is_taken, "`{name}` {ANOTHER_MEANING}");
    let changed = files.iter().filter_map(|(path, text)| {
        let further = PUBLISHERS.iter().filter(|_| publishes);
        let (_, reason) = LISTS.iter().chain(further).find(|(list, _)| list == path)?;
        Some((path.clone(), with_service(text, services, name), *reason))
    });
    Ok((created, changed.collect()))
}

/// A list with one more service: each line of stock a second time, and in a line of several services one more element.
fn with_service(text: &str, services: &[String], name: &str) -> String {
    let ends = [' ', ',', '[', ']', '\n'];
    let with_element = |line: &str| {
        let Some(place) = line.find(COPIED) else { return line.to_string() };
        let start = line[..place].rfind(ends).map_or(0, |it| it + 1);
        let end = line[start..].find(ends).map_or(line.len(), |it| start + it);
        let element = |service: &str| line[start..end].replace(COPIED, service);
        // Before the first element may stand the name of a variable.
        let mut others = line.split(ends).filter(|it| !it.contains(COPIED));
        let is_one = |it: &str| services.iter().any(|other| it.ends_with(&element(other)));
        if !others.any(is_one) {
            return format!("{line}{}", line.replace(COPIED, name));
        }
        let separator = &line[line[..start].trim_end_matches([' ', ',']).len()..start];
        let is_there = |it: &String| line.split(ends).any(|element| element == it);
        let last = services.iter().rev().map(|it| element(it)).find(is_there).unwrap_or_default();
        let last = format!("{separator}{last}");
        let at = line.rfind(&last).map_or(end, |it| it + last.len());
        format!("{}{separator}{}{}", &line[..at], element(name), &line[at..])
    };
    text.split_inclusive('\n').map(with_element).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack_description::{SERVICES, checkout};

    #[test]
    fn a_list_has_one_more_service_in_each_of_its_forms() {
        let services = SERVICES.map(String::from);
        let further: Vec<String> = services.iter().cloned().chain(["a2".to_string()]).collect();
        let written = with_service("names: [order, stock, a2], port\n", &further, "emu");
        assert_eq!(written, "names: [order, stock, a2, emu], port\n");
        for (line, expected) in [
            ("  - stock.yaml\n", "  - stock.yaml\n  - emu.yaml\n"),
            ("URLS=order=http://order,stock=http://stock\n", "stock=http://stock,emu=http://emu\n"),
            ("names: [order, stock], type: A\n", "names: [order, stock, emu], type: A\n"),
            ("[\"order-db:1\", \"stock-db:1\"]\n", ", \"stock-db:1\", \"emu-db:1\"]\n"),
            ("for image in order stock console\n", " stock emu console\n"),
            ("or absent(it=\"stock\")\n", "or absent(it=\"stock\")\nor absent(it=\"emu\")\n"),
        ] {
            let written = with_service(line, &services, "emu");
            assert!(written.ends_with(expected), "{written}");
        }
        assert_eq!(with_service("  - order.yaml\n", &services, "emu"), "  - order.yaml\n");
    }

    #[test]
    fn a_name_that_a_file_of_the_folder_has_is_refused() {
        let refused = files(&checkout(), &[], "network", false).unwrap_err().to_string();
        assert!(refused.contains("already has another meaning"), "{refused}");
    }

    #[test]
    fn a_new_service_has_the_files_of_stock_and_a_place_in_every_list() {
        let services = SERVICES.map(String::from);
        let (created, changed) = files(&checkout(), &services, "emu", true).unwrap();
        let folders = ["base/emu.yaml", "demo/emu-db/", "production/emu/database.yaml"];
        for folder in folders {
            assert!(created.iter().any(|(path, _)| path.contains(folder)), "{folder}: {created:?}");
        }
        assert!(created.iter().all(|(_, text)| text.contains("emu") && !text.contains(COPIED)));
        assert_eq!(changed.len(), LISTS.len() + PUBLISHERS.len());
        for (path, text, _) in changed {
            let has = |service: &str| text.matches(service).count();
            assert!(has("emu") > 0, "{path}");
            assert_eq!(has("emu"), has(COPIED), "{path}");
        }
    }
}
