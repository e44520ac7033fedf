//! A service of your own: `make service NAME=shipping` writes `services/shipping`.
//!
//! What every service has alike is copied from `services/stock` at that moment, so that no second
//! copy can rot; what has to be smaller is in `e2e/template`, a service called shipping. The name is
//! put into it, and into the five files outside its folder that have to know it. Nothing is written
//! before all of it is known to fit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Of a service of the template's own, by the name of the file that it becomes.
const OWN: [(&str, &str); 8] = [
    ("src/main.rs", include_str!("../template/main.rs")),
    ("src/shipping.rs", include_str!("../template/aggregate.rs")),
    ("src/saga.rs", include_str!("../template/saga.rs")),
    ("src/api.rs", include_str!("../template/api.rs")),
    ("src/tests.rs", include_str!("../template/tests.rs")),
    ("migrations/2_shipping.sql", include_str!("../template/tables.sql")),
    ("outage.rs", include_str!("../template/outage.rs")),
    ("openapi.json", include_str!("../template/openapi.json")),
];

/// What stock lends as it stands, beside the chassis's migrations.
const COPIED: [&str; 2] = ["Cargo.toml", "build.rs"];

const SUBSCRIBES_TO: &str = "orders.confirmed";

const LETTERS_MAX: usize = 30;

/// What Rust, SQL or the stack means something else by. Names of crates and of modules beside the
/// service's own are looked up.
const TAKEN: [&str; 66] = [
    "abstract",
    "alloc",
    "api",
    "as",
    "async",
    "await",
    "become",
    "bin",
    "box",
    "break",
    "const",
    "continue",
    "contracts",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "java",
    "kafka",
    "let",
    "loop",
    "macro",
    "main",
    "match",
    "mod",
    "move",
    "mut",
    "none",
    "override",
    "postgres",
    "priv",
    "public",
    "pub",
    "ref",
    "registry",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "template0",
    "template1",
    "test",
    "tests",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "use",
    "where",
    "while",
    "yield",
];

/// What was written: in the service's folder, and beside it with the reason.
pub struct Made {
    pub inside: Vec<PathBuf>,
    pub outside: Vec<(PathBuf, String)>,
}

/// Writes a service into this checkout, and says what was written and what is next.
pub fn run(name: &str) -> Result<()> {
    let root = checkout()?;
    let made = make(&root, name)?;
    let shown = |path: &Path| path.strip_prefix(&root).unwrap_or(path).display().to_string();
    println!("services/{name} is there:");
    made.inside.iter().for_each(|path| println!("  {}", shown(path)));
    println!("changed outside of it:");
    made.outside.iter().for_each(|(path, why)| println!("  {:<28} {why}", shown(path)));
    println!("next: `make test`, or `make up` and then `make kill SERVICE={name}`");
    Ok(())
}

/// The checkout that this program was built from.
pub fn checkout() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("e2e lies in a checkout")?;
    Ok(root.to_path_buf())
}

