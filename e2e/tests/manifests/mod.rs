//! Compares `k8s/` and `docker-compose.yml` with the code that they start, and each workload with
//! the rules for workloads in a cluster. It needs the files, and the programs for their `--help`.
//! With `kubectl`, the overlays are read as it renders them, otherwise file by file.

// Clippy recognises tests by their attribute, and this whole module is a test.
#![allow(clippy::unwrap_used)]

mod allocator;
mod bad_overlays;
mod compose;
mod compose_secured;
mod configuration;
mod connect;
mod flows;
pub mod monitoring;
mod network_policies;
mod observe;
mod portability;
mod secured;
mod stream_processor;
mod supply_chain;
mod versions;
mod workload_rules;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use e2e::stack_description::SERVICES;
use e2e::stack_description::checkout;
use serde_json::{Value, json};

fn path(file: &str) -> PathBuf {
    checkout().join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn objects(yaml: &str, source: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{source}: {error}"))
}

fn file(name: &str) -> Vec<Value> {
    objects(&read(name), name)
}

fn compose() -> Value {
    file("docker-compose.yml").remove(0)
}

/// The services in `k8s/`. `make service` adds a service to the native stack and to compose; these
/// checks apply to it as soon as it has a file for Kubernetes.
fn deployed_services() -> Vec<&'static str> {
    let has_file = |service: &&str| path(&format!("k8s/base/{service}.yaml")).exists();
    SERVICES.into_iter().filter(has_file).collect()
}

/// The manifests that are applied together: base and overlays, with their parts.
static OVERLAYS: LazyLock<Vec<(String, Vec<Value>)>> = LazyLock::new(overlays);

fn overlays() -> Vec<(String, Vec<Value>)> {
    let rendered: Vec<_> = ["demo", "production"]
        .into_iter()
        .filter_map(|it| Some((it.into(), render(it)?)))
        .collect();
    if rendered.len() == 2 {
        return rendered;
    }
    println!("there is no kubectl: the files are read without it");
    let base = "k8s/base";
    let named = file(&format!("{base}/kustomization.yaml")).remove(0);
    let names = texts(&named["resources"]);
    let mut objects: Vec<Value> =
        names.iter().flat_map(|name| file(&format!("{base}/{name}"))).collect();
    for map in list(&named["configMapGenerator"]) {
        let pairs = texts(&map["literals"]);
        let pairs = pairs.iter().filter_map(|pair| pair.split_once('='));
        let data: BTreeMap<&str, &str> = pairs.collect();
        objects.push(json!({"kind": "ConfigMap", "metadata": {"name": map["name"]}, "data": data}));
    }
    let demo = ["kafka", "seed", "jaeger/jaeger"]
        .map(|name| file(&format!("k8s/overlays/demo/{name}.yaml")));
    let demo = objects.iter().cloned().chain(demo.into_iter().flatten()).collect();
    vec![("base".into(), objects), ("demo".into(), demo)]
}

fn render(overlay: &str) -> Option<Vec<Value>> {
    let overlay = path(&format!("k8s/overlays/{overlay}"));
    let output = Command::new("kubectl").arg("kustomize").arg(&overlay).output().ok()?;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{}: {error}", overlay.display());
    Some(objects(&String::from_utf8(output.stdout).unwrap(), &overlay.display().to_string()))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn texts(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, named: &str) -> &'a Value {
    let found = of_kind(objects, kind).into_iter().find(|object| name(object) == named);
    found.unwrap_or_else(|| panic!("there is no {kind} {named}"))
}

/// The pod of an object with a pod template.
fn pod(object: &Value) -> Option<&Value> {
    let has_pods = matches!(text(&object["kind"]), "Deployment" | "StatefulSet" | "Job");
    has_pods.then(|| &object["spec"]["template"]["spec"])
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).iter().chain(list(&pod["containers"]))
}

/// `holdfast/order:local` and `registry.example.com/holdfast/order:1.2.3` are `order`.
fn program(image: &str) -> Option<&str> {
    let (_, program) = image.split_once("holdfast/")?;
    program.split(':').next()
}

/// The seconds of a pod between SIGTERM and SIGKILL, and those that it needs.
fn grace(pod: &Value) -> (u64, u64) {
    let waits = containers(pod).map(|it| it["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64());
    let waits = waits.map(Option::unwrap_or_default).max().unwrap_or_default();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
    (grace, waits)
}
