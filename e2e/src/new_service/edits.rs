//! The edits of the seven files outside a service's folder that must contain its name. Each returns
//! `None` if the file does not have the expected form.

use std::path::{Path, PathBuf};
use std::process::Command;

pub const SUBSCRIBED_TOPIC: &str = "orders.confirmed";

/// The beginning of a section of docker-compose.yml, of the one of stock, and of the one after
/// those of the services.
const COMPOSE_SECTION: &str =
    "  # ---------------------------------------------------------------- ";
const COMPOSE_STOCK: &str =
    "  # ---------------------------------------------------------------- stock: ";
const COMPOSE_SHARED: &str =
    "  # ---------------------------------------------------------------- what they share";

/// The dependencies of stock that the template does not use.
pub const UNUSED_DEPENDENCIES: [&str; 4] = ["clap", "futures", "percent-encoding", "proptest"];

pub type Edit = fn(&str, &str) -> Option<String>;

pub fn with_name(text: &str, name: &str) -> String {
    text.replace("shipping", name)
}

/// Adds a subscriber to the topic's declaration.
pub fn add_subscriber(text: &str, name: &str) -> Option<String> {
    let topic = text.find(&format!("\"{SUBSCRIBED_TOPIC}\","))?;
    let list = topic + text[topic..].find("&[")? + 2;
    let end = list + text[list..].find(']')?;
    let mut subscribers: Vec<String> = text[list..end]
        .split(',')
        .map(|subscriber| subscriber.trim().to_string())
        .filter(|subscriber| !subscriber.is_empty())
        .collect();
    subscribers.push(format!("\"{name}\""));
    Some(format!("{}{}{}", &text[..list], subscribers.join(", "), &text[end..]))
}

/// Adds it to the crates of the workspace that the profile of the tests compiles in seconds.
pub fn add_to_profile(text: &str, name: &str) -> Option<String> {
    let line = "\nstock = { opt-level = 0 }\n";
    text.contains(line)
        .then(|| text.replacen(line, &format!("{line}{name} = {{ opt-level = 0 }}\n"), 1))
}

/// Adds it to the services of the stack.
pub fn add_to_stack(text: &str, name: &str) -> Option<String> {
    let begin = text.find("pub const SERVICES: [&str; ")?;
    let (count, rest) = text[begin..].split_once("[&str; ")?.1.split_once(']')?;
    let members = rest.split_once('[')?.1.split_once(']')?.0;
    let count: usize = count.parse().ok()?;
    let members = members.trim().trim_end_matches(',');
    let line = format!("pub const SERVICES: [&str; {}] = [{members}, \"{name}\"]", count + 1);
    let end = begin + text[begin..].find("];")? + 1;
    Some(format!("{}{line}{}", &text[..begin], &text[end..]))
}

/// Adds a copy of the section of stock, with its name and the ports of its position.
pub fn add_to_compose(text: &str, name: &str) -> Option<String> {
    let nth = text.matches("-migrations:\n").count() + 1;
    let volume = text.rfind("  stock-db:\n")? + "  stock-db:\n".len();
    let mut own = copy_section(text, name)?;
    for port in [8000, 9000, 9010, 54320] {
        own = own.replace(&format!(":-{}}}", port + 3), &format!(":-{}}}", port + nth));
    }
    let shared = text.find(COMPOSE_SHARED)?;
    let (services, rest) = text[..volume].split_at(shared);
    let text = format!("{services}{own}{rest}  {name}-db:\n{}", &text[volume..]);
    Some(add_to_console(&text, name))
}

/// The same for the secured stack, where each container has a volume with its secrets.
pub fn add_to_secured_compose(text: &str, name: &str) -> Option<String> {
    let own = copy_section(text, name)?;
    let with_volumes = |line: &str| match line.contains("secrets-stock") {
        true if !line.contains("/etc/") => line.to_string() + &line.replace("stock", name),
        _ => line.to_string(),
    };
    let text: String = text.split_inclusive('\n').map(with_volumes).collect();
    let (services, rest) = text.split_at(text.find(COMPOSE_SHARED)?);
    Some(add_to_console(&format!("{services}{own}{rest}"), name))
}