/// Writes a service into the checkout at `root`.
pub fn make(root: &Path, name: &str) -> Result<Made> {
    refuse_name(root, name)?;
    refuse_dirt(root)?;
    let folder = root.join("services").join(name);
    let own = OWN.map(|(file, text)| (folder.join(named(file, name)), named(text, name)));
    let stock = root.join("services/stock");
    let copied = COPIED.map(|file| -> Result<_> {
        let text = read(&stock.join(file))?;
        Ok((folder.join(file), text.replace("name = \"stock\"", &format!("name = \"{name}\""))))
    });
    let mut copied = copied.into_iter().collect::<Result<Vec<_>>>()?;
    for (file, text) in messaging(&stock)? {
        copied.push((folder.join("migrations").join(file), text));
    }
    let edited = [
        ("shared/events/src/orders.rs", format!("{name} hears {SUBSCRIBES_TO}"), subscribe as Edit),
        ("e2e/src/topology.rs", "the native stack starts it".to_string(), start),
        (
            "docker-compose.yml",
            "and so does docker compose, on the same ports".to_string(),
            compose,
        ),
        ("e2e/tests/main.rs", "its outage test runs with the others".to_string(), include),
        ("Cargo.lock", "the workspace has a member more".to_string(), lock),
    ];
    let edited = edited.map(|(file, why, edit)| -> Result<_> {
        let path = root.join(file);
        let text = edit(&read(&path)?, name).with_context(|| {
            format!("{file} is not as the template knows it, so nothing was changed")
        })?;
        Ok((path, why, text))
    });
    let edited = edited.into_iter().collect::<Result<Vec<_>>>()?;

    let mut made = Made { inside: Vec::new(), outside: Vec::new() };
    for (path, text) in copied.into_iter().chain(own) {
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        fs::write(&path, text)?;
        made.inside.push(path);
    }
    for (path, why, text) in edited {
        fs::write(&path, text)?;
        made.outside.push((path, why));
    }
    // How long a line gets, and what is sorted before it, depends on the name.
    let formatted = made.inside.iter().chain(made.outside.iter().map(|(path, _)| path));
    format(root, formatted.filter(|path| !path.ends_with("lib.rs") && !path.ends_with("main.rs")));
    Ok(made)
}

/// Of the migrations of a service in its folder those that are the chassis's, by their files' names and in
/// the order in which they are applied.
pub fn messaging(service: &Path) -> Result<Vec<(String, String)>> {
    let folder = service.join("migrations");
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with("_messaging.sql") {
            let text = read(&folder.join(&name))?;
            found.push((name, text));
        }
    }
    ensure!(!found.is_empty(), "{} has no *_messaging.sql", folder.display());
    found.sort_by_key(|(name, _)| name.split('_').next().and_then(|it| it.parse::<i64>().ok()));
    Ok(found)
}

/// How a section of docker-compose.yml begins, that of stock, and that which follows the services'.
const COMPOSE_SECTION: &str =
    "  # ---------------------------------------------------------------- ";
const COMPOSE_STOCK: &str =
    "  # ---------------------------------------------------------------- stock: ";
const COMPOSE_SHARED: &str =
    "  # ---------------------------------------------------------------- what they share";

type Edit = fn(&str, &str) -> Option<String>;

fn named(text: &str, name: &str) -> String {
    text.replace("shipping", name)
}

fn refuse_name(root: &Path, name: &str) -> Result<()> {
    let is_word = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.len() <= LETTERS_MAX;
    ensure!(
        is_word,
        "`{name}` cannot be a service's name: one word of lower-case letters and digits, at most {LETTERS_MAX}"
    );
    let folder = root.join("services").join(name);
    ensure!(!folder.exists(), "there is a service {name} already, in {}", folder.display());
    let is_crate = read(&root.join("Cargo.lock"))?.contains(&format!("\nname = \"{name}\"\n"));
    let is_module = read(&root.join("e2e/tests/main.rs"))?.contains(&format!("mod {name};"));
    let means_something = TAKEN.contains(&name) || is_crate || is_module;
    ensure!(!means_something, "`{name}` means something else here already: choose another name");
    Ok(())
}

/// What is made here is to be seen, and taken back, by itself.
fn refuse_dirt(root: &Path) -> Result<()> {
    if !root.join(".git").exists() {
        return Ok(());
    }
    let status = Command::new("git").args(["status", "--porcelain"]).current_dir(root).output()?;
    let changed = String::from_utf8_lossy(&status.stdout);
    if let Some(first) = changed.lines().next() {
        bail!(
            "there are changes that are not committed, {} for one: commit or stash them first, so \
             that what is written now stands alone (and `git stash -u` takes it back)",
            first.get(3..).unwrap_or_default()
        );
    }
    Ok(())
}

