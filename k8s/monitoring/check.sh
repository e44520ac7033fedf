#!/usr/bin/env bash
# Checks the rules and the configuration of Prometheus, and proves each alert with the durations that ship. promtool is
# the one on the PATH, or one that Go builds once, in minutes; without both, the checks are skipped.
set -euo pipefail
cd "$(dirname "$0")"

echo "k8s/monitoring"
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
if ! promtool=$(bash ../../e2e/monitoring/build.sh promtool 2> >(tee "$built/reason" >&2)); then
  echo "  skipped  the rules: $(tail -n 1 "$built/reason")"
  exit 0
fi

# The rule file is what stands below `spec:`.
sed '1,/^spec:/d; s/^  //' rules.yaml >"$built/rules.yml"
sed "s|/etc/prometheus/|$built/|" prometheus.yml >"$built/prometheus.yml"
cp tests.yaml "$built"

check() {
  if "$promtool" "${@:2}" >"$built/output" 2>&1; then
    echo "  passed   $1"
  else
    echo "  FAILED   $1:"
    sed 's/^/    /' "$built/output"
    exit 1
  fi
}
check 'the configuration and the rules' check config "$built/prometheus.yml"
check "the alerts, by $(grep -c '^  - name:' tests.yaml) tests" test rules "$built/tests.yaml"
