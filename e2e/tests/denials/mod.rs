//! The matrix of rights: each identity attempts each act on each resource of a secured stack. What it may do follows
//! from the declarations. What it could do is compared with that, and with a golden file, in which a review sees each
//! change of a right.

pub mod databases;
mod kafka;
mod kafka_attempts;
mod registry;
mod surplus;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

/// One line of the golden file: an identity and a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cells {
    identity: String,
    resource: String,
}

impl Display for Cells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<17} {:<33}", self.identity, self.resource)
    }
}

fn cells(identity: &str, kind: &str, name: &str) -> Cells {
    Cells { identity: identity.to_string(), resource: format!("{kind} {name}") }
}

/// The letters of the acts that are allowed, by identity and resource.
type Matrix = BTreeMap<Cells, BTreeSet<char>>;

/// The letters as one word; `-` if there are none.
fn word(letters: Option<&BTreeSet<char>>) -> String {
    match letters {
        None => "absent".to_string(),
        Some(letters) if letters.is_empty() => "-".to_string(),
        Some(letters) => letters.iter().collect(),
    }
}

/// Compares what was observed with what the declarations say, and with the golden file of this folder.
/// `REWRITE_DENIALS=1` rewrites the file. Its first lines, which begin with `#`, explain the letters.
fn compare(observed: &Matrix, expected: &Matrix, golden: &str) -> Result<()> {
    let differences = |of: &Matrix, source: &str| -> Vec<String> {
        let all = of.keys().chain(observed.keys().filter(|cells| !of.contains_key(cells)));
        let lines = all.filter(|cells| of.get(cells) != observed.get(cells)).map(|cells| {
            let [may, could] = [of, observed].map(|it| word(it.get(cells)));
            format!("{cells} {source} `{may}`, observed `{could}`")
        });
        lines.collect()
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/denials").join(golden);
    let text = fs::read_to_string(&file)?;
    let (comments, lines): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with('#'));
    let mut wrong = differences(expected, "declared");
    if std::env::var("REWRITE_DENIALS").is_ok() {
        let comments = comments.into_iter().map(|line| format!("{line}\n"));
        let lines =
            observed.iter().map(|(cells, letters)| format!("{cells} {}\n", word(Some(letters))));
        fs::write(&file, comments.chain(lines).collect::<String>())?;
    } else {
        wrong.extend(differences(&read(&lines), golden));
    }
    ensure!(wrong.is_empty(), "{} lines differ:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// An identity, a resource, whose kind and name are two words, and letters.
fn read(lines: &[&str]) -> Matrix {
    let cells = lines.iter().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (letters, resource) = words[1..].split_last().unwrap_or((&"", &[]));
        let identity = words[0].to_string();
        let letters = letters.chars().filter(|letter| *letter != '-').collect();
        (Cells { identity, resource: resource.join(" ") }, letters)
    });
    cells.collect()
}
