//! Versions are exact, and files agree on versions, scripts, the retention of offsets and the allocator.

use chassis::event::Retention;
use e2e::image_pins::{files, is_exact, pulled_images, tag};
use events::saga_topics;

use super::*;
use crate::structure;

#[test]
fn every_image_has_an_exact_version_and_each_dependency_the_same_wherever_it_runs() {
    let pom = read("e2e/launcher/pom.xml");
    let natively = |part: &str| {
        let (_, rest) = pom.split_once(&format!("<{part}.version>")).unwrap();
        rest.split('<').next().unwrap()
    };
    let (kafka, registry) = (natively("kafka"), natively("registry"));
    // `17.11.0` is 17.11 of Postgres.
    let (postgres, _) = natively("postgres").rsplit_once('.').unwrap();
    let mut found = Violations::default();
    let (mut images, mut compared) = (0, BTreeSet::new());
    for (file, text) in files().unwrap() {
        for image in pulled_images(&text) {
            // A tag may be moved to another version.
            found.check(&file, format!("{image} has an exact version"), is_exact(&image));
            images += 1;
            let name = image.split(':').next().unwrap();
            let expected = match name {
                "apache/kafka" | "quay.io/strimzi/kafka" => kafka,
                "apicurio/apicurio-registry" => registry,
                "postgres" | "ghcr.io/cloudnative-pg/postgresql" => postgres,
                _ => continue,
            };
            // `1.2.0-kafka-4.3.1` is that of an operator, and `17.11-system-trixie` that of a system.
            let version = tag(&image).rsplit("-kafka-").next().unwrap();
            found.equal(&file, version.split('-').next(), Some(expected));
            compared.insert(name.to_string());
        }
    }
    assert!(images >= 18 && compared.len() == 5, "only {images} images, and {compared:?}");
    for object in OVERLAYS.iter().flat_map(|(_, objects)| objects) {
        let place = match text(&object["kind"]) {
            "Kafka" => &object["spec"]["kafka"],
            "KafkaConnect" => &object["spec"],
            _ => continue,
        };
        found.fields(name(object), place, &json!({"version": kafka}));
    }
    // What the plugins of the worker are compiled for.
    found.equal("Kafka Connect", natively("connect"), kafka);
    let compiled = format!("<kafka.version>{kafka}</kafka.version>");
    let file = "services/reporting/pom.xml";
    found.check(file, &compiled, read(file).contains(&compiled));
}

/// The owner of an action can move its tag, and the workflows would run the new code with their rights. The code of a
/// dependency runs while it is compiled.
#[test]
fn every_action_is_pinned_by_a_commit_and_no_job_that_compiles_may_write() {
    let mut workflows = structure::files(".github/workflows", &[".yml"]);
    workflows.push("e2e/repository_template/ci.yml".to_string());
    let mut found = Violations::default();
    let (mut actions, mut compiling) = (0, 0);
    for workflow in workflows {
        let written = read(&workflow);
        for (_, action) in written.lines().filter_map(|line| line.split_once("uses: ")) {
            let (_, pin) = action.split_once('@').unwrap_or_default();
            let (commit, version) = pin.split_once(" # v").unwrap_or_default();
            let is_commit = commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit());
            let is_version = version.split('.').count() == 3;
            found.check(&workflow, action, is_commit && is_version);
            actions += 1;
        }
        let parsed = objects(&written, &workflow).remove(0);
        // A job gets the rights that it names, and no workflow all of them.
        let rights = &parsed["permissions"];
        found.check(&workflow, "rights", !rights.is_null() && !written.contains("write-all"));
        for (job, definition) in fields(&parsed["jobs"]) {
            let runs = |step: &Value| {
                let words = ["cargo", "make ", "docker build"];
                words.iter().any(|word| text(&step["run"]).contains(word))
            };
            if list(&definition["steps"]).iter().any(runs) {
                compiling += 1;
                let rights = definition.get("permissions").unwrap_or(rights).to_string();
                found.check(&workflow, format!("{job} has {rights}"), !rights.contains("write"));
            }
        }
    }
    assert!(actions >= 8 && compiling >= 3, "only {actions} actions and {compiling} jobs");
}

#[test]
fn every_stack_has_the_same_files() {
    let configs = &compose()["configs"];
    for (name, file) in [("roles", "roles.sh"), ("jaeger", "jaeger/config.yaml")] {
        // In compose, a doubled dollar sign stands for one.
        let content = read(&format!("k8s/overlays/demo/{file}")).replace('$', "$$");
        assert_eq!(text(&configs[name]["content"]), content, "{name}");
    }
    let reports = ["services/reporting", "k8s/components/reporting"];
    let [tables, copy] = reports.map(|folder| read(&format!("{folder}/database.sql")));
    assert_eq!(tables, copy);
}

