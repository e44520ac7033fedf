#!/usr/bin/env bash
# Prints the path of a program of others: `build.sh promtool`, `prometheus`, `lag-exporter`, `postgres-exporter` or
# `oauth2-proxy`.
# One on the PATH is taken as it is. Each other one is built or fetched once, into the cache of the launcher:
# - Prometheus and promtool with Go, which checks what it fetches against go.sum;
# - oauth2-proxy with Go, too;
# - the exporter of lag with cargo, by the lock file of its crate;
# - the exporter of Postgres from the package of Debian.
# Where a program cannot be had, the script fails, and its last line says why.
set -euo pipefail
program=$1
cd "$(dirname "$0")"

if [ "$(id -u)" = 0 ]; then default=/var/cache/holdfast; else default=${XDG_CACHE_HOME:-$HOME/.cache}/holdfast; fi
cache=${HOLDFAST_CACHE:-$default}
# The version of the exporter of lag is that of its image.
lag_exporter=$(sed -n 's|.*softwaremill/klag-exporter:||p' ../../k8s/monitoring/lag-exporter.yaml)

fail() {
  echo "$*" >&2
  exit 1
}

case $program in
lag-exporter) installed=klag-exporter ;;
postgres-exporter) installed=prometheus-postgres-exporter ;;
*) installed=$program ;;
esac
if command -v "$installed"; then exit 0; fi

case $program in
promtool | prometheus)
  version=$(sed -n 's|.*github.com/prometheus/prometheus v||p' go.mod)
  # Another list of checksums is another build.
  home=$cache/prometheus-$version-$(cat go.mod go.sum | sha256sum | cut -c 1-8)
  ;;
lag-exporter) version=$lag_exporter home=$cache/lag-exporter-$lag_exporter ;;
oauth2-proxy) version=7.15.6 home=$cache/oauth2-proxy-7.15.6 ;;
postgres-exporter) version=debian home=$cache/postgres-exporter-debian ;;
*) fail "there is no $program" ;;
esac

build() {
  case $program in
  promtool | prometheus)
    command -v go >/dev/null || fail "there is no Go, which builds $program"
    echo "building $program $version, once: about five minutes, and 3 GB of memory …" >&2
    CGO_ENABLED=0 GOFLAGS='-trimpath -buildvcs=false -mod=readonly' \
      go build -p 2 -ldflags='-s -w' -o "$home/new" "github.com/prometheus/prometheus/cmd/$program"
    ;;
  oauth2-proxy)
    command -v go >/dev/null || fail "there is no Go, which builds $program"
    echo "building oauth2-proxy $version, once: two minutes …" >&2
    CGO_ENABLED=0 GOBIN=$home/bin go install -p 2 -trimpath -ldflags='-s -w' \
      "github.com/oauth2-proxy/oauth2-proxy/v7@v$version" ||
      fail "Go could not build oauth2-proxy $version"
    mv "$home/bin/oauth2-proxy" "$home/new"
    ;;
  lag-exporter)
    pkg-config --exists libsasl2 libcurl || fail "the exporter of lag needs libsasl2-dev and libcurl4-openssl-dev (as Debian names them)"
    command -v cmake >/dev/null || fail "the exporter of lag needs cmake"
    echo "building klag-exporter $version, once: about five minutes …" >&2
    cargo install --quiet --locked --root "$home" "klag-exporter@$version"
    mv "$home/bin/klag-exporter" "$home/new"
    ;;
  postgres-exporter)
    command -v apt-get >/dev/null || fail "there is no prometheus-postgres-exporter, and no Debian to fetch it from"
    apt-cache show prometheus-postgres-exporter >/dev/null 2>&1 || apt-get -q update
    # Without its installation, which starts a service.
    (cd "$home" && apt-get download prometheus-postgres-exporter && dpkg -x ./*.deb package)
    mv "$home/package/usr/bin/prometheus-postgres-exporter" "$home/new"
    ;;
  esac
}

if [ ! -x "$home/$program" ]; then
  mkdir -p "$home"
  exec 9>"$home/lock"
  flock 9
  if [ ! -x "$home/$program" ]; then
    build >"$home/log" || fail "$program could not be had: $(tail -n 1 "$home/log")"
    # A build that was interrupted does not count.
    mv "$home/new" "$home/$program"
  fi
fi
echo "$home/$program"
