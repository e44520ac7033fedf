#!/usr/bin/env bash
# Hostile input: requests that schemathesis generates from each service's own description, then fuzzing.
# `hostile.sh E2E MINUTES [SEED]`: E2E is the launcher, MINUTES the time for each fuzz target (0: no fuzzing), and SEED
# the seed of the requests and of the fuzzer. CASES is the maximum of test cases for an operation. With SECURE=1 it asks
# a secured stack, first without a token and then with one that has every scope of a customer and of the shop.
# The script installs its tools into target/, once. It sends requests to loopback only, and prints one line for each part.
set -euo pipefail
cd "$(dirname "$0")/.."
e2e=$1 minutes=$2 seed=${3:-$((RANDOM + 1))}
target=$(realpath "$(dirname "$e2e")/..")
tools=$target/tools into=$target/hostile
mkdir -p "$into"

# The minimum of requests to all three services together, unless CASES was set.
cases=${CASES:-1500} cases_min=$([ -n "${CASES:-}" ] && echo 1 || echo 20000)
# The test cases for an operation that refuses nearly all of them, because they have no token.
cases_without_token=$((cases < 100 ? cases : 100))
# The test cases for an operation of the admin port: each reads the books, or searches the outbox.
cases_of_operators=$((cases < 200 ? cases : 200))
schemathesis=$(sed -n 's/^schemathesis==\([^ ]*\).*/\1/p' e2e/schemathesis.txt)
# The nightly compiler of one day, and the day of its source, by which a toolchain called `nightly` may be the same one.
nightly=nightly-2026-05-20 nightly_source=2026-05-19

if [ ! -x "$tools/schemathesis-$schemathesis/bin/schemathesis" ]; then
  echo "installing schemathesis $schemathesis …"
  python3 -m venv "$tools/schemathesis-$schemathesis" || {
    echo "schemathesis needs Python 3.11 or newer with venv (python3-venv in Debian)" >&2
    exit 1
  }
  "$tools/schemathesis-$schemathesis/bin/pip" install --quiet --require-hashes -r e2e/schemathesis.txt
fi
toolchain=none
[ "$minutes" = 0 ] || for toolchain in "$nightly" nightly none; do
  ! rustup run "$toolchain" rustc --version 2>/dev/null | grep -q "nightly (.* $nightly_source)" || break
done
if [ "$minutes" != 0 ] && [ "$toolchain" = none ]; then
  echo "fuzzing needs the nightly compiler of one day: rustup toolchain install $nightly" >&2
  exit 1
fi
if [ "$minutes" != 0 ] && [ ! -x "$tools/bin/cargo-fuzz" ]; then
  echo "installing cargo-fuzz …"
  cargo install --quiet --locked --root "$tools" cargo-fuzz@0.13.1
fi

ended=0 generated=0
# Generates requests to the API of all services: `generate CONFIG CASES [OPTION…]`.
generate() {
  local config=$1 cases=$2 service url
  shift 2
  while read -r service url _; do
    generate_for "$service" "$config" "$url/openapi.json" "$cases" "$@"
  done <"$into/services"
}

# Generates requests to the admin port of all services. They only read: a stack that was up may have dead letters, and a
# generated discard would be final. The port shows its description to operators alone, and schemathesis reads it without
# a token. So this function reads it.
generate_for_admin_ports() {
  local config=$1 cases=$2 service url document
  shift 2
  while read -r service _ url; do
    document=$into/$service-admin.json
    curl -sS --fail ${ca:+--cacert "$ca"} -H @- "$url/openapi.json" <<<"Authorization: Bearer ${TOKEN:-none}" >"$document"
    generate_for "$service-admin" "$config" "$document" "$cases" --url "$url" --include-method GET "$@"
  done <"$into/services"
}

