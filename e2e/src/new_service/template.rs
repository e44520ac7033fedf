//! The template: the files that `make service` and `make new` write.
//!
//! Both write `e2e/template`, a service called shop that records every confirmed purchase. Each adds the files of a
//! folder that only it has, and puts its own words in place of these.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::stack_description::checkout;

pub const SERVICE: &str = "e2e/template";

/// Files that git, cargo or docker would obey in the template's own folder, and their names.
const RENAMED: [(&str, &str); 5] = [
    ("cargo_config.toml", ".cargo/config.toml"),
    ("ci.yml", ".github/workflows/ci.yml"),
    ("dockerignore", ".dockerignore"),
    ("gitignore", ".gitignore"),
    ("rustfmt.toml", ".rustfmt.toml"),
];

/// A file: its path from where it is written, and its text.
pub type TemplateFile = (String, String);

/// A file that changes: its path, its text and the reason.
pub type Change = (String, String, &'static str);

/// The files of the service and of the folder `own`, with other words for those of the template.
pub fn read(own: &str, words: &[(&str, &str)]) -> Result<Vec<TemplateFile>> {
    let mut files = Vec::new();
    for folder in [SERVICE, own] {
        read_folder(&checkout().join(folder), "", &mut files)?;
    }
    files.sort();
    let replace = |text: String| words.iter().fold(text, |text, (from, to)| text.replace(from, to));
    Ok(files.into_iter().map(|(path, text)| (replace(path), replace(text))).collect())
}

/// Adds the files of a folder, each with this before its path.
pub fn read_folder(folder: &Path, prefix: &str, files: &mut Vec<TemplateFile>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            read_folder(&path, &format!("{prefix}{name}/"), files)?;
            continue;
        }
        let renamed = RENAMED.iter().find(|(from, _)| *from == name).map_or(&*name, |(_, to)| to);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        files.push((format!("{prefix}{renamed}"), text));
    }
    Ok(())
}

/// The text with one more element at the end of a list.
pub fn append(text: &str, place: &str, bracket: char, element: &str) -> Option<String> {
    let from = text.find(place)? + place.len();
    let to = from + text[from..].find(bracket)?;
    let earlier = text[from..to].trim().trim_end_matches(',');
    let separator = if earlier.is_empty() { "" } else { ", " };
    Some(format!("{}{earlier}{separator}{element}{}", &text[..from], &text[to..]))
}

pub fn unknown_form(file: &str) -> String {
    format!("{file} has no place for the new service: nothing was changed")
}

/// A service cannot have the name of one of its own modules.
pub fn check_modules(name: &str, files: &[TemplateFile]) -> Result<()> {
    let is_module = |(path, _): &TemplateFile| {
        Path::new(path).with_extension("").iter().any(|part| part == name)
    };
    ensure!(
        !files.iter().any(is_module),
        "`{name}` already has another meaning in a new service: choose another name"
    );
    Ok(())
}

/// Writes the files below a directory, and formats them. Returns their paths.
pub fn write(directory: &Path, files: &[TemplateFile]) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for (path, text) in files {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        written.push(path);
    }
    // The length of a line depends on the name. Without rustfmt the files stay as they are.
    let sources = written.iter().filter(|path| path.extension().is_some_and(|it| it == "rs"));
    let mut rustfmt = Command::new("rustfmt");
    let _ = rustfmt.args(["--edition", "2024"]).args(sources).current_dir(directory).output();
    Ok(written)
}
