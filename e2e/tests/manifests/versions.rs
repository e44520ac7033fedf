//! Versions of images, topics, the retention of offsets and scaling: the values on which several files must
//! agree.

use chassis::event::Retention;
use chassis::kafka::RECORD_BYTES_MAX;
use e2e::image_pins::{pulled_images, tag};
use events::{DECLARED_TOPICS, TOPICS};

use super::configuration::default_value;
use super::*;

#[test]
fn a_service_is_never_scaled_beyond_its_partitions_nor_beyond_its_database() {
    let scaled = file("k8s/overlays/production/scaling.yaml");
    let databases = file("k8s/overlays/production/databases.yaml");
    for service in deployed_services() {
        let scaled = &find(&scaled, "ScaledObject", service)["spec"];
        let replicas_max = scaled["maxReplicaCount"].as_u64().unwrap();
        let subscribed = TOPICS.iter().filter(|topic| topic.subscribers.contains(&service));
        let partitions = subscribed.map(|topic| topic.partitions as u64).min().unwrap();
        assert!(replicas_max <= partitions, "{service}: {replicas_max} of {partitions}");
        assert_eq!(scaled["minReplicaCount"], 2, "{service}");
        assert_eq!(scaled["scaleTargetRef"]["name"], service);
        let trigger = &scaled["triggers"][0];
        assert_eq!(
            trigger["metadata"]["consumerGroup"], service,
            "a group has the name of its service"
        );
        let database = &find(&databases, "Cluster", &format!("{service}-db"))["spec"];
        let connections = text(&database["postgresql"]["parameters"]["max_connections"]);
        let pool: u64 = default_value(service, "DATABASE_POOL_SIZE").parse().unwrap();
        // One more replica exists during a rollout; each has its pool and the sessions of its loops
        // and probes.
        let needed = (replicas_max + 1) * (pool + 6);
        assert!(connections.parse::<u64>().unwrap() > needed, "{service} may take {needed}");
        assert_eq!(database["instances"], 3);
        assert_eq!(database["postgresql"]["synchronous"]["dataDurability"], "required");
    }
}

/// What only a superuser can take from the role that serves; on the native stack `make denials` tries it.
#[test]
fn the_serving_role_of_each_database_of_production_has_limits() {
    for cluster in clusters().iter().filter(|it| name(it) != "registry-db") {
        let (spec, database) = (&cluster["spec"], name(cluster).trim_end_matches("-db"));
        let roles = list(&spec["managed"]["roles"]);
        let serving = roles.iter().find(|role| role["name"] == database).unwrap();
        assert_eq!(serving["connectionLimit"], 190, "{database}");
        let statements = texts(&spec["bootstrap"]["initdb"]["postInitApplicationSQL"]).join(";");
        for part in [
            format!("alter database \"{database}\" set temp_file_limit"),
            format!("alter role {database}_migrator set temp_file_limit = -1"),
            "revoke execute on function".to_string(),
        ] {
            assert!(statements.contains(&part), "{database}: {statements}");
        }
    }
    let roles = read("k8s/overlays/demo/roles.sh");
    for part in ["connection limit 190", "set temp_file_limit", "revoke execute on function"] {
        assert!(roles.contains(part), "{part}");
    }
}

/// The databases of production, with that of its component.
fn clusters() -> Vec<Value> {
    let reporting = file("k8s/components/reporting/database.yaml");
    let mut clusters = file("k8s/overlays/production/databases.yaml");
    clusters.extend(reporting.into_iter().filter(|it| it["kind"] == "Cluster"));
    assert_eq!(clusters.len(), 5);
    clusters
}

