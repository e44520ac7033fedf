//! The rules for workloads in a cluster, and manifests that break them one by one.

use e2e::image_pins::{is_exact, tag};

use super::*;

/// With these annotations a GitOps controller replaces a Job, which cannot be changed. Argo CD runs
/// it as a hook of each sync, after the other objects of the sync are applied; Flux deletes it and
/// creates it again.
const JOB_REPLACEMENT: [(&str, &str); 3] = [
    ("argocd.argoproj.io/hook", "Sync"),
    ("argocd.argoproj.io/hook-delete-policy", "BeforeHookCreation"),
    ("kustomize.toolkit.fluxcd.io/force", "enabled"),
];

/// The rules that an object breaks, by name.
pub fn broken_rules(object: &Value) -> Vec<&'static str> {
    let mut broken = Vec::new();
    let mut hold = |rule, is_kept: bool| {
        if !is_kept && !broken.contains(&rule) {
            broken.push(rule);
        }
    };
    if object["kind"] == "Service" {
        let kind = &object["spec"]["type"];
        hold("reached through a gateway", kind.is_null() || kind == "ClusterIP");
    }
    let Some(pod) = pod(object) else { return broken };
    let is_deployment = object["kind"] == "Deployment";
    let is_job = object["kind"] == "Job";
    hold("no token", pod["automountServiceAccountToken"] == false);
    hold("no variables of Services", pod["enableServiceLinks"] == false);
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        hold("nothing of the host's", pod[shared].is_null() || pod[shared] == false);
    }
    let has_host_path = list(&pod["volumes"]).iter().any(|volume| !volume["hostPath"].is_null());
    hold("nothing of the host's", !has_host_path);
    if is_deployment {
        let rollout = &object["spec"]["strategy"]["rollingUpdate"];
        hold("a rollout takes nothing away", rollout["maxUnavailable"] == 0);
        let (grace, waits) = grace(pod);
        hold("time to stop", waits > 0 && grace > waits + 20);
        hold("spread over nodes", !list(&pod["topologySpreadConstraints"]).is_empty());
    }
    if is_job {
        let spec = &object["spec"];
        let bounds = ["backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"];
        hold("a job ends and goes", bounds.iter().all(|bound| spec[*bound].is_u64()));
        let annotations = &object["metadata"]["annotations"];
        hold(
            "a job gives way to its next version",
            JOB_REPLACEMENT.iter().all(|(key, value)| annotations[*key] == *value),
        );
    }
    for container in containers(pod) {
        check_container(container, pod, &mut hold);
        if !is_job {
            hold("probes", container["readinessProbe"].is_object());
            hold("probes", !is_deployment || container["livenessProbe"].is_object());
        }
    }
    broken
}

