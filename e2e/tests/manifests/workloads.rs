//! The rules for workloads in a cluster.

use e2e::image_pins::{is_exact, tag};

use super::*;

/// What an object of a kind has, and what each of its containers has.
fn expected(kind: &str) -> (Value, Value) {
    match kind {
        // A rollout takes nothing away.
        "Deployment" => (
            json!({"spec": {
                "strategy": {"rollingUpdate": {"maxUnavailable": 0}},
                "template": {"spec": {"topologySpreadConstraints": "*"}},
            }}),
            json!({"readinessProbe": "*", "livenessProbe": "*"}),
        ),
        // It ends and goes. With these annotations a GitOps controller replaces it, as it cannot be changed: Argo CD
        // runs it as a hook of each sync, after the other objects are applied; Flux deletes it and creates it again.
        "Job" => (
            json!({
                "metadata": {"annotations": {
                    "argocd.argoproj.io/hook": "Sync",
                    "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation",
                    "kustomize.toolkit.fluxcd.io/force": "enabled",
                }},
                "spec": {"backoffLimit": "*", "activeDeadlineSeconds": "*", "ttlSecondsAfterFinished": "*"},
            }),
            json!({}),
        ),
        _ => (json!({}), json!({"readinessProbe": "*"})),
    }
}

pub fn check_workloads(tree: &str, objects: &[Value], found: &mut Violations) {
    for service in of_kind(objects, "Service") {
        let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
        found.equal(format!("{tree}, Service {}", name(service)), kind, "ClusterIP");
    }
    for (object, pod) in pods(objects) {
        let kind = text(&object["kind"]);
        let subject = &format!("{tree}, {kind} {}", name(object));
        let (of_kind, of_containers) = expected(kind);
        found.fields(subject, object, &of_kind);
        let rights = json!({
            "hostNetwork": null, "hostPID": null, "hostIPC": null,
            "automountServiceAccountToken": false, "enableServiceLinks": false,
        });
        found.fields(subject, pod, &rights);
        let has_host_path = list(&pod["volumes"]).iter().any(|it| !it["hostPath"].is_null());
        found.check(subject, "no directory of the host", !has_host_path);
        let (grace, waits) = grace(pod);
        let is_stopped = kind != "Deployment" || waits > 0 && grace > waits + 20;
        found.check(subject, "time to stop", is_stopped);
        for container in containers(pod) {
            found.fields(subject, container, &of_containers);
            check_container(subject, container, pod, found);
            // Where nothing is loaded, a pull would run an image that a stranger published under our image's name.
            let (image, policy) = (text(&container["image"]), &container["imagePullPolicy"]);
            let is_own = program(&container["image"]).is_some();
            let is_production = tree.starts_with("production");
            found.check(subject, "no pull", is_production || !is_own || policy == "Never");
            let is_local = is_own && tag(image) == "local" && !is_production;
            found.check(subject, "an image with a version", is_exact(image) || is_local);
        }
    }
}

fn check_container(subject: &str, container: &Value, pod: &Value, found: &mut Violations) {
    // A setting that a container lacks comes from its pod.
    let settings = merged(&pod["securityContext"], &container["securityContext"]);
    let rights = json!({
        "runAsNonRoot": true, "runAsUser": "*", "seccompProfile": {"type": "RuntimeDefault"},
        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "privileged": null,
        "capabilities": {"drop": ["ALL"], "add": null},
    });
    found.fields(subject, &settings, &rights);
    found.check(subject, "not root", settings["runAsUser"] != 0);
    let amounts = json!({"limits": {"memory": "*"}, "requests": {"memory": "*", "cpu": "*"}});
    found.fields(subject, &container["resources"], &amounts);
}

#[test]
fn every_workload_keeps_every_rule() {
    let mut found = Violations::default();
    for (tree, objects) in OVERLAYS.iter() {
        found.check(tree, "eight workloads", pods(objects).count() >= 8);
        check_workloads(tree, objects, &mut found);
        let restricted = ["enforce", "warn", "audit"]
            .map(|mode| (format!("pod-security.kubernetes.io/{mode}"), json!("restricted")));
        let labels = &find(objects, "Namespace", "holdfast")["metadata"]["labels"];
        found.fields(tree, labels, &restricted.into_iter().collect());
    }
}
