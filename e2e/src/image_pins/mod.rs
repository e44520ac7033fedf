//! `make pin` writes the digest behind the tag of every image that is pulled: a tag can be moved to another image, and a
//! digest cannot. The digests come from the registries of the images, so the command needs docker and a way to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::stack_description::checkout;

#[cfg(test)]
mod tests;

/// Where images are named: files, and folders of YAML files.
const PLACES: [&str; 7] = [
    "docker-compose.yml",
    "services/Dockerfile",
    "services/insights/Dockerfile",
    "services/connect/Dockerfile",
    "k8s",
    "e2e/repository_template/docker-compose.yml",
    "e2e/repository_template/Dockerfile",
];

/// The words before the name of an image, in YAML and in a Dockerfile.
const KEYS: [&str; 3] = ["image:", "imageName:", "FROM"];

/// Images whose versions have two numbers; all others have three.
const TWO_NUMBERS: [&str; 3] = ["postgres", "postgresql", "debian"];

/// Writes the digests into all files, or into none if one of the images is not found.
pub fn run() -> Result<()> {
    let texts = files()?;
    let mut digests = BTreeMap::new();
    let images = texts.iter().flat_map(|(_, text)| pulled_images(text));
    let tagged: BTreeSet<String> = images.map(|image| without_digest(&image).to_string()).collect();
    for image in tagged {
        let digest = ask_registry(&image)?;
        println!("{image} is {digest}");
        digests.insert(image, digest);
    }
    for (file, text) in texts {
        let written = with_digests(&text, &digests);
        if written != text {
            fs::write(checkout().join(&file), written).with_context(|| file.clone())?;
        }
    }
    Ok(())
}

/// The text of every file that may name an image, by its path in the checkout.
pub fn files() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut open: Vec<String> = PLACES.map(str::to_string).into();
    while let Some(place) = open.pop() {
        let path = checkout().join(&place);
        if path.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| place.clone())? {
                open.push(format!("{place}/{}", entry?.file_name().to_string_lossy()));
            }
        } else if PLACES.contains(&&*place)
            || Path::new(&place).extension() == Some("yaml".as_ref())
        {
            let text = fs::read_to_string(&path).with_context(|| place.clone())?;
            found.push((place, text));
        }
    }
    Ok(found)
}

/// Every image that a text names and that a machine would pull. Our own images are built where they run, by the tag
/// `local` or a variable, and a stage of a Dockerfile is no image.
pub fn pulled_images(text: &str) -> Vec<String> {
    let mut stages = Vec::new();
    let mut images = Vec::new();
    for line in text.lines() {
        let Some(image) = named_image(line) else { continue };
        if !stages.contains(&image) && !is_own(image) {
            images.push(image.to_string());
        }
        if let Some((_, stage)) = line.split_once(" AS ") {
            stages.push(stage.trim());
        }
    }
    images
}

/// Whether a tag names one version for good: all its numbers, and none of `latest`, `17` or `trixie`.
pub fn is_exact(image: &str) -> bool {
    let (name, tag) = split_tag(without_digest(image));
    let version = tag.strip_prefix('v').unwrap_or(tag).split('-').next().unwrap_or_default();
    let last_word = name.rsplit('/').next().unwrap_or_default();
    let wanted = if TWO_NUMBERS.contains(&last_word) { 2 } else { 3 };
    let is_number = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    version.split('.').all(is_number) && version.split('.').count() >= wanted
}

/// The version that an image's name ends with, without its digest.
pub fn tag(image: &str) -> &str {
    split_tag(without_digest(image)).1
}

/// The text with the digest behind each image that has one.
fn with_digests(text: &str, digests: &BTreeMap<String, String>) -> String {
    let pinned = |line: &str| match named_image(line) {
        Some(image) => match digests.get(without_digest(image)) {
            Some(digest) => line.replacen(image, &format!("{}@{digest}", without_digest(image)), 1),
            None => line.to_string(),
        },
        None => line.to_string(),
    };
    text.split_inclusive('\n').map(pinned).collect()
}

/// The image that a line of YAML or of a Dockerfile names.
fn named_image(line: &str) -> Option<&str> {
    let line = line.trim_start().trim_start_matches("- ");
    let rest = KEYS.iter().find_map(|key| line.strip_prefix(key))?;
    let word = rest.strip_prefix(' ')?.split_whitespace().next()?;
    Some(word.trim_matches('"'))
}

fn is_own(image: &str) -> bool {
    let (name, tag) = split_tag(image);
    tag == "local" || name.contains("${") || tag.starts_with("${")
}

fn without_digest(image: &str) -> &str {
    image.split('@').next().unwrap_or(image)
}

/// The name and the tag; a colon before the last slash is that of a port.
fn split_tag(image: &str) -> (&str, &str) {
    let name_starts = image.rfind('/').map_or(0, |slash| slash + 1);
    match image[name_starts..].split_once(':') {
        Some((name, tag)) => (&image[..name_starts + name.len()], tag),
        None => (image, ""),
    }
}

fn ask_registry(image: &str) -> Result<String> {
    let arguments = ["buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", image];
    let output = Command::new("docker").args(arguments).output().context("docker, with buildx")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the registry of {image} gave no digest: {}", error.trim());
    let digest = String::from_utf8(output.stdout)?.trim().to_string();
    ensure!(digest.starts_with("sha256:") && digest.len() == 71, "{image} has `{digest}`");
    Ok(digest)
}