/// The rules for a container of any kind of workload.
fn check_container(container: &Value, pod: &Value, mut hold: impl FnMut(&'static str, bool)) {
    // A setting that a container lacks comes from its pod.
    let effective = |field: &str| {
        let own = &container["securityContext"][field];
        if own.is_null() { pod["securityContext"][field].clone() } else { own.clone() }
    };
    let user = effective("runAsUser").as_u64().unwrap_or(0);
    hold("not root", effective("runAsNonRoot") == true && user > 0);
    hold("seccomp", effective("seccompProfile")["type"] == "RuntimeDefault");
    let own = &container["securityContext"];
    hold("read-only root", own["readOnlyRootFilesystem"] == true);
    hold("no more rights", own["allowPrivilegeEscalation"] == false);
    hold("no more rights", own["privileged"].is_null() || own["privileged"] == false);
    let capabilities = &own["capabilities"];
    let is_dropped = capabilities["drop"] == json!(["ALL"]) && capabilities["add"].is_null();
    hold("no capabilities", is_dropped);
    let resources = &container["resources"];
    hold("limits", resources["limits"]["memory"].is_string());
    let requests = &resources["requests"];
    hold("requests", requests["memory"].is_string() && requests["cpu"].is_string());
    let image = text(&container["image"]);
    hold("a version", is_exact(image) || program(image).is_some() && tag(image) == "local");
}

#[test]
fn every_workload_keeps_every_rule() {
    for (tree, objects) in OVERLAYS.iter() {
        assert!(objects.iter().filter(|object| pod(object).is_some()).count() >= 8, "{tree}");
        for object in objects {
            let broken = broken_rules(object);
            assert!(broken.is_empty(), "{tree}, {} {}: {broken:?}", object["kind"], name(object));
        }
        let namespace = find(objects, "Namespace", "holdfast");
        for mode in ["enforce", "warn", "audit"] {
            let label = format!("pod-security.kubernetes.io/{mode}");
            assert_eq!(namespace["metadata"]["labels"][label], "restricted", "{tree}");
        }
    }
}

/// A way to break a valid manifest: the object, the place, the new value (none: the field is
/// removed), and the rule that must refuse it.
type ManifestFault = (&'static str, &'static str, Option<Value>, &'static str);

fn manifest_faults() -> Vec<ManifestFault> {
    let host_volume = json!([{"name": "host", "hostPath": {"path": "/"}}]);
    // Before the ConfigMaps that it reads, and the databases, exist.
    let early_hook = json!({
        "argocd.argoproj.io/hook": "PreSync",
        "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation",
        "kustomize.toolkit.fluxcd.io/force": "enabled",
    });
    vec![
        ("Deployment", "POD/securityContext/runAsUser", Some(json!(0)), "not root"),
        ("Deployment", "POD/securityContext/runAsNonRoot", None, "not root"),
        ("Deployment", "POD/securityContext/seccompProfile", None, "seccomp"),
        ("Deployment", "POD/automountServiceAccountToken", None, "no token"),
        ("Deployment", "POD/hostNetwork", Some(json!(true)), "nothing of the host's"),
        ("Deployment", "POD/volumes", Some(host_volume), "nothing of the host's"),
        ("Deployment", "POD/terminationGracePeriodSeconds", Some(json!(25)), "time to stop"),
        (
            "Deployment",
            "/spec/strategy/rollingUpdate/maxUnavailable",
            Some(json!(1)),
            "a rollout takes nothing away",
        ),
        ("Deployment", "CONTAINER/resources/limits", None, "limits"),
        ("Deployment", "CONTAINER/resources/requests", None, "requests"),
        ("Deployment", "CONTAINER/image", Some(json!("holdfast/order:latest")), "a version"),
        ("Deployment", "CONTAINER/image", Some(json!("host:5000/holdfast/order")), "a version"),
        ("Deployment", "CONTAINER/image", Some(json!("postgres:17")), "a version"),
        ("Deployment", "CONTAINER/image", Some(json!("apache/kafka:local")), "a version"),
        ("Deployment", "CONTAINER/readinessProbe", None, "probes"),
        ("Deployment", "CONTAINER/livenessProbe", None, "probes"),
        (
            "Deployment",
            "CONTAINER/securityContext/readOnlyRootFilesystem",
            Some(json!(false)),
            "read-only root",
        ),
        (
            "Deployment",
            "CONTAINER/securityContext/allowPrivilegeEscalation",
            None,
            "no more rights",
        ),
        (
            "Deployment",
            "CONTAINER/securityContext/capabilities/add",
            Some(json!(["NET_ADMIN"])),
            "no capabilities",
        ),
        ("Job", "POD/securityContext/runAsUser", None, "not root"),
        ("Job", "/spec/ttlSecondsAfterFinished", None, "a job ends and goes"),
        ("Job", "/spec/activeDeadlineSeconds", None, "a job ends and goes"),
        ("Job", "/metadata/annotations", None, "a job gives way to its next version"),
        ("Job", "/metadata/annotations", Some(early_hook), "a job gives way to its next version"),
        ("Service", "/spec/type", Some(json!("NodePort")), "reached through a gateway"),
    ]
}

/// The place of a field in an object; `POD` and `CONTAINER` stand for the ways to both.
fn pointer(place: &str) -> String {
    place.replace("CONTAINER", "POD/containers/0").replace("POD", "/spec/template/spec")
}

#[test]
fn each_bad_manifest_is_refused_by_the_rule_that_it_breaks() {
    let good = file("k8s/base/order.yaml");
    assert!(good.iter().all(|object| broken_rules(object).is_empty()));
    for (kind, at, put, rule) in manifest_faults() {
        let mut bad = of_kind(&good, kind)[0].clone();
        let place = pointer(at);
        let (inside, field) = place.rsplit_once('/').unwrap();
        let inside = bad.pointer_mut(inside).and_then(Value::as_object_mut).unwrap();
        match put {
            Some(value) => inside.insert(field.into(), value),
            None => Some(inside.remove(field).unwrap_or_else(|| panic!("{at} is not there"))),
        };
        assert_eq!(broken_rules(&bad), [rule], "{kind} {at}");
    }
}
