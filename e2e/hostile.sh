#!/usr/bin/env bash
# Hostile input: requests that schemathesis makes of each service's own description, then fuzzing.
# `hostile.sh E2E MINUTES [SEED]`: E2E is the launcher, MINUTES is how long each target is fuzzed. Tools are
# installed into target/, once. All of it goes to loopback, is bounded, and ends with one line for each part.
set -euo pipefail
cd "$(dirname "$0")/.."
e2e=$1 minutes=$2 seed=${3:-$RANDOM}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
tools=$target/tools into=$target/hostile
mkdir -p "$into"

# Test cases an operation, so that all three services together are asked more than 20,000 times.
cases=1500
schemathesis=4.32.5

if [ ! -x "$tools/schemathesis-$schemathesis/bin/schemathesis" ]; then
  echo "installing schemathesis $schemathesis …"
  python3 -m venv "$tools/schemathesis-$schemathesis" || {
    echo "schemathesis needs Python 3.10 or newer with venv (python3-venv in Debian)" >&2
    exit 1
  }
  "$tools/schemathesis-$schemathesis/bin/pip" install --quiet "schemathesis==$schemathesis"
fi
if ! rustup run nightly rustc --version >/dev/null 2>&1; then
  echo "fuzzing needs a nightly compiler: rustup toolchain install nightly" >&2
  exit 1
fi
if [ ! -x "$tools/bin/cargo-fuzz" ]; then
  echo "installing cargo-fuzz …"
  cargo install --quiet --locked --root "$tools" cargo-fuzz@0.13.1
fi

ended=0
echo "schemathesis, seed $seed"
"$e2e" status >/dev/null 2>&1 && "$e2e" status | grep -q ready && was_up=1 || was_up=0
"$e2e" up >"$into/services"
while read -r service url; do
  log=$into/schemathesis-$service.log
  if "$tools/schemathesis-$schemathesis/bin/schemathesis" --config-file e2e/schemathesis.toml run "$url/openapi.json" \
    --checks all --max-examples "$cases" --seed "$seed" --workers 4 --no-shrink >"$log" 2>&1; then
    echo "  $service: $(grep -Eo '[0-9,]+ generated.*' "$log" | tail -1)"
  else
    echo "  $service: NOT as described; $log ends with:"
    tail -40 "$log"
    ended=1
  fi
done <"$into/services"
"$e2e" verify | tail -1 || ended=1
[ "$was_up" = 1 ] || "$e2e" down

export PATH=$tools/bin:$PATH
for fuzzed in wire order payment stock; do
  corpus=$into/corpus/$fuzzed log=$into/fuzz-$fuzzed.log
  mkdir -p "$corpus"
  echo "fuzzing $fuzzed for $minutes minutes …"
  # Without a sanitizer: what is fuzzed has no unsafe code of its own, and the C libraries are not reached.
  if (cd e2e/fuzz && cargo +nightly fuzz run "$fuzzed" "$corpus" "seeds/$fuzzed" --fuzz-dir . --sanitizer none \
    --target-dir "$target/fuzz" -- -max_total_time=$((minutes * 60)) -rss_limit_mb=512 -timeout=25 \
    -max_len=65536 -dict=http.dict -artifact_prefix="$into/$fuzzed-" -print_final_stats=1) >"$log" 2>&1; then
    echo "  $(grep -E 'Done [0-9]+ runs' "$log"), $(grep -Eo 'peak_rss_mb: *[0-9]+' "$log")"
  else
    echo "  FOUND something; $log ends with:"
    tail -30 "$log"
    ended=1
  fi
done
exit $ended
