#!/usr/bin/env bash
# Checks every overlay with the installed tools, and prints which checks it skipped. kubectl renders an overlay, and
# kubernetes-validate (pip install kubernetes-validate) compares it with the schemas of Kubernetes.
# With CLUSTER=1 the cluster of kubectl also applies it as a dry run, which changes nothing. That check is optional,
# because the cluster may belong to other people, and may refuse a manifest for reasons of its own.
set -euo pipefail
cd "$(dirname "$0")"

faults=0
kubernetes=1.32 # the oldest version that these files are written for
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT

skip() { printf '  skipped  %s\n' "$*"; }
passed() { printf '  passed   %s\n' "$*"; }
failed() { printf '  FAILED   %s\n' "$*"; faults=$((faults + 1)); }

# The documents of a stream whose apiVersion is Kubernetes' own, and the other ones.
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
    echo 'CLUSTER=1, and kubectl reaches no cluster' >&2
    exit 1
  fi
  cluster=$(sed -n 's/.*"gitVersion": *"\([^"]*\)".*/\1/p' <<<"$version")
fi

for overlay in overlays/*/; do
  name=$(basename "$overlay")
  all=$rendered/$name.yaml
  echo "k8s/overlays/$name"
  if ! kubectl kustomize "$overlay" >"$all" 2>"$rendered/output"; then
    failed "kubectl kustomize: $(cat "$rendered/output")"
    continue
  fi
  passed "rendered, $(grep -c '^kind: ' "$all") objects"
  own "$all" >"$rendered/own.yaml"
  custom "$all" >"$rendered/custom.yaml"

  if ! command -v kubernetes-validate >/dev/null; then
    skip 'schemas: there is no kubernetes-validate'
  elif kubernetes-validate --kubernetes-version "$kubernetes" --strict "$rendered/own.yaml" >"$rendered/output" 2>&1; then
    passed "schemas of Kubernetes $kubernetes, strictly"
  else
    failed "schemas of Kubernetes $kubernetes: $(grep -v passed "$rendered/output")"
  fi

  if [ -z "$cluster" ]; then
    [ -s "$rendered/custom.yaml" ] && what=', which alone knows the custom resources' || what=
    skip "server-side dry run$what: it needs CLUSTER=1"
    continue
  fi
  # A dry run creates no namespace. Without the namespace holdfast, the objects are tried in `default`.
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
      --field-manager=check -f "$rendered/asked" >"$rendered/output" 2>&1; then
      failed "server-side dry run, $what: $(grep -v 'serverside-applied' "$rendered/output")"
    elif grep -i '^warning' "$rendered/output"; then
      failed "server-side dry run, $what, with warnings"
    else
      passed "server-side dry run on $cluster, $what: $(grep -c applied "$rendered/output") objects"
    fi
  done
  if [ "$name" = production ] && grep -q 192.0.2.1/32 "$all"; then
    api=$(kubectl get endpointslices -n default -l kubernetes.io/service-name=kubernetes -o 'jsonpath={.items[*].endpoints[*].addresses[*]}')
    skip "the way to the cluster's API: network.yaml does not name its addresses yet: $api"
  fi
  if [ "$name" = production ] && grep -q issuer.example.com "$all"; then
    skip "the callers: TOKEN_ISSUER in kustomization.yaml, and its address in network.yaml, name no issuer yet"
  fi
  # Without the namespace, the cluster cannot check its rules for pods.
  [ "$into" = holdfast ] || skip 'pod security as enforced: the cluster has no namespace holdfast'
done
[ "$faults" = 0 ]
