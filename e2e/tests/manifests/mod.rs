//! Compares `k8s/` and the files of docker compose with the code that they start, and each workload with the rules for
//! workloads in a cluster. It needs the files, and the programs for their `--help`. `kubectl` renders the overlays.

// Clippy recognises tests by their attribute, and this whole module is a test.
#![allow(clippy::unwrap_used)]

mod bad_overlays;
mod compose;
mod configuration;
mod connectors;
pub mod monitoring;
mod network;
mod production;
mod versions;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use e2e::stack_description::{SERVICES, checkout};
use events::saga_topics;
use launcher::directories::programs_directory;
use serde_json::{Value, json};

/// What breaks a rule. A test collects all of it, and fails at its end.
#[derive(Default)]
struct Violations(BTreeSet<String>);

impl Drop for Violations {
    fn drop(&mut self) {
        assert!(self.0.is_empty() || std::thread::panicking(), "{:#?}", self.0);
    }
}

impl Violations {
    fn check(&mut self, subject: impl Display, rule: impl Display, is_kept: bool) {
        if !is_kept {
            self.0.insert(format!("{subject}: {rule}"));
        }
    }

    fn equal<T: PartialEq + Debug>(&mut self, subject: impl Display, found: T, expected: T) {
        self.check(subject, format!("{found:?} is not {expected:?}"), found == expected);
    }

    /// Compares the fields that are expected, and the elements of lists. Null is the absence of a field, and `*` stands
    /// for anything but that.
    fn fields(&mut self, subject: impl Display, found: &Value, expected: &Value) {
        match (found, expected) {
            (_, Value::Object(fields)) => fields.iter().for_each(|(field, expected)| {
                self.fields(format!("{subject}/{field}"), &found[field], expected);
            }),
            (Value::Array(found), Value::Array(expected)) if found.len() == expected.len() => {
                for (found, expected) in found.iter().zip(expected) {
                    self.fields(subject.to_string(), found, expected);
                }
            }
            (found, Value::String(any)) if any == "*" => {
                let nothing = [Value::Null, json!(""), json!([]), json!({})];
                self.check(subject, "is there", !nothing.contains(found));
            }
            _ => self.equal(subject, found, expected),
        }
    }
}

fn read(file: &str) -> String {
    std::fs::read_to_string(checkout().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn objects(yaml: &str, source: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{source}: {error}"))
}

fn file(name: &str) -> Vec<Value> {
    objects(&read(name), name)
}

/// `docker-compose.yml`, with what is merged over it for further services.
fn compose() -> Value {
    let mut compose = file("docker-compose.yml").remove(0);
    merge_override(&mut compose["services"], "docker-compose.override.yml");
    compose
}

/// Merges the services of a file over others, if there is the file.
fn merge_override(services: &mut Value, name: &str) {
    if checkout().join(name).exists() {
        merge_services(services, &file(name).remove(0)["services"]);
    }
}

/// Docker merges the variables of two files by name, and appends the volumes of the second.
fn merge_services(services: &mut Value, over: &Value) {
    for (name, over) in over.as_object().into_iter().flatten() {
        for (field, value) in over.as_object().into_iter().flatten() {
            let merged = &mut services[name][field];
            match value {
                Value::Object(fields) if merged.is_object() => {
                    merged.as_object_mut().unwrap().extend(fields.clone());
                }
                Value::Array(more) if merged.is_array() && field == "volumes" => {
                    merged.as_array_mut().unwrap().extend(more.clone());
                }
                _ => *merged = value.clone(),
            }
        }
    }
}

/// The containers of a file of docker compose, or other fields by their names.
fn fields(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

/// The fields of both objects. The second one wins.
fn merged(first: &Value, second: &Value) -> Value {
    fields(first).chain(fields(second)).map(|(name, it)| (name.clone(), it.clone())).collect()
}

/// Compares a file with what it is written from, or rewrites it if this variable is set.
fn compare_or_rewrite(file: &str, expected: &str, variable: &str) {
    if std::env::var(variable).is_ok() {
        std::fs::write(checkout().join(file), expected).unwrap();
    }
    assert!(read(file) == expected, "{file} differs from its sources: {variable}=1 rewrites it");
}

/// The services in `k8s/`: a fork may run one elsewhere.
fn deployed_services() -> Vec<&'static str> {
    let has_file = |service: &&str| checkout().join(format!("k8s/base/{service}.yaml")).exists();
    SERVICES.into_iter().filter(has_file).collect()
}

/// The services whose outboxes a connector may carry: those that publish.
fn publishing_services() -> Vec<&'static str> {
    let publishes = |service: &&str| saga_topics().iter().any(|it| it.publisher == *service);
    deployed_services().into_iter().filter(publishes).collect()
}

/// The manifests that are applied together, as kubectl renders them. Without it there are none, and CI fails.
static OVERLAYS: LazyLock<Vec<(&str, Vec<Value>)>> = LazyLock::new(|| {
    let overlays =
        ["demo", "demo-shipping", "production", "production-flows", "production-shipping"];
    let rendered = overlays.into_iter();
    let rendered: Option<_> =
        rendered.map(|overlay| Some((overlay, render(&checkout(), overlay)?))).collect();
    rendered.unwrap_or_else(|| {
        assert!(std::env::var_os("CI").is_none(), "there is no kubectl");
        // A test that passes shows no output of its macros.
        let _ = writeln!(std::io::stderr(), "skipped: there is no kubectl");
        Vec::new()
    })
});

/// The overlays for production: without and with Kafka Connect.
fn production() -> impl Iterator<Item = &'static (&'static str, Vec<Value>)> {
    OVERLAYS.iter().filter(|(tree, _)| tree.starts_with("production"))
}