/// Adds a subscriber to the topic's declaration.
fn subscribe(text: &str, name: &str) -> Option<String> {
    let topic = text.find(&format!("\"{SUBSCRIBES_TO}\","))?;
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

/// Adds it to the services that the stack starts.
fn start(text: &str, name: &str) -> Option<String> {
    let begin = text.find("pub const SERVICES: [&str; ")?;
    let (count, rest) = text[begin..].split_once("[&str; ")?.1.split_once(']')?;
    let members = rest.split_once('[')?.1.split_once(']')?.0;
    let count: usize = count.parse().ok()?;
    let members = members.trim().trim_end_matches(',');
    let line = format!("pub const SERVICES: [&str; {}] = [{members}, \"{name}\"]", count + 1);
    let end = begin + text[begin..].find("];")? + 1;
    Some(format!("{}{line}{}", &text[..begin], &text[end..]))
}

/// Adds what stock has there, under its name and at the ports of its place.
fn compose(text: &str, name: &str) -> Option<String> {
    let nth = text.matches("-migrations:\n").count() + 1;
    let from = text.find(COMPOSE_STOCK)?;
    let end = from + 1 + text[from + 1..].find(COMPOSE_SECTION)?;
    let volume = text.rfind("  stock-db:\n")? + "  stock-db:\n".len();
    let mut own = text[from..end].replace("stock", name).replace("STOCK", &name.to_uppercase());
    let (_, rest) = own.split_once('\n')?;
    own = format!("{COMPOSE_SECTION}{name}\n{rest}");
    for port in [8000, 9000, 9010, 54320] {
        own = own.replace(&format!(":-{}}}", port + 3), &format!(":-{}}}", port + nth));
    }
    let shared = text.find(COMPOSE_SHARED)?;
    let (services, rest) = text[..volume].split_at(shared);
    Some(format!("{services}{own}{rest}  {name}-db:\n{}", &text[volume..]))
}

/// Adds its outage test to those of the stack.
fn include(text: &str, name: &str) -> Option<String> {
    let last = text.lines().rfind(|line| line.starts_with("mod "))?;
    let own = format!("{last}\n#[path = \"../../services/{name}/outage.rs\"]\nmod {name};");
    Some(text.replacen(last, &own, 1))
}

/// A checkout without rustfmt is left a little untidy, and nothing else.
fn format<'a>(root: &Path, files: impl Iterator<Item = &'a PathBuf>) {
    let files = files.filter(|file| file.extension().is_some_and(|it| it == "rs"));
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--edition", "2024"]).args(files).current_dir(root);
    let _ = rustfmt.output();
}

/// Enters it into Cargo.lock beside the service whose dependencies it copied, and where cargo would:
/// cargo itself would want an index or a network.
fn lock(text: &str, name: &str) -> Option<String> {
    let mut packages: Vec<String> = text.split("\n\n").map(|it| it.trim_end().into()).collect();
    let stock = packages.iter().find(|package| is_package(package, "stock"))?;
    let own = stock.replace("\nname = \"stock\"\n", &format!("\nname = \"{name}\"\n"));
    let is_behind = |package: &String| package_name(package).is_some_and(|other| other > name);
    let place = packages.iter().position(is_behind).unwrap_or(packages.len());
    packages.insert(place, own);
    Some(packages.join("\n\n") + "\n")
}

fn package_name(package: &str) -> Option<&str> {
    package.split_once("[[package]]\nname = \"")?.1.split('"').next()
}