/// The section of stock with another name.
fn copy_section(text: &str, name: &str) -> Option<String> {
    let from = text.find(COMPOSE_STOCK)?;
    let end = from + 1 + text[from + 1..].find(COMPOSE_SECTION)?;
    let own = text[from..end].replace("stock", name).replace("STOCK", &name.to_uppercase());
    let (_, rest) = own.split_once('\n')?;
    Some(format!("{COMPOSE_SECTION}{name}\n{rest}"))
}

/// Gives the control room its addresses, and its admin port the name by which the control room reaches it.
fn add_to_console(text: &str, name: &str) -> String {
    let with_name = |line: &str| match line.trim_start().split(": ").next() {
        Some("API_URLS" | "ADMIN_URLS" | "PROBE_URLS") => {
            let (_, port) = line.rsplit_once(':').unwrap_or_default();
            let scheme = if line.contains("=https://") { "https" } else { "http" };
            format!("{line},{name}={scheme}://{name}:{port}\n")
        }
        Some("ADMIN_HOSTS") => format!("{line},{name}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(with_name).collect()
}

/// Adds its outage test to the tests of the stack.
pub fn add_test_module(text: &str, name: &str) -> Option<String> {
    let last = text.lines().rfind(|line| line.starts_with("mod "))?;
    let own = format!("{last}\n#[path = \"../../services/{name}/outage.rs\"]\nmod {name};");
    Some(text.replacen(last, &own, 1))
}

/// Without rustfmt the files stay unformatted.
pub fn run_rustfmt<'a>(root: &Path, files: impl Iterator<Item = &'a PathBuf>) {
    let files = files.filter(|file| file.extension().is_some_and(|it| it == "rs"));
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--edition", "2024"]).args(files).current_dir(root);
    let _ = rustfmt.output();
}

/// Adds it to Cargo.lock, at the place where cargo would. Cargo itself would need an index or a
/// network.
pub fn add_to_lockfile(text: &str, name: &str) -> Option<String> {
    let mut packages: Vec<String> = text.split("\n\n").map(|it| it.trim_end().into()).collect();
    let stock = packages.iter().find(|package| is_package(package, "stock"))?;
    let own = without_unused(stock);
    let own = own.replace("\nname = \"stock\"\n", &format!("\nname = \"{name}\"\n"));
    let is_behind = |package: &String| package_name(package).is_some_and(|other| other > name);
    let place = packages.iter().position(is_behind).unwrap_or(packages.len());
    packages.insert(place, own);
    Some(packages.join("\n\n") + "\n")
}

/// A manifest, or a package of Cargo.lock, without the dependencies that the template does not use.
pub fn without_unused(text: &str) -> String {
    let is_unused = |line: &&str| {
        let name = line.trim_start_matches([' ', '"']);
        UNUSED_DEPENDENCIES.iter().any(|unused| {
            let end = name.strip_prefix(unused);
            end.is_some_and(|end| end.starts_with(".workspace") || end.starts_with("\","))
        })
    };
    text.split_inclusive('\n').filter(|line| !is_unused(line)).collect()
}

fn package_name(package: &str) -> Option<&str> {
    package.split_once("[[package]]\nname = \"")?.1.split('"').next()
}

fn is_package(package: &str, name: &str) -> bool {
    package_name(package) == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::new_service::names::read_file;
    use crate::stack_description::checkout;

    #[test]
    fn a_subscriber_joins_those_that_are_there() {
        let text = "T::new(\n    \"orders.confirmed\",\n    \"order\",\n    &[],\n    X)";
        let once = add_subscriber(text, "shipping").unwrap();
        assert!(once.contains("&[\"shipping\"],"), "{once}");
        let twice = add_subscriber(&once, "mail").unwrap();
        assert!(twice.contains("&[\"shipping\", \"mail\"],"), "{twice}");
        assert_eq!(add_subscriber("nothing of the kind", "mail"), None);
    }

    #[test]
    fn the_stack_and_the_tests_take_one_more_after_another() {
        let stack = "pub const SERVICES: [&str; 2] = [\"a\", \"b\"];\nx[1];";
        let twice = add_to_stack(&add_to_stack(stack, "shipping").unwrap(), "mail").unwrap();
        assert_eq!(
            twice,
            "pub const SERVICES: [&str; 4] = [\"a\", \"b\", \"shipping\", \"mail\"];\nx[1];"
        );
        let tests = "mod a;\nmod b;\n\nuse a::b;\n";
        let twice = add_test_module(&add_test_module(tests, "shipping").unwrap(), "mail").unwrap();
        assert!(twice.contains("mod b;\n#[path"), "{twice}");
        assert!(
            twice.contains(
                "mod shipping;\n#[path = \"../../services/mail/outage.rs\"]\nmod mail;\n"
            )
        );
    }

    #[test]
    fn docker_compose_takes_one_more_after_another() {
        let text = read_file(&checkout().join("docker-compose.yml")).unwrap();
        let before = text.matches("-migrations:\n").count();
        let once = add_to_compose(&text, "zebra").unwrap();
        let twice = add_to_compose(&once, "emu").unwrap();
        for (name, nth) in [("zebra", before + 1), ("emu", before + 2)] {
            for line in [
                format!("\n  {name}:\n    <<: *service\n"),
                format!("args: {{ SERVICE: {name} }}"),
                format!("{}_ADMIN_PORT:-{}}}:9091\n", name.to_uppercase(), 9010 + nth),
                format!("{}_DB_PORT:-{}}}:5432", name.to_uppercase(), 54320 + nth),
                format!("postgres://{name}_migrator:"),
                format!("\n  {name}-db:\n"),
                format!(",{name}=http://{name}:9091"),
            ] {
                assert!(twice.contains(&line), "{line}\n{twice}");
            }
            assert_eq!(twice.matches(&format!("\n  {name}-db:\n")).count(), 2, "and its volume");
        }
        let shared = twice.find(COMPOSE_SHARED).unwrap();
        assert!(twice.find("\n  emu-db:\n").unwrap() < shared);
        assert_eq!(twice.matches("stock").count(), text.matches("stock").count());
    }

    #[test]
    fn the_secured_compose_gives_each_container_of_it_a_volume_of_its_own() {
        let text = read_file(&checkout().join("docker-compose.secure.yml")).unwrap();
        let twice = add_to_secured_compose(&text, "zebra").unwrap();
        let twice = add_to_secured_compose(&twice, "emu").unwrap();
        for name in ["zebra", "emu"] {
            for container in [name.to_string(), format!("{name}-migrations"), format!("{name}-db")]
            {
                for line in [
                    format!("\n      - secrets-{container}:/containers/{container}\n"),
                    format!("\n  secrets-{container}:\n"),
                    format!("volumes: [\"secrets-{container}:/etc/holdfast:ro\"]"),
                ] {
                    assert_eq!(twice.matches(&line).count(), 1, "{line}\n{twice}");
                }
            }
            let line = format!("KAFKA_SASL_USERNAME: {name} }}");
            assert_eq!(twice.matches(&line).count(), 2, "{line}\n{twice}");
            assert!(twice.contains(&format!(",{name}=https://{name}:9091")), "{twice}");
        }
        assert_eq!(twice.matches("stock").count(), text.matches("stock").count());
    }

    #[test]
    fn the_lock_has_it_where_cargo_would_have_it() {
        let package = |name: &str| format!("[[package]]\nname = \"{name}\"\nversion = \"1\"\n");
        let text = |names: &[&str]| {
            let packages: Vec<String> = names.iter().map(|name| package(name)).collect();
            format!("# By cargo.\nversion = 4\n\n{}", packages.join("\n"))
        };
        let before = text(&["a", "stock", "sync"]);
        assert_eq!(add_to_lockfile(&before, "b").unwrap(), text(&["a", "b", "stock", "sync"]));
        assert_eq!(add_to_lockfile(&before, "zoo").unwrap(), text(&["a", "stock", "sync", "zoo"]));
    }
}
