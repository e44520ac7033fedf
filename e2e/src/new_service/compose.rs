//! What docker compose has of a service that `docker-compose.yml` does not name: files that are merged over the two that
//! are written by hand. Such a service has the containers of stock under its own name, and the ports of its position.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::new_service::names::{COPIED, read_file};

/// Each file, and the one that is merged over it. Compose finds the first of these by itself.
const FILES: [(&str, &str); 2] = [
    ("docker-compose.yml", "docker-compose.override.yml"),
    ("docker-compose.secure.yml", "docker-compose.secure.override.yml"),
];

const HEADER: &str =
    "# `make schema` writes this file, from services/list.rs and the containers of stock in";

/// The position of the copied service in the list.
const COPIED_POSITION: usize = 3;

/// A service without containers of its own, and its position in the list.
type Further = (String, usize);

/// A file, and its text if there is a further service.
type OverrideFile = (PathBuf, Option<String>);

/// Writes the files that are merged over the others; without a further service there are none.
pub fn write(files: &[OverrideFile]) -> Result<()> {
    for (file, text) in files {
        match text {
            Some(text) => fs::write(file, text)?,
            None if is_generated(file) => fs::remove_file(file)?,
            None => {}
        }
    }
    Ok(())
}

/// The files that are merged over the others.
///
/// # Errors
/// If a file exists that this program did not generate.
pub fn files(root: &Path, services: &[String]) -> Result<Vec<OverrideFile>> {
    let read = |file: &str| -> Result<Value> {
        serde_saphyr::from_str(&read_file(&root.join(file))?).with_context(|| file.to_string())
    };
    let named = read(FILES[0].0)?["services"].as_object().cloned().unwrap_or_default();
    let positions = services.iter().cloned().zip(1..);
    let further: Vec<Further> = positions.filter(|(name, _)| !named.contains_key(name)).collect();
    let file = |(file, over): &(&str, &str)| {
        let path = root.join(over);
        ensure!(
            further.is_empty() || !path.exists() || is_generated(&path),
            "{over} is not generated: rename it, and merge it yourself"
        );
        let text = format!("{HEADER} {file}.\n{:#}\n", merged_over(&read(file)?, &further));
        Ok((path, (!further.is_empty()).then_some(text)))
    };
    FILES.iter().map(file).collect()
}

fn is_generated(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.starts_with(HEADER))
}

/// What a file needs for further services.
fn merged_over(file: &Value, further: &[Further]) -> Value {
    let mut over = json!({"services": {}, "volumes": {}});
    let entries = |part: &str| file[part].as_object().into_iter().flatten();
    for part in ["services", "volumes"] {
        for (key, value) in entries(part).filter(|(key, _)| key.split('-').any(|it| it == COPIED)) {
            for service in further {
                over[part][renamed_text(key, service)] = renamed(value, service);
            }
        }
    }
    for (key, container) in entries("services").filter(|(key, _)| !key.starts_with(COPIED)) {
        let (addresses, volumes) = (addresses(container, further), volumes(container, further));
        if !addresses.is_empty() {
            over["services"][key]["environment"] = addresses.into();
        }
        if !volumes.is_empty() {
            over["services"][key]["volumes"] = volumes.into();
        }
    }
    over
}

/// The lists of addresses of all services in the environment of a container, such as that of the control room.
fn addresses(container: &Value, further: &[Further]) -> Map<String, Value> {
    let variables = container["environment"].as_object().into_iter().flatten();
    let lists = variables.filter_map(|(name, value)| {
        let list = value.as_str()?;
        let copied = list.split(',').find(|it| it.starts_with(&format!("{COPIED}=")))?;
        let all = further.iter().map(|service| renamed_text(copied, service));
        let all: Vec<String> = std::iter::once(list.to_string()).chain(all).collect();
        Some((name.clone(), all.join(",").into()))
    });
    lists.collect()
}

/// The volumes of all services in one container, such as the one that distributes the secrets. Compose appends them.
fn volumes(container: &Value, further: &[Further]) -> Vec<Value> {
    let volumes = container["volumes"].as_array().into_iter().flatten();
    let copied = volumes.filter(|it| it.as_str().is_some_and(|it| it.contains("-stock")));
    copied.flat_map(|it| further.iter().map(|service| renamed(it, service))).collect()
}

