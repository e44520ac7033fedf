#!/usr/bin/env bash
# Forwards the demo overlay to the ports of `make up`, until it is interrupted, so that `make verify
# STACK=k8s` and curl work as with the other stacks. A forward ends with its pod, and is started
# again.
set -euo pipefail

forward() { # resource, ports as local:remote
  local pid=
  trap 'kill $pid; exit' TERM
  while sleep 0.5; do
    kubectl --namespace holdfast port-forward "$@" >/dev/null 2>&1 &
    pid=$!
    wait "$pid" || true
  done
}

# The ports of a service follow from its position, as in each stack.
services=($(sed -n 's/^ *"\(.*\)",/\1/p' "$(dirname "$0")/../services/list.rs"))
ports=(8000 8081 9092 16686)
for nth in $(seq ${#services[@]}); do
  ports+=($((8000 + nth)) $((9000 + nth)) $((9010 + nth)) $((54320 + nth)))
done

kubectl get namespace holdfast >/dev/null
for port in "${ports[@]}"; do
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "port $port is already in use: by another stack? \`make down\`, \`docker compose down\`" >&2
    exit 1
  fi
done

trap 'kill $(jobs -p)' EXIT
trap exit INT TERM
nth=1
for service in "${services[@]}"; do
  # The probe port and the admin port listen in the pod, and no Service leads there.
  forward "deployment/$service" "$((8000 + nth)):8080" "$((9000 + nth)):9090" "$((9010 + nth)):9091" &
  forward "service/$service-db" "$((54320 + nth)):5432" &
  nth=$((nth + 1))
done
forward deployment/console 8000:8080 &
forward service/registry 8081:8080 &
forward statefulset/kafka 9092:9094 &
forward statefulset/jaeger 16686:16686 &
echo "forwarding the control room (8000), ${services[*]} (8001 to $((8000 + nth - 1))) and what they stand on, and Jaeger (16686); Ctrl-C ends it"
wait
