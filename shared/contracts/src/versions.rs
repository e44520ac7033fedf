//! Every version of every schema that was ever recorded, `schemas/versions/<topic>.<n>.<mark>.avsc`.
//!
//! Records are kept for weeks and services are deployed one by one, so a schema must be readable
//! for every program with any version of it, in both directions. The registry refuses an
//! incompatible schema only when contracts are applied; with these files a test refuses it
//! before. The mark is the beginning of the text's fingerprint: a version that is edited later no
//! longer matches its name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use apache_avro::Schema;
use chassis::event::avro::fingerprint;

use crate::compatibility::conflicts;

const RECORD_HINT: &str = "`contracts record` records it";

/// A recorded version.
struct Version {
    number: u32,
    file: PathBuf,
    text: String,
}

/// The violations in the schemas of `folder`, as sentences.
pub fn violations(folder: &Path) -> Result<Vec<String>> {
    let (current, past) = (current_schemas(folder)?, recorded_versions(folder)?);
    let mut violations = Vec::new();
    for (topic, versions) in &past {
        if !current.contains_key(topic) {
            violations.push(format!("{topic} has recorded versions but no schema any more"));
        }
        for (version, nth) in versions.iter().zip(1..) {
            let name = version.file.display();
            if version.number != nth {
                violations
                    .push(format!("{topic}: version {nth} is missing, or exists twice ({name})"));
            }
            if version_path(folder, topic, version.number, &version.text)? != version.file {
                violations.push(format!(
                    "{name} was changed after it was recorded: a recorded version never changes"
                ));
            }
        }
    }
    for (topic, text) in &current {
        let versions = past.get(topic).map_or(&[][..], Vec::as_slice);
        let now = parse_schema(topic, text)?;
        for version in versions {
            let was = parse_schema(topic, &version.text)?;
            let found = conflicts(&format!("version {}", version.number), &was, &now);
            violations.extend(found.into_iter().map(|conflict| format!("{topic}: {conflict}")));
        }
        if !is_recorded(text, versions)? {
            violations.push(match versions.last() {
                None => format!("{topic} has no recorded version yet: {RECORD_HINT} as version 1"),
                Some(last) => format!(
                    "{topic} differs from its version {}: {RECORD_HINT} as version {}",
                    last.number,
                    last.number + 1
                ),
            });
        }
    }
    Ok(violations)
}

/// Records each schema of a folder that differs from its newest version, in `versions` below it. Returns the created
/// files.
///
/// # Errors
/// If a recorded version was changed or is missing, or if a schema and a version cannot read each other. Then nothing
/// is recorded.
pub fn record_versions(folder: &Path) -> Result<Vec<PathBuf>> {
    let violations = violations(folder)?;
    let wrong: Vec<String> =
        violations.into_iter().filter(|violation| !violation.contains(RECORD_HINT)).collect();
    ensure!(wrong.is_empty(), "nothing was recorded:\n  {}", wrong.join("\n  "));
    let past = recorded_versions(folder)?;
    let mut made = Vec::new();
    for (topic, text) in current_schemas(folder)? {
        let versions = past.get(&topic).map_or(&[][..], Vec::as_slice);
        if !is_recorded(&text, versions)? {
            let file = version_path(folder, &topic, versions.len() as u32 + 1, &text)?;
            fs::create_dir_all(folder.join("versions"))?;
            fs::write(&file, text)?;
            made.push(file);
        }
    }
    Ok(made)
}

fn is_recorded(text: &str, versions: &[Version]) -> Result<bool> {
    let last = versions.last().map(|last| fingerprint(&last.text)).transpose()?;
    Ok(last == Some(fingerprint(text)?))
}

/// Each topic with its schema.
fn current_schemas(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut current = BTreeMap::new();
    for file in schema_files(folder)? {
        let topic = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        current.insert(topic, fs::read_to_string(&file)?);
    }
    Ok(current)
}

/// Each topic with its recorded versions, oldest first.
fn recorded_versions(folder: &Path) -> Result<BTreeMap<String, Vec<Version>>> {
    let mut past: BTreeMap<String, Vec<Version>> = BTreeMap::new();
    let folder = folder.join("versions");
    for file in if folder.exists() { schema_files(&folder)? } else { Vec::new() } {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut parts = name.rsplitn(3, '.').skip(1);
        let (number, topic) = (parts.next(), parts.next());
        let number = number.and_then(|number| number.parse().ok());
        let (Some(number), Some(topic)) = (number, topic) else {
            anyhow::bail!("{} is not named <topic>.<n>.<mark>.avsc", file.display());
        };
        let text = fs::read_to_string(&file)?;
        past.entry(topic.to_string()).or_default().push(Version { number, file, text });
    }
    past.values_mut().for_each(|versions| versions.sort_by_key(|version| version.number));
    Ok(past)
}