fn is_package(package: &str, name: &str) -> bool {
    package_name(package) == Some(name)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_joins_those_that_are_there() {
        let text = "T::new(\n    \"orders.confirmed\",\n    \"order\",\n    &[],\n    X)";
        let once = subscribe(text, "shipping").unwrap();
        assert!(once.contains("&[\"shipping\"],"), "{once}");
        let twice = subscribe(&once, "mail").unwrap();
        assert!(twice.contains("&[\"shipping\", \"mail\"],"), "{twice}");
        assert_eq!(subscribe("nothing of the kind", "mail"), None);
    }

    #[test]
    fn the_stack_and_the_tests_take_one_more_after_another() {
        let stack = "pub const SERVICES: [&str; 2] = [\"a\", \"b\"];\nx[1];";
        let twice = start(&start(stack, "shipping").unwrap(), "mail").unwrap();
        assert_eq!(
            twice,
            "pub const SERVICES: [&str; 4] = [\"a\", \"b\", \"shipping\", \"mail\"];\nx[1];"
        );
        let tests = "mod a;\nmod b;\n\nuse a::b;\n";
        let twice = include(&include(tests, "shipping").unwrap(), "mail").unwrap();
        assert!(twice.contains("mod b;\n#[path"), "{twice}");
        assert!(
            twice.contains(
                "mod shipping;\n#[path = \"../../services/mail/outage.rs\"]\nmod mail;\n"
            )
        );
    }

    #[test]
    fn docker_compose_takes_one_more_after_another() {
        let text = read(&checkout().unwrap().join("docker-compose.yml")).unwrap();
        let before = text.matches("-migrations:\n").count();
        let once = compose(&text, "zebra").unwrap();
        let twice = compose(&once, "emu").unwrap();
        for (name, nth) in [("zebra", before + 1), ("emu", before + 2)] {
            for line in [
                format!("\n  {name}:\n    <<: *service\n"),
                format!("args: {{ SERVICE: {name} }}"),
                format!("{}_OPERATOR_PORT:-{}}}:9091\n", name.to_uppercase(), 9010 + nth),
                format!("{}_DB_PORT:-{}}}:5432", name.to_uppercase(), 54320 + nth),
                format!("postgres://{name}_migrator:"),
                format!("\n  {name}-db:\n"),
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
    fn the_lock_has_it_where_cargo_would_have_it() {
        let package = |name: &str| format!("[[package]]\nname = \"{name}\"\nversion = \"1\"\n");
        let text = |names: &[&str]| {
            let packages: Vec<String> = names.iter().map(|name| package(name)).collect();
            format!("# By cargo.\nversion = 4\n\n{}", packages.join("\n"))
        };
        let before = text(&["a", "stock", "sync"]);
        assert_eq!(lock(&before, "b").unwrap(), text(&["a", "b", "stock", "sync"]));
        assert_eq!(lock(&before, "zoo").unwrap(), text(&["a", "stock", "sync", "zoo"]));
    }

    #[test]
    fn the_migrations_of_the_chassis_come_in_the_order_of_their_numbers() {
        let service = std::env::temp_dir().join(format!("messaging-{}", std::process::id()));
        let folder = service.join("migrations");
        fs::create_dir_all(&folder).unwrap();
        assert!(messaging(&service).is_err());
        for name in ["10_messaging.sql", "9_messaging.sql", "2_stock.sql", "11_messaging.rs"] {
            fs::write(folder.join(name), name).unwrap();
        }
        let found = messaging(&service).unwrap();
        fs::remove_dir_all(&service).unwrap();
        let wanted = ["9_messaging.sql", "10_messaging.sql"].map(|it| (it.into(), it.into()));
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_name_that_is_no_word_or_means_something_else_is_refused_in_a_sentence() {
        let root = checkout().unwrap();
        for name in ["", "Shipping", "cold storage", "cold_storage", "7up", "é", &"x".repeat(31)] {
            let refused = refuse_name(&root, name).unwrap_err().to_string();
            assert!(refused.contains("one word of lower-case letters"), "{refused}");
        }
        for name in
            ["match", "kafka", "registry", "chassis", "events", "tokio", "saga", "std", "tests"]
        {
            let refused = refuse_name(&root, name).unwrap_err().to_string();
            assert!(refused.contains("means something else"), "{name}: {refused}");
        }
        let refused = refuse_name(&root, "stock").unwrap_err().to_string();
        assert!(refused.contains("there is a service stock already"), "{refused}");
        refuse_name(&root, "a2").unwrap();
    }
}