/// What a superuser takes from the role that serves, and what no database logs: the values of rows.
#[test]
fn every_postgres_has_the_settings_of_the_others() {
    let terse = "log_error_verbosity=terse";
    let roles = "k8s/overlays/demo/roles.sh";
    let mut found = Violations::default();
    for (file, part) in [
        ("e2e/launcher/src/components/postgres.rs", terse),
        ("docker-compose.yml", terse),
        ("k8s/overlays/demo/postgres/postgres.yaml", terse),
        ("e2e/repository_template/docker-compose.yml", terse),
        (roles, "connection limit 190"),
        (roles, "set temp_file_limit"),
        (roles, "revoke execute on function"),
    ] {
        found.check(file, part, read(file).contains(part));
    }
    let demo = file("k8s/overlays/demo/postgres/postgres.yaml");
    let container = &find(&demo, "StatefulSet", "db")["spec"]["template"]["spec"]["containers"][0];
    let data = text(&named(&container["env"], "PGDATA")["value"]);
    let mount = text(&named(&container["volumeMounts"], "data")["mountPath"]);
    let is_kept = !mount.is_empty() && std::path::Path::new(data).starts_with(mount);
    found.check("the demo overlay", "the data is in its volume", is_kept);
}

/// A group whose offsets expire before the records of its topics reads them again from the
/// beginning.
#[test]
fn offsets_are_kept_equally_long_by_every_broker_and_longer_than_any_topic() {
    let topics_days = saga_topics().iter().filter_map(|topic| match topic.retention {
        Retention::Days(days) => Some(days),
        Retention::Compact => None,
    });
    let files = [
        "e2e/launcher/src/components/kafka.rs",
        "docker-compose.yml",
        "k8s/overlays/demo/kafka.yaml",
        "k8s/overlays/production/kafka.yaml",
    ];
    let kept = files.map(|file| {
        let text = read(file).to_lowercase().replace('_', ".");
        let (_, set) = text.split_once("offsets.retention.minutes").expect(file);
        let digits = set.split(|c: char| !c.is_ascii_digit()).find(|it| !it.is_empty());
        digits.and_then(|it| it.parse::<u32>().ok()).expect(file)
    });
    assert!(kept.iter().all(|minutes| *minutes == kept[0]), "{kept:?}");
    assert!(kept[0] > topics_days.max().unwrap() * 24 * 60, "{kept:?}");
    // The inbox still contains everything that a stopped group reads again from its last offset on.
    assert!(u64::from(kept[0]) * 60 < chassis::inbox::RETENTION.as_secs(), "{kept:?}");
}

/// jemalloc aborts at the start on larger pages than it was compiled for. A stage has the variables of its base.
#[test]
fn one_image_for_arm64_starts_on_pages_of_every_size() {
    let dockerfile = read("services/Dockerfile");
    let (mut prepared, mut compiles) = (BTreeSet::new(), 0);
    for stage in dockerfile.split("\nFROM ").skip(1) {
        let head = stage.lines().next().and_then(|head| head.split_once(" AS "));
        let (from, own) = head.unwrap_or_default();
        let set = "\nENV AARCH64_UNKNOWN_LINUX_GNU_JEMALLOC_SYS_WITH_LG_PAGE=16\n";
        if prepared.contains(from) || stage.contains(set) {
            prepared.insert(own);
        }
        if stage.contains("cargo build") || stage.contains("cargo auditable build") {
            assert!(prepared.contains(own), "{own} compiles without the size of pages");
            compiles += 1;
        }
    }
    assert_eq!(compiles, 2, "the dependencies, and our own code");
}

/// librdkafka reads memory that nothing was written to (docs/decisions/0044). jemalloc prints its options when the
/// program ends. Cargo compiles the dependencies of an image with these settings as well.
#[test]
fn every_service_has_an_allocator_that_clears_memory() {
    for program in SERVICES.into_iter().chain(["console"]) {
        let mut command = command(program);
        let output = command.arg("--help").env("MALLOC_CONF", "stats_print:true").output().unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        let is_cleared = printed.contains("opt.zero: true");
        assert!(is_cleared, "{program} was compiled without .cargo/config.toml: {printed}");
    }
    let of_template = read("e2e/repository_template/cargo_config.toml");
    assert!(of_template.contains("JEMALLOC_SYS_WITH_MALLOC_CONF = \"zero:true\""));
    assert!(read(".dockerignore").lines().any(|line| line == "!.cargo"));
    let dockerfile = read("services/Dockerfile");
    let deletes: Vec<&str> = dockerfile.lines().filter(|line| line.contains("-delete")).collect();
    assert!(deletes.len() == 1 && deletes[0].contains("! -path './.cargo/*'"), "{deletes:?}");
}