fn schema_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    let files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(files.into_iter().filter(|file| file.extension().is_some_and(|it| it == "avsc")).collect())
}

fn version_path(folder: &Path, topic: &str, number: u32, text: &str) -> Result<PathBuf> {
    let mark: String =
        fingerprint(text)?.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Ok(folder.join("versions").join(format!("{topic}.{number}.{mark}.avsc")))
}

fn parse_schema(topic: &str, text: &str) -> Result<Schema> {
    Schema::parse_str(text).with_context(|| format!("a schema of {topic} is no valid Avro"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of schemas for one test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = format!("holdfast-schemas-{}-{name}", std::process::id());
            let folder = Folder(std::env::temp_dir().join(folder));
            fs::create_dir_all(&folder.0).unwrap();
            folder
        }

        /// Makes this the current schema of `shop.sold`: these fields.
        fn put(&self, fields: &str) {
            let schema = format!(r#"{{"type": "record", "name": "Sold", "fields": [{fields}]}}"#);
            fs::write(self.0.join("shop.sold.avsc"), schema).unwrap();
        }

        fn versions(&self) -> Vec<PathBuf> {
            let mut files = schema_files(&self.0.join("versions")).unwrap();
            files.sort();
            files
        }

        fn violations(&self) -> String {
            violations(&self.0).unwrap().join("; ")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const PAID: &str = r#"{"name": "paid", "type": "long"}"#;
    const TIP: &str = r#"{"name": "tip", "type": "long", "default": 0}"#;

    #[test]
    fn a_new_schema_is_recorded_once_and_an_unrecorded_one_is_a_violation_with_a_hint() {
        let folder = Folder::new("recorded");
        folder.put(PAID);
        assert_eq!(
            folder.violations(),
            "shop.sold has no recorded version yet: `contracts record` records it as version 1"
        );
        assert_eq!(record_versions(&folder.0).unwrap().len(), 1);
        assert_eq!(
            (folder.violations().as_str(), record_versions(&folder.0).unwrap().len()),
            ("", 0)
        );
        folder.put(&format!("{PAID}, {TIP}"));
        assert_eq!(
            folder.violations(),
            "shop.sold differs from its version 1: `contracts record` records it as version 2"
        );
        record_versions(&folder.0).unwrap();
        assert_eq!((folder.violations().as_str(), folder.versions().len()), ("", 2));
    }

    #[test]
    fn an_incompatible_schema_is_checked_against_every_version_and_never_recorded() {
        let folder = Folder::new("incompatible");
        // Each version is compatible with its predecessor; the third is incompatible with the
        // first.
        for fields in [PAID.to_string(), format!("{PAID}, {TIP}")] {
            folder.put(&fields);
            record_versions(&folder.0).unwrap();
        }
        folder.put(&format!("{PAID}, {}", r#"{"name": "tip", "type": "long"}"#));
        let refused = record_versions(&folder.0).unwrap_err().to_string();
        let why = "shop.sold: `tip` is new and has no default: it is missing in what was written \
                   with version 1";
        assert!(refused.contains(why) && !refused.contains("version 2:"), "{refused}");
        assert!(folder.violations().contains(why));
        assert_eq!(folder.versions().len(), 2);
    }

    #[test]
    fn a_recorded_version_that_is_edited_renumbered_or_lost_is_a_violation() {
        let folder = Folder::new("edited");
        for fields in [PAID.to_string(), format!("{PAID}, {TIP}")] {
            folder.put(&fields);
            record_versions(&folder.0).unwrap();
        }
        let first = &folder.versions()[0];
        let text = fs::read_to_string(first).unwrap();
        fs::write(first, text.replace("Sold\",", "Sold\", \n\"doc\": \"Sold.\",")).unwrap();
        assert!(
            folder.violations().contains("was changed after it was recorded"),
            "{}",
            folder.violations()
        );
        fs::write(first, text.replace(", \"name\"", ",\n  \"name\"")).unwrap();
        assert_eq!(folder.violations(), "", "white space is no change");
        let elsewhere = first
            .with_file_name(first.file_name().unwrap().to_str().unwrap().replace(".1.", ".3."));
        fs::rename(first, &elsewhere).unwrap();
        assert!(folder.violations().contains("version 1 is missing"), "{}", folder.violations());
        fs::remove_file(elsewhere).unwrap();
        assert!(folder.violations().contains("version 1 is missing"), "{}", folder.violations());
        fs::remove_file(folder.0.join("shop.sold.avsc")).unwrap();
        assert!(folder.violations().contains("no schema any more"), "{}", folder.violations());
    }
}