# Generates requests from one description: `generate_for NAME CONFIG DESCRIPTION CASES [OPTION…]`.
# One worker: Python 3.11's parser counts the depth of all threads as one, so parsing in several threads sometimes fails.
generate_for() {
  local service=$1 config=$2 description=$3 cases=$4 count
  shift 4
  local log=$into/$(basename "$config" .toml)-$service.log
  if "$tools/schemathesis-$schemathesis/bin/schemathesis" --config-file "$config" run "$description" --checks all \
    --max-examples "$cases" --seed "$seed" --workers 1 --no-shrink "$@" >"$log" 2>&1; then
    echo "  $service: $(grep -Eo '[0-9,]+ generated.*' "$log" | tail -1)"
  else
    echo "  $service: the answers differ from the description; $log ends with:"
    tail -40 "$log"
    ended=1
  fi
  # Its summary has a line such as "513 generated, 513 passed"; an interrupted run has none.
  count=$(sed -nE 's/^ *([0-9,]+) generated.*/\1/p' "$log" | tail -1 | tr -d ,)
  generated=$((generated + ${count:-0}))
}

echo "schemathesis, seed $seed"
# The output is read completely before it is searched: a writer to a closed pipe dies of SIGPIPE.
status=$("$e2e" status 2>/dev/null || true)
grep -q ready <<<"$status" && was_up=1 || was_up=0
"$e2e" up >"$into/stack"
# A line of a service has its name, its URL and that of its admin port. Other lines have no admin port.
sed -nE 's/^([^ ]+) +(https?:[^ ]+) +admin (https?:[^ ]+)$/\1 \2 \3/p' "$into/stack" >"$into/services"
ca=$(sed -n 's/^CA *//p' "$into/stack")
if [ -z "$ca" ]; then
  # This stack knows no callers, so it ignores the tokens that its description asks for. With a token of no issuer in
  # every request, no request without one counts as malformed.
  without_callers=(--exclude-checks ignored_auth,missing_required_header -H "Authorization: Bearer none")
  generate e2e/schemathesis.toml "$cases" "${without_callers[@]}"
  generate_for_admin_ports e2e/schemathesis.toml "$cases_of_operators" "${without_callers[@]}"
else
  echo "  without a token"
  generate e2e/schemathesis.toml "$cases_without_token" --tls-verify "$ca"
  echo "  with a token"
  # In the environment, because other users of the machine can read the arguments of a process.
  TOKEN=$("$e2e" token 01900000-0000-7000-8000-000000000001 --minutes 120 \
    --scope "orders:read orders:write accounts:read accounts:deposit items:write deliveries:write support:read")
  export TOKEN
  generate e2e/schemathesis-with-token.toml "$cases" --tls-verify "$ca"
  echo "  with a token of an operator"
  TOKEN=$("$e2e" token hostile --minutes 120 --scope operator)
  generate_for_admin_ports e2e/schemathesis-with-token.toml "$cases_of_operators" --tls-verify "$ca"
fi
echo "  $generated requests in all, of $cases_min at least"
[ "$generated" -ge "$cases_min" ] || ended=1
"$e2e" verify | tail -1 || ended=1
[ "$was_up" = 1 ] || "$e2e" down
[ "$minutes" != 0 ] || exit $ended

export PATH=$tools/bin:$PATH
for fuzzed in wire order payment stock token; do
  corpus=$into/corpus/$fuzzed log=$into/fuzz-$fuzzed.log
  mkdir -p "$corpus"
  echo "fuzzing $fuzzed for $minutes minutes, seed $seed …"
  # No sanitizer: the fuzzed code has no `unsafe`. It calls one C library, OpenSSL, for signatures.
  if (cd e2e/fuzz && cargo "+$toolchain" fuzz run "$fuzzed" "$corpus" "seeds/$fuzzed" --fuzz-dir . --sanitizer none \
    --target-dir "$target/fuzz" -- -seed="$seed" -max_total_time=$((minutes * 60)) -rss_limit_mb=512 -timeout=25 \
    -max_len=65536 -dict=http.dict -artifact_prefix="$into/$fuzzed-" -print_final_stats=1) >"$log" 2>&1; then
    echo "  $(grep -E 'Done [0-9]+ runs' "$log"), $(grep -Eo 'peak_rss_mb: *[0-9]+' "$log")"
    grep -Eq "[1-9][0-9]* files found in seeds/$fuzzed$" "$log" || {
      echo "  the fuzzer did not begin with the seeds in e2e/fuzz/seeds/$fuzzed"
      ended=1
    }
  else
    echo "  the fuzzer found a fault; $log ends with:"
    tail -30 "$log"
    ended=1
  fi
done
exit $ended