/// The objects of an overlay in a checkout, if there is a kubectl.
pub fn render(root: &Path, overlay: &str) -> Option<Vec<Value>> {
    let overlay = root.join(format!("k8s/overlays/{overlay}")).display().to_string();
    let output = Command::new("kubectl").args(["kustomize", &overlay]).output().ok()?;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{overlay}: {error}");
    Some(objects(&String::from_utf8(output.stdout).unwrap(), &overlay))
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

pub fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

/// The element of a list with this name.
fn named<'a>(elements: &'a Value, name: &str) -> &'a Value {
    list(elements).iter().find(|it| it["name"] == name).unwrap_or(&Value::Null)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, named: &str) -> &'a Value {
    let found = of_kind(objects, kind).into_iter().find(|object| name(object) == named);
    found.unwrap_or_else(|| panic!("there is no {kind} {named}"))
}

/// The objects with a pod template, each with its pod.
fn pods(objects: &[Value]) -> impl Iterator<Item = (&Value, &Value)> {
    let kinds = ["Deployment", "StatefulSet", "Job"];
    let workloads = objects.iter().filter(move |it| kinds.contains(&text(&it["kind"])));
    workloads.map(|object| (object, &object["spec"]["template"]["spec"]))
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).iter().chain(list(&pod["containers"]))
}

/// `holdfast/order:local` and `registry.example.com/holdfast/order:1.2.3` are `order`.
fn program(image: &Value) -> Option<&str> {
    let (_, program) = text(image).split_once("holdfast/")?;
    program.split(':').next()
}

/// A program of the checkout.
fn command(program: &str) -> Command {
    let path = programs_directory().unwrap().join(program);
    assert!(path.exists(), "there is no {program}: run `make build`");
    Command::new(path)
}

type Variables = BTreeMap<String, String>;

/// The variables of a container, from its own list and from its ConfigMaps.
fn environment(container: &Value, objects: &[Value]) -> Variables {
    let maps = list(&container["envFrom"]).iter();
    let maps = maps.map(|it| find(objects, "ConfigMap", text(&it["configMapRef"]["name"])));
    let of_maps = maps.flat_map(|map| fields(&map["data"]));
    let own = list(&container["env"]).iter().map(|it| (text(&it["name"]), &it["value"]));
    let all = of_maps.map(|(name, value)| (&**name, value)).chain(own);
    all.map(|(name, value)| (name.to_string(), text(value).to_string())).collect()
}

/// The files of Secrets that volumes put into a container.
fn mounted_files(mounts: &Value, volumes: &Value) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for mount in list(mounts) {
        let volume = named(volumes, text(&mount["name"]));
        let projected = list(&volume["projected"]["sources"]).iter().map(|it| &it["secret"]);
        let items = projected.chain([&volume["secret"]]).flat_map(|it| list(&it["items"]));
        let directory = text(&mount["mountPath"]);
        files.extend(items.map(|item| format!("{directory}/{}", text(&item["path"]))));
    }
    files
}

/// The seconds of a pod between SIGTERM and SIGKILL, and those before SIGTERM in which requests still arrive.
fn grace(pod: &Value) -> (u64, u64) {
    let waits = containers(pod).map(|it| it["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64());
    let waits = waits.map(Option::unwrap_or_default).max().unwrap_or_default();
    (pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30), waits)
}
