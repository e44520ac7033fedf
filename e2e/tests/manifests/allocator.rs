//! The allocator of the services: the sizes of its pages, and that it clears memory.

use launcher::directories::programs_directory;

use super::*;

/// The stage of a Dockerfile that each line belongs to, and its base stage.
fn stages(dockerfile: &str) -> Vec<(String, String, String)> {
    let (mut name, mut from) = (String::new(), String::new());
    let mut lines = Vec::new();
    for line in dockerfile.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first() == Some(&"FROM") {
            from = words[1].to_string();
            name = words.get(3).copied().unwrap_or_default().to_string();
        }
        lines.push((name.clone(), from.clone(), line.to_string()));
    }
    lines
}

/// jemalloc aborts at the start if pages are larger than those that it was compiled for.
#[test]
fn one_image_for_arm64_starts_on_pages_of_every_size() {
    let lines = stages(&read("services/Dockerfile"));
    let set = "ENV AARCH64_UNKNOWN_LINUX_GNU_JEMALLOC_SYS_WITH_LG_PAGE=16";
    let (stage, ..) = lines.iter().find(|(_, _, line)| line == set).expect(set);
    let compiles = lines.iter().filter(|(_, _, line)| {
        line.contains("cargo build") || line.contains("cargo auditable build")
    });
    let mut count = 0;
    for (name, ..) in compiles {
        let mut at = name;
        while at != stage {
            let from = lines.iter().find(|(name, ..)| name == at).map(|(_, from, _)| from);
            at = from.unwrap_or_else(|| panic!("{name} compiles without {set}"));
        }
        count += 1;
    }
    assert_eq!(count, 2, "the dependencies, and our own code");
}

/// librdkafka reads memory that nothing was written to (docs/decisions/0044). jemalloc prints its options when the
/// program ends.
#[test]
fn every_service_has_an_allocator_that_clears_memory() {
    for program in SERVICES.into_iter().chain(["console"]) {
        let mut command = Command::new(programs_directory().unwrap().join(program));
        let output = command.arg("--help").env("MALLOC_CONF", "stats_print:true").output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}: run `make build`"));
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(
            printed.contains("opt.zero: true"),
            "{program} was compiled without .cargo/config.toml: {printed}"
        );
    }
}

/// Cargo compiles the dependencies of an image with these settings as well.
#[test]
fn the_settings_of_cargo_reach_every_image_that_is_compiled() {
    let settings = read(".cargo/config.toml");
    let of_template = read("e2e/repository_template/cargo_config.toml");
    let variable = "JEMALLOC_SYS_WITH_MALLOC_CONF = \"zero:true\"";
    assert!(settings.contains(variable) && of_template.contains(variable));
    assert!(read(".dockerignore").lines().any(|line| line == "!.cargo"));
    let deletes: Vec<String> = read("services/Dockerfile")
        .lines()
        .filter(|line| line.contains("-delete"))
        .map(String::from)
        .collect();
    assert!(deletes.iter().all(|line| line.contains("! -path './.cargo/*'")), "{deletes:?}");
    assert_eq!(deletes.len(), 1);
}
