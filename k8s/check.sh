#!/usr/bin/env bash
# Checks every overlay with the tools at hand, and prints what was not checked: kubectl renders it;
# kubernetes-validate (pip install kubernetes-validate) knows the schemas of Kubernetes; with
# CLUSTER=1 the cluster of kubectl runs it as a dry run, which changes nothing. Only on request: the
# cluster may belong to other people, and may refuse a manifest for reasons of its own.
set -euo pipefail
cd "$(dirname "$0")"

faults=0
kubernetes=1.32 # the oldest version that these files are written for
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT

skip() { printf '  skipped  %s\n' "$*"; }
passed() { printf '  passed   %s\n' "$*"; }
failed() { printf '  FAILED   %s\n' "$*"; faults=$((faults + 1)); }

# The documents of a stream whose apiVersion is Kubernetes' own, or those whose is not.
kubernetes_own='^(v1|apps/v1|batch/v1|policy/v1|[a-z.]+[.]k8s[.]io/.*)$'
own() { documents "$1" "$kubernetes_own" 1; }
custom() { documents "$1" "$kubernetes_own" 0; }
documents() {
  awk -v pattern="$2" -v wanted="$3" '
    function emit() { if (text != "" && ((api ~ pattern) == wanted)) printf "---\n%s", text; text = ""; api = "" }
    /^---$/ { emit(); next }
    /^apiVersion: / { api = $2 }
    { text = text $0 "\n" }
    END { emit() }' "$1"
}

cluster=
if ! command -v kubectl >/dev/null; then
  skip 'everything: there is no kubectl'
  exit 0
elif [ "${CLUSTER:-}" = 1 ]; then
  if ! version=$(kubectl get --raw /version --request-timeout=3s); then
    echo 'CLUSTER=1, and kubectl reaches none' >&2
    exit 1
  fi
  cluster=$(sed -n 's/.*"gitVersion": *"\([^"]*\)".*/\1/p' <<<"$version")
fi

for overlay in overlays/*/; do
  name=$(basename "$overlay")
  all=$rendered/$name.yaml
  echo "k8s/overlays/$name"
  if ! kubectl kustomize "$overlay" >"$all" 2>"$rendered/said"; then
    failed "kubectl kustomize: $(cat "$rendered/said")"
    continue
  fi
  passed "rendered, $(grep -c '^kind: ' "$all") objects"
  own "$all" >"$rendered/own.yaml"
  custom "$all" >"$rendered/custom.yaml"

  if ! command -v kubernetes-validate >/dev/null; then
    skip 'schemas: there is no kubernetes-validate'
  elif kubernetes-validate --kubernetes-version "$kubernetes" --strict "$rendered/own.yaml" >"$rendered/said" 2>&1; then
    passed "schemas of Kubernetes $kubernetes, strictly"
  else
    failed "schemas of Kubernetes $kubernetes: $(grep -v passed "$rendered/said")"
  fi

  if [ -z "$cluster" ]; then
    [ -s "$rendered/custom.yaml" ] && what=', which alone knows the custom resources' || what=
    skip "server-side dry run$what: no cluster is asked without CLUSTER=1"
    continue
  fi
  # A dry run makes no namespace, and nothing can be tried in one that is not there.
  into=holdfast
  kubectl get namespace holdfast >/dev/null 2>&1 || into=default
  asked=("$rendered/own.yaml")
  kinds=$(sed -n 's/^apiVersion: //p' "$rendered/custom.yaml" | sort -u)
  for kind in $kinds; do
    if kubectl get --raw "/apis/$kind" >/dev/null 2>&1; then
      documents "$rendered/custom.yaml" "^$kind\$" 1 >"$rendered/${kind//\//-}.yaml"
      asked+=("$rendered/${kind//\//-}.yaml")
    else
      skip "custom resources: the cluster does not know $kind"
    fi
  done
  for file in "${asked[@]}"; do
    what=$(basename "$file" .yaml)
    sed "s/^\(  namespace: \)holdfast\$/\1$into/" "$file" >"$rendered/asked"
    if ! kubectl apply --server-side --force-conflicts --dry-run=server --validate=strict \
      --field-manager=check -f "$rendered/asked" >"$rendered/said" 2>&1; then
      failed "server-side dry run, $what: $(grep -v 'serverside-applied' "$rendered/said")"
    elif grep -i '^warning' "$rendered/said"; then
      failed "server-side dry run, $what, with warnings"
    else
      passed "server-side dry run on $cluster, $what: $(grep -c applied "$rendered/said") objects"
    fi
  done
  # Where the namespace is not there, neither is what it demands of pods.
  [ "$into" = holdfast ] || skip 'pod security as enforced: the cluster has no namespace holdfast'
done
[ "$faults" = 0 ]