#[test]
fn each_dependency_has_one_version_wherever_it_runs() {
    let pom = read("e2e/launcher/pom.xml");
    let natively = |part: &str| {
        let (_, rest) = pom.split_once(&format!("<{part}.version>")).unwrap();
        rest.split('<').next().unwrap().to_string()
    };
    let [kafka, registry, postgres] = ["kafka", "registry", "postgres"].map(natively);
    // `17.11.0` is 17.11 of Postgres.
    let (postgres, _) = postgres.rsplit_once('.').unwrap();
    let wanted = |image: &str| match image.split(':').next().unwrap() {
        "apache/kafka" => Some(kafka.clone()),
        "apicurio/apicurio-registry" => Some(registry.clone()),
        "postgres" => Some(postgres.to_string()),
        _ => None,
    };
    let compose = compose();
    let mut images: Vec<String> = compose["services"]
        .as_object()
        .unwrap()
        .values()
        .map(|service| text(&service["image"]).to_string())
        .collect();
    for (_, objects) in OVERLAYS.iter() {
        let pods = objects.iter().filter_map(pod).flat_map(containers);
        images.extend(pods.map(|container| text(&container["image"]).to_string()));
    }
    let parts: Vec<(&String, String)> =
        images.iter().filter_map(|image| Some((image, wanted(image)?))).collect();
    assert!(parts.len() >= 8, "{parts:?}");
    for (image, version) in parts {
        assert_eq!(tag(image), version, "{image}");
    }
    // The worker of Kafka Connect, by itself and as the operator starts it, and what its plugins are compiled for.
    let pulled = pulled_images(&read("services/connect/Dockerfile"));
    let worker: Vec<&str> = pulled.iter().map(|image| tag(image)).collect();
    assert!(worker.contains(&&*kafka), "{pulled:?}");
    assert!(worker.iter().any(|it| it.ends_with(&format!("-kafka-{kafka}"))), "{pulled:?}");
    assert_eq!(natively("connect"), kafka);
    let compiled = format!("<kafka.version>{kafka}</kafka.version>");
    assert!(read("services/reporting/pom.xml").contains(&compiled), "services/reporting/pom.xml");
    let strimzi = file("k8s/overlays/production/kafka.yaml");
    assert_eq!(find(&strimzi, "Kafka", "kafka")["spec"]["kafka"]["version"], kafka);
    for cluster in clusters() {
        let version = tag(text(&cluster["spec"]["imageName"])).split('-').next();
        assert_eq!(version, Some(postgres), "{}", name(&cluster));
    }
}

#[test]
fn topics_are_declared_to_strimzi_as_they_are_in_code() {
    let declared: BTreeMap<String, Value> = file("k8s/overlays/production/topics.yaml")
        .into_iter()
        .map(|topic| {
            assert_eq!(topic["kind"], "KafkaTopic");
            (name(&topic).to_string(), topic["spec"].clone())
        })
        .collect();
    let expected: BTreeMap<String, Value> = DECLARED_TOPICS
        .iter()
        .map(|topic| {
            let mut config = json!({
                "message.timestamp.type": "LogAppendTime",
                "max.message.bytes": RECORD_BYTES_MAX,
                "compression.type": "uncompressed",
                "min.insync.replicas": 2,
            });
            match topic.retention {
                Retention::Compact => config["cleanup.policy"] = "compact".into(),
                Retention::Days(days) => {
                    config["cleanup.policy"] = "delete".into();
                    config["retention.ms"] = (i64::from(days) * 86_400_000).into();
                }
            }
            let spec = json!({"partitions": topic.partitions, "replicas": 3, "config": config});
            (topic.name.to_string(), spec)
        })
        .collect();
    assert_eq!(declared, expected);
}

/// The detail of an error contains values of the row, such as the customer whose key exists already.
#[test]
fn no_postgres_logs_the_values_of_rows() {
    let files = [
        "e2e/launcher/src/launch_config.rs",
        "docker-compose.yml",
        "k8s/overlays/demo/postgres/postgres.yaml",
        "e2e/repository_template/docker-compose.yml",
    ];
    for file in files {
        assert!(read(file).contains("log_error_verbosity=terse"), "{file}");
    }
    for cluster in clusters() {
        let parameters = &cluster["spec"]["postgresql"]["parameters"];
        assert_eq!(parameters["log_error_verbosity"], "terse", "{}", name(&cluster));
    }
}

/// A group whose offsets expire before the records of its topics reads them again from the
/// beginning.
#[test]
fn offsets_are_kept_equally_long_by_every_broker_and_longer_than_any_topic() {
    let topics_days = TOPICS.iter().filter_map(|topic| match topic.retention {
        Retention::Days(days) => Some(days),
        Retention::Compact => None,
    });
    let files = [
        "e2e/launcher/src/kafka_config.rs",
        "docker-compose.yml",
        "k8s/overlays/demo/kafka.yaml",
        "k8s/overlays/production/kafka.yaml",
    ];
    let kept_minutes = files.map(|file| {
        let text = read(file).to_lowercase().replace('_', ".");
        let (_, set) = text.split_once("offsets.retention.minutes").expect(file);
        let digits = set.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = digits.find(|c: char| !c.is_ascii_digit()).expect(file);
        digits[..end].parse::<u32>().expect(file)
    });
    assert!(kept_minutes.iter().all(|minutes| *minutes == kept_minutes[0]), "{kept_minutes:?}");
    assert!(kept_minutes[0] > topics_days.max().unwrap() * 24 * 60, "{kept_minutes:?}");
    // The inbox still contains everything that a stopped group reads again from its last offset on.
    assert!(
        u64::from(kept_minutes[0]) * 60 < chassis::inbox::RETENTION.as_secs(),
        "{kept_minutes:?}"
    );
}
