#!/bin/sh
# Checks that this machine has the tools that cargo and Maven cannot fetch.
# The script installs missing tools on Debian and Ubuntu, as root or with passwordless sudo. On other machines it
# prints what to install, and fails.
set -eu

absent=
want() { absent="$absent $1"; } # the argument is the name of a Debian package

command -v gcc >/dev/null || want gcc
command -v g++ >/dev/null || want g++
command -v make >/dev/null || want make
command -v xz >/dev/null || want xz-utils
command -v setpriv >/dev/null || want util-linux
command -v mvn >/dev/null || want maven
# `tools.sh browser`: for the test of the control room. Chrome is as good as Chromium, and Ubuntu has no package of either.
if [ "${1:-}" = browser ]; then
  command -v chromium >/dev/null || command -v google-chrome >/dev/null || want chromium
  command -v chromedriver >/dev/null || want chromium-driver
fi
# `tools.sh streams`: for the stream processor, which Maven compiles.
if [ "${1:-}" = streams ]; then
  command -v "${JAVA_HOME:+$JAVA_HOME/bin/}javac" >/dev/null || want jdk
fi
if command -v pkg-config >/dev/null; then
  pkg-config --exists openssl || want libssl-dev
  pkg-config --exists zlib || want zlib1g-dev
else
  absent="$absent pkg-config libssl-dev zlib1g-dev"
fi

# The file `release` beside Java has its version. To start Java for it would take longer than the rest of this script.
java=$(command -v "${JAVA_HOME:+$JAVA_HOME/bin/}java" || true)
release=$(dirname "$(dirname "$(readlink -f "${java:-/nowhere/bin/java}" || true)")")/release
major=$(sed -n 's/^JAVA_VERSION="\([0-9]*\).*/\1/p' "$release" 2>/dev/null || true)
if [ -n "$java" ] && [ -z "$major" ]; then
  major=$("$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')
fi
[ "${major:-0}" -ge 17 ] || want java

if ! command -v cargo >/dev/null; then
  echo "Rust is missing: install it with https://rustup.rs, then run this again." >&2
  exit 1
fi
[ -n "$absent" ] || exit 0

case "$absent" in
*java*)
  if [ -n "${JAVA_HOME:-}" ]; then
    echo "JAVA_HOME points to Java ${major:-(none)}: set it to Java 17 or newer, or unset it." >&2
    exit 1
  fi
  ;;
esac

if [ "$(id -u)" = 0 ]; then
  as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  as_root=sudo
else
  as_root=none
fi
if [ "$as_root" = none ] || ! command -v apt-get >/dev/null; then
  echo "This machine lacks (named as in Debian): $(echo "$absent" | sed 's/ java/ openjdk-17-jre-headless/; s/ jdk/ openjdk-17-jdk-headless/; s/^ //'); install them, then run this again." >&2
  exit 1
fi

echo "installing with apt-get, as root, once:$absent …" >&2
log=$(mktemp)
# apt waits for its lock, because a fresh machine often updates itself in its first minutes.
apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1 </dev/null; }
fail() {
  tail -n 20 "$log" >&2
  echo "apt-get could not install:$absent (its last lines are above)." >&2
  exit 1
}
apt update || fail
case "$absent" in
*jdk*)
  # It has Java as well.
  for version in 25 21 17; do
    if apt-cache show "openjdk-$version-jdk-headless" >/dev/null 2>&1; then
      absent=$(echo "$absent" | sed "s/ java//; s/jdk/openjdk-$version-jdk-headless/")
      break
    fi
  done
  ;;
*java*)
  # The newest long-term release of this distribution.
  for jre in openjdk-25-jre-headless openjdk-21-jre-headless openjdk-17-jre-headless; do
    if apt-cache show "$jre" >/dev/null 2>&1; then
      absent=$(echo "$absent" | sed "s/java/$jre/")
      break
    fi
  done
  ;;
esac
# shellcheck disable=SC2086  # each word is a package
apt install --no-install-recommends $absent || fail
rm -f "$log"
