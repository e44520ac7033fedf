//! What is fetched from elsewhere has an exact version: images, and the actions of the workflows.

use e2e::image_pins::{files, is_exact, pulled_images};

use super::*;

#[test]
fn every_image_that_is_pulled_has_an_exact_version() {
    let mut found = 0;
    for (file, text) in files().unwrap() {
        for image in pulled_images(&text) {
            assert!(is_exact(&image), "{file}: the tag of {image} may be moved to another version");
            found += 1;
        }
    }
    assert!(found >= 18, "only {found} images were found");
}

/// The owner of an action can move its tag, and the workflows would run the new code with their rights.
#[test]
fn every_action_is_pinned_by_a_commit_and_says_its_version() {
    let mut workflows = vec!["e2e/repository_template/ci.yml".to_string()];
    for entry in std::fs::read_dir(path(".github/workflows")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        workflows.push(format!(".github/workflows/{name}"));
    }
    let mut found = 0;
    for workflow in workflows {
        let text = read(&workflow);
        for (_, action) in text.lines().filter_map(|line| line.split_once("uses: ")) {
            let (_, pin) = action.split_once('@').unwrap_or_default();
            let (commit, version) = pin.split_once(" # v").unwrap_or_default();
            let is_commit = commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit());
            let is_version = version.split('.').count() == 3;
            assert!(is_commit && is_version, "{workflow}: {action}");
            found += 1;
        }
        // A job gets the rights that it names, and no workflow all of them.
        assert!(text.contains("\npermissions:"), "{workflow}");
        assert!(!text.contains("write-all"), "{workflow}");
    }
    assert!(found >= 8, "only {found} actions were found");
}

/// The code of a dependency runs while it is compiled.
#[test]
fn no_job_that_compiles_has_a_right_to_write() {
    let mut compiling = 0;
    for entry in std::fs::read_dir(path(".github/workflows")).unwrap() {
        let workflow = format!(".github/workflows/{}", entry.unwrap().file_name().display());
        let parsed = file(&workflow).remove(0);
        for (job, definition) in parsed["jobs"].as_object().unwrap() {
            let runs = |step: &Value| {
                let script = step["run"].as_str().unwrap_or_default();
                ["cargo", "make ", "docker build"].iter().any(|word| script.contains(word))
            };
            if list(&definition["steps"]).iter().any(runs) {
                compiling += 1;
                let rights = definition.get("permissions").unwrap_or(&parsed["permissions"]);
                assert!(!rights.to_string().contains("write"), "{workflow}: {job} has {rights}");
            }
        }
    }
    assert!(compiling >= 3, "only {compiling} jobs compile");
}