/// A container or volume of stock as that of another service.
fn renamed(value: &Value, service: &Further) -> Value {
    let text = renamed_text(&value.to_string(), service);
    let mut value: Value = serde_json::from_str(&text).unwrap_or_default();
    // Compose reads an octal number in the file, and the parser here a decimal one.
    let configs = value.get_mut("configs").and_then(Value::as_array_mut);
    for config in configs.into_iter().flatten() {
        config["mode"] = 0o444.into();
    }
    value
}

fn renamed_text(text: &str, (name, position): &Further) -> String {
    let text = text.replace(COPIED, name).replace("STOCK", &name.to_uppercase());
    [8000, 9000, 9010, 54320].iter().fold(text, |text, base| {
        text.replace(
            &format!(":-{}}}", base + COPIED_POSITION),
            &format!(":-{}}}", base + position),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack_description::{SERVICES, checkout};

    #[test]
    fn the_files_of_docker_compose_have_every_service_of_the_list() {
        for (file, text) in files(&checkout(), &SERVICES.map(String::from)).unwrap() {
            let written = fs::read_to_string(&file).ok().filter(|_| is_generated(&file));
            assert_eq!(written, text, "{}: `make schema` writes it", file.display());
        }
        assert!(
            HEADER.starts_with(launcher::GENERATED_OVERRIDE),
            "the launcher merges these files"
        );
        let copied = SERVICES.iter().position(|service| *service == COPIED);
        assert_eq!(copied.map(|it| it + 1), Some(COPIED_POSITION));
    }

    fn with_two_further() -> [Value; 2] {
        let further = ["zebra", "emu"].map(String::from);
        let services: Vec<String> = SERVICES.map(String::from).into_iter().chain(further).collect();
        let files = files(&checkout(), &services).unwrap();
        let text = |nth: usize| files[nth].1.clone().unwrap();
        [0, 1].map(|nth| serde_saphyr::from_str(&text(nth)).unwrap())
    }

    #[test]
    fn docker_compose_starts_each_further_service_on_its_own_ports() {
        let [over, _] = with_two_further();
        let services = &over["services"];
        for (name, nth) in [("zebra", SERVICES.len() + 1), ("emu", SERVICES.len() + 2)] {
            let upper = name.to_uppercase();
            assert_eq!(services[name]["build"]["args"]["SERVICE"], name);
            let ports = services[format!("{name}-ports")]["ports"].to_string();
            assert!(
                ports.contains(&format!("{upper}_ADMIN_PORT:-{}}}:9091", 9010 + nth)),
                "{ports}"
            );
            let database = &services[format!("{name}-db")];
            let port = format!("127.0.0.1:${{{upper}_DB_PORT:-{}}}:5432", 54320 + nth);
            assert_eq!(database["ports"], json!([port]));
            assert_eq!(database["configs"][0]["mode"], 0o444);
            let migrations = services[format!("{name}-migrations")]["environment"].to_string();
            assert!(migrations.contains(&format!("postgres://{name}_migrator:")), "{migrations}");
            assert!(over["volumes"].as_object().unwrap().contains_key(&format!("{name}-db")));
            let urls = services["console"]["environment"]["ADMIN_URLS"].as_str().unwrap();
            assert!(urls.contains(&format!(",{name}=http://{name}:9091")), "{urls}");
        }
        assert!(!services.as_object().unwrap().keys().any(|key| key.starts_with(COPIED)));
    }

    #[test]
    fn the_secured_compose_gives_each_container_of_it_its_own_secrets() {
        let [_, over] = with_two_further();
        let services = &over["services"];
        for name in ["zebra", "emu"] {
            for container in [name.to_string(), format!("{name}-migrations"), format!("{name}-db")]
            {
                let mounted = json!([format!("secrets-{container}:/etc/holdfast:ro")]);
                assert_eq!(services[&container]["volumes"], mounted);
                let volume = format!("secrets-{container}:/containers/{container}");
                let distributed = services["secrets"]["volumes"].as_array().unwrap();
                assert!(distributed.contains(&volume.into()), "{container}: {distributed:?}");
                let volume = format!("secrets-{container}");
                assert!(over["volumes"].as_object().unwrap().contains_key(&volume));
            }
            assert_eq!(services[name]["environment"]["KAFKA_SASL_USERNAME"], name);
            let urls = services["console"]["environment"]["API_URLS"].as_str().unwrap();
            assert!(urls.contains(&format!(",{name}=https://{name}:8080")), "{urls}");
        }
    }
}
