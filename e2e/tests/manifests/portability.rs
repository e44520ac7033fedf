//! Differences between machines: the host of the daemon, permissions of the checkout, proxies, and the major
//! version of Postgres.

use super::*;

fn services(compose: &Value) -> impl Iterator<Item = (&String, &Value)> {
    compose["services"].as_object().unwrap().iter()
}

/// A clone under umask 077, SELinux and a daemon on another machine each make a bind mount unreadable.
#[test]
fn no_container_of_compose_needs_a_file_of_the_checkout() {
    let compose = compose();
    let declared = compose["volumes"].as_object().unwrap();
    for (name, service) in services(&compose) {
        for volume in texts(&service["volumes"]) {
            let (source, _) = volume.split_once(':').unwrap();
            assert!(declared.contains_key(source), "{name}: {volume} is no named volume");
        }
        assert!(service["env_file"].is_null(), "{name} has an env_file");
        assert_eq!(texts(&service["volumes"]).len(), list(&service["volumes"]).len(), "{name}");
    }
    for kind in ["configs", "secrets"] {
        for (name, source) in compose[kind].as_object().into_iter().flatten() {
            assert!(source["file"].is_null(), "{kind}, {name} is mounted from a file");
        }
    }
}

#[test]
fn compose_and_the_demo_overlay_give_every_service_database_the_same_script() {
    let compose = compose();
    let content = text(&compose["configs"]["roles"]["content"]);
    // In compose, a doubled dollar sign stands for one.
    assert!(!content.replace("$$", "").contains('$'), "{content}");
    assert_eq!(content.replace("$$", "$"), read("k8s/overlays/demo/roles.sh"));

    let demo = file("k8s/overlays/demo/kustomization.yaml").remove(0);
    let generators = list(&demo["configMapGenerator"]);
    let roles = generators.iter().find(|it| it["name"] == "postgres-roles").unwrap();
    assert_eq!(roles["files"], json!(["roles.sh"]));

    for service in SERVICES {
        let configs = list(&compose["services"][format!("{service}-db")]["configs"]);
        assert_eq!(configs.len(), 1, "{service}");
        assert_eq!(configs[0]["source"], "roles", "{service}");
        assert_eq!(configs[0]["target"], "/docker-entrypoint-initdb.d/roles.sh", "{service}");
    }
    // An octal number for compose, which this test's own parser does not read as one.
    let written = read("docker-compose.yml");
    assert!(written.contains("target: /docker-entrypoint-initdb.d/roles.sh, mode: 0444 }"));
    assert!(read("README.md").contains("compose 2.24 or newer"), "`content` came with 2.23.1");
}

#[test]
fn every_stack_gives_jaeger_the_same_configuration() {
    let compose = compose();
    let content = text(&compose["configs"]["jaeger"]["content"]);
    assert_eq!(content, read("k8s/overlays/demo/jaeger/config.yaml"));
    let jaeger = &compose["services"]["jaeger"];
    assert_eq!(jaeger["profiles"], json!(["observe"]));
    assert_eq!(jaeger["configs"][0]["source"], "jaeger");
    assert_eq!(jaeger["configs"][0]["target"], jaeger["command"][1]);
    // The services find it where it listens.
    let endpoint =
        text(&compose["services"]["order"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]);
    assert_eq!(endpoint, "${OTEL_EXPORTER_OTLP_ENDPOINT:-${OBSERVE:+http://jaeger:4318}}");
    // The control room links to the page where a browser finds it.
    let port = text(&jaeger["ports"][0]).replace(":16686", "").replace("127.0.0.1:", "");
    let link = text(&compose["services"]["console"]["environment"]["JAEGER_URL"]);
    assert_eq!(link, format!("${{OBSERVE:+http://localhost:{port}}}"));
    assert!(content.contains("otlp: { protocols: { http: { endpoint: \"0.0.0.0:4318\" } } }"));
}

/// Since version 18 the image has another default directory, and declares another volume.
#[test]
fn the_data_of_every_postgres_lies_in_its_volume_whatever_the_image_takes_by_default() {
    let is_postgres = |image: &Value| text(image).starts_with("postgres:");
    let is_below = |data: &str, mount: &str| {
        data.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let compose = compose();
    let mut databases = 0;
    let is_job = |service: &Value| service["restart"] == "no";
    for (name, service) in
        services(&compose).filter(|it| is_postgres(&it.1["image"]) && !is_job(it.1))
    {
        let data = text(&service["environment"]["PGDATA"]);
        let volumes = texts(&service["volumes"]);
        let targets: Vec<&str> = volumes.iter().filter_map(|it| it.split(':').nth(1)).collect();
        assert!(targets.iter().any(|it| is_below(data, it)), "{name}: `{data}`, {targets:?}");
        // A shallower mount than the volume that version 17 declares would hide the data inside
        // that volume.
        assert!(!targets.contains(&"/var/lib/postgresql"), "{name}: {targets:?}");
        databases += 1;
    }
    assert_eq!(databases, SERVICES.len() + 2, "those of the registry and of the reports");

    let demo = file("k8s/overlays/demo/postgres/postgres.yaml");
    let pod = pod(find(&demo, "StatefulSet", "db")).unwrap();
    let container = containers(pod).find(|it| is_postgres(&it["image"])).unwrap();
    let data = list(&container["env"]).iter().find(|it| it["name"] == "PGDATA").unwrap();
    let mounts = list(&container["volumeMounts"]);
    let mount = mounts.iter().find(|it| it["name"] == "data").unwrap();
    assert!(is_below(text(&data["value"]), text(&mount["mountPath"])), "{data}, {mount}");
}

/// The words of a health check, in either notation.
fn health_check(service: &Value) -> String {
    let test = &service["healthcheck"]["test"];
    test.as_str().map_or_else(|| texts(test).join(" "), str::to_string)
}

/// Docker's client puts the proxy of its configuration into every container, also for local
/// addresses.
#[test]
fn no_health_check_asks_a_proxy_for_its_own_container() {
    let compose = compose();
    let mut asked = 0;
    for (name, service) in services(&compose) {
        let check = health_check(service);
        let direct = [("curl", "--noproxy *"), ("wget", "--no-proxy")];
        for (_, option) in direct.iter().filter(|(program, _)| check.contains(program)) {
            assert!(check.contains(option), "{name}: {check}");
            asked += 1;
        }
    }
    assert_eq!(asked, 2, "the registry and the exporter of lag are asked by curl");
}

/// `docker compose up --wait` of some versions fails at a container that runs on and whose check is disabled.
#[test]
fn only_a_job_has_a_disabled_health_check() {
    let compose = compose();
    let is_disabled = |service: &Value| service["healthcheck"]["disable"] == true;
    let (jobs, others): (Vec<_>, Vec<_>) =
        services(&compose).partition(|(_, service)| service["restart"] == "no");
    assert!(!jobs.is_empty() && jobs.iter().all(|(_, job)| is_disabled(job)));
    for (name, service) in others {
        assert!(!is_disabled(service), "{name}");
    }
}
