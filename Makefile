# Every command of the project; CI runs only these. `make` lists the usual ones, and `make all-targets` all.
# A component of the stack is named by SERVICE=: `make status` lists them; order-2 is a second instance of order.
# STACK=compose: on docker compose work demo, up, down, clean, status, logs, kill, stop, start, load, outage, verify,
# dead-letters, dead-letter, replay, discard, pause, resume, poison, sql, republish, rebuild, rebuild-order and timeline. Like all
# targets they need the Rust toolchain. They read exported variables, and no file `.env`.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Where rustup puts cargo, for a shell that was opened before.
export PATH := $(PATH):$(HOME)/.cargo/bin
# What cargo reads: a variable, and then .cargo/config.toml.
CARGO_TARGET := $(or $(CARGO_TARGET_DIR),$(CARGO_BUILD_TARGET_DIR),target)
# CARGO_BUILD_TARGET would put the programs into a folder of that target's name.
unexport CARGO_BUILD_TARGET
TARGET := $(CARGO_TARGET)/ci
E2E := $(TARGET)/e2e
# The services of the saga: those with a database. The control room is none of them.
SAGA_SERVICES = $(shell sed -n 's/^ *"\(.*\)",/\1/p' services/list.rs)
BUILD = cargo build $(addprefix --package ,$(SAGA_SERVICES) shipping carrier console declaration e2e) --profile ci --locked
# One of the ignored tests runs the benchmark.
BUILD_BENCH = cargo build --package bench --profile ci --locked --quiet
# What is tested: everything, or the library of one service. `bench` has no library: with it, cargo gives the
# dependencies the features of the whole workspace, and compiles none a second time.
TESTED = $(if $(SERVICE),--package $(SERVICE) --package bench --lib,--workspace)
# Fails if a required variable of a target is missing: $(call need,SERVICE ID).
need = $(foreach name,$(1),$(if $(value $(name)),,$(error set $(name)=…, as in: make $@ $(foreach it,$(1),$(it)=…))))

# The targets whose text begins with this mark: \#\# is in the list that `make` shows, and \#- is not.
list = sed -n 's/^\([a-z-]*\):.*$(1) /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target text; do printf '  make %-16s %s\n' "$$target" "$$text"; done

# The version that CI installs.
CARGO_DENY := 0.20.2

# The crates that a team depends on, without their prefix.
LIBRARIES := chassis checker contracts derive faults host launcher messaging ops-client testing

.PHONY: help all-targets demo test up down clean status logs kill stop start load outage verify service schema check build tools
.PHONY: relay connectors end-transactions alerts crash-points crash-programs monitoring
.PHONY: dead-letters dead-letter replay discard pause resume poison sql token report
.PHONY: pin new streams browser chaos denials faults rotate long-outage hostile republish rewind lose-disk rebuild rebuild-order erase timeline openapi bench microbench mutants

help: ## List these targets
	@$(call list,\#\#)

all-targets: ## List these and all others, for proofs, repairs and maintainers
	@$(call list,\#[\#-])

demo: build ## Start everything, kill stock, go on placing orders; every order ends and the books balance
	@$(E2E) demo

# Most tests wait most of the time; those that need the machine for themselves take turns.
test: build $(if $(ONLY)$(SERVICE),,crash-programs streams) ## Every test but those of faults, on real Kafka, registry and databases (ONLY=a_name: whose names contain it; SERVICE=x: its own)
	@$(if $(findstring -ignored,$(ONLY)),$(BUILD_BENCH))
	@cargo test $(TESTED) --profile ci --locked --no-run --quiet $(ONLY)
	@RUST_TEST_THREADS=5 $(E2E) with-infrastructure -- cargo test $(TESTED) --profile ci --locked --no-fail-fast $(ONLY)

# In docker compose, a profile has what these variables ask for. An empty profile is none.
FLOWS = $(if $(STREAMS)$(CONNECT)$(REPORTING)$(filter cdc,$(RELAY)),flows)
up: export COMPOSE_PROFILES := $(FLOWS:%=%,)$(SHIPPING:%=shipping,)$(COMPOSE_PROFILES)
up: build ## Start the stack in the background, INSTANCES=1 to 9 of each service; returns when everything is ready (STREAMS=1: with insights; CONNECT=1: with Kafka Connect; RELAY=cdc: its connectors carry the outboxes; REPORTING=1: with the reporting database; SHIPPING=1: with shipping, and a carrier)
	@$(if $(STREAMS)$(REPORTING),sh e2e/tools.sh streams)
	@$(E2E) up $(if $(INSTANCES),--instances $(INSTANCES))

relay: build #- Switch between the relays and the connectors while the stack runs: RELAY=cdc or RELAY=service
	@$(call need,RELAY)$(E2E) relay "$(RELAY)"

connectors: build #- Create the connectors of a stack with Kafka Connect, or change them to what their files say
	@$(E2E) connectors

down: build ## Stop the stack, keep all data
	@$(E2E) down

clean: build ## Stop the stack, delete all data
	@$(E2E) clean

status: build ## Show every component with its port, state and memory
	@$(E2E) status

logs: build ## Last lines of the log of SERVICE=x (FOLLOW=1 goes on printing)
	@$(E2E) logs "$(SERVICE)" $(if $(FOLLOW),--follow)

kill: build ## SIGKILL to SERVICE=x
	@$(E2E) kill "$(SERVICE)"

stop: build ## Stop SERVICE=x gracefully
	@$(E2E) stop "$(SERVICE)"

start: build ## Start SERVICE=x again
	@$(E2E) start "$(SERVICE)"

load: build ## Place orders on the running stack, and wait until each has ended (RATE=100 SECONDS=90; SEED=s; VERIFY=1: and check)
	@$(E2E) load $(if $(RATE),--rate-per-second $(RATE)) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(VERIFY),--verify)

outage: build ## A load, SIGKILL to SERVICE=x, and the proof: any component, all, or instances (RATE=100 SECONDS=90 KILLS=3 DOWN=5)
	@$(E2E) outage "$(SERVICE)" $(if $(RATE),--rate-per-second $(RATE)) $(if $(SECONDS),--load-seconds $(SECONDS)) \
	  $(if $(KILLS),--kills $(KILLS)) $(if $(DOWN),--down-seconds $(DOWN))

crash-points: build crash-programs #- Kill the services at every crash point, and prove that nothing was lost (ONCE=1: first hits only; SEED=s)
	@$(E2E) crash-points $(if $(ONCE),--once) $(if $(SEED),--seed $(SEED))

chaos: build ## Load and faults drawn from SEED=s for MINUTES=30, on a stack of its own; a report in target/chaos
	@$(E2E) chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

faults: build crash-programs #- The faults that take minutes each, three brokers, a small disk or a wrong clock (about 100 minutes; ALLOW_SKIP=1 without root, Go, Python, nginx or tcpdump)
	@$(BUILD_BENCH)
	@RUST_TEST_THREADS=1 $(E2E) with-infrastructure -- cargo test --workspace --profile ci --locked --no-fail-fast -- --ignored \
	  faults::long:: crash_points:: new_service:: outages:: poison:: republish:: skipped_records:: three_orders

alerts: build #- Make the fault of each alert on a stack of its own, with durations of a tenth; each fires and resolves (ten minutes; ONLY=KafkaAway)
	@$(E2E) alerts $(if $(ONLY),--only $(ONLY))

streams: tools #- The tests of the stream processor and of the converter for Kafka Connect, in Java (half a minute; Maven fetches their libraries once)
	@sh e2e/tools.sh streams
	@mvn -B -q -f services/insights/pom.xml test
	@mvn -B -q -f services/reporting/pom.xml test

browser: build #- The control room in a headless Chromium or Chrome, with a picture of each page in target/screenshots (six minutes; ALLOW_SKIP=1 without Go, which builds Prometheus once)
	@sh e2e/tools.sh browser
	@cargo test --package e2e --test main --profile ci --locked -- --ignored control_room::

denials: build #- Attempt every act with every identity on Kafka, the databases and the registry of a secured stack: only what is declared is allowed (REWRITE=1: into the golden file)
	@$(if $(REWRITE),REWRITE_DENIALS=1 )cargo test --package e2e --test main --profile ci --locked -- denials:: wires::

rotate: build #- Renew passwords, certificates and the key of tokens of a stack with SECURE=1 while it works (EVERYTHING=1: the authority and superusers as well)
	@$(E2E) rotate $(if $(EVERYTHING),--everything)

long-outage: build #- Stop stock for MINUTES=10 at RATE=200 orders a second; it catches up while new orders arrive
	@$(E2E) outage stock --catch-up --rate-per-second $(or $(RATE),200) --down-seconds $$((60 * $(or $(MINUTES),10)))

hostile: build #- Slow, oversized and numerous clients; requests made of the API's description; fuzzing, MINUTES=10 each target
	@$(E2E) hostile
	@e2e/hostile.sh "$(E2E)" $(or $(MINUTES),10) $(SEED)

token: build #- Print a token for the secured stack: WHO=<id of a customer, or a name> SCOPE="orders:read orders:write" (MINUTES=60)
	@$(call need,WHO SCOPE)$(E2E) token "$(WHO)" --scope "$(SCOPE)" $(if $(MINUTES),--minutes "$(MINUTES)")

verify: build ## Check that nothing was lost or applied twice and that the books balance
	@$(E2E) verify

# A benchmark gives its components more memory than the small, quick stack has. The write-ahead log stays within
# Postgres' default of 1 GB, so that its files are used again: docs/performance.md. Checkpoints are those of the default.
bench: export KAFKA_JAVA_OPTS ?= -Xms1g -Xmx1g -XX:+UseParallelGC
bench: export POSTGRES_OPTS ?= -c shared_buffers=1GB -c min_wal_size=1GB -c track_commit_timestamp=on
# Debian compiles PostgreSQL for speed, and what `make` fetches is compiled for size. The newest of 17 and later serves.
bench: export POSTGRES_BIN ?= $(lastword $(sort $(wildcard /usr/lib/postgresql/1[7-9]/bin /usr/lib/postgresql/[2-9][0-9]/bin)))
bench: tools #- How many sagas a second, how fast, at what cost: PART="closed open", or all of it (forty minutes); AGAINST="reference commit": this checkout beside others, in turn
	@cargo build --workspace --release --locked 2>&1 | sed -u '/^ *Finished /d' >&2
	@$(CARGO_TARGET)/release/bench $(PART) $(if $(AGAINST),--against "$(AGAINST)") $(if $(CALLERS),--callers $(CALLERS)) $(if $(REPEATS),--repeats $(REPEATS)) --into target/bench

microbench: build #- The cost of single steps: encoding and decoding events, outbox and inbox statements, handlers (four minutes)
	@cargo bench --workspace --locked --bench '*' --no-run --quiet
	@$(E2E) with-infrastructure -- cargo bench --workspace --locked --quiet --bench '*' -- --quiet \
	  --sample-size 20 --warm-up-time 0.3 --measurement-time 1

mutants: build #- Put each mutant into a worktree and show that it is caught, and by what: ONLY="B1 B7", or all (forty minutes)
	@$(E2E) mutants $(ONLY)

pin: build #- Write the digest of every image that is pulled behind its tag (asks the registries, by docker)
	@$(E2E) pin

new: build ## Write a repository of your own with a service that depends on the crates: DIR=../shop NAME=shop (FROM=path or git URL; this checkout)
	@$(call need,DIR NAME)$(E2E) new "$(DIR)" --name "$(NAME)" --from "$(or $(FROM),$(CURDIR))"

service: build ## Generate a service of your own, NAME=loyalty, that consumes confirmed orders
	@[ -n "$(NAME)" ] || { echo "set the name of the service: make service NAME=loyalty" >&2; exit 1; }
	@$(E2E) service "$(NAME)"
	@$(MAKE) --no-print-directory schema

participant: build #- Generate a participant of the saga, NAME=fraud: a service whose yes an order needs (YES=cleared NO=flagged UNDONE=withdrawn KEPT=kept)
	@$(call need,NAME)$(E2E) participant "$(NAME)" $(if $(YES),--yes "$(YES)") $(if $(NO),--no "$(NO)") $(if $(UNDONE),--undone "$(UNDONE)") $(if $(KEPT),--kept "$(KEPT)")
	@$(MAKE) --no-print-directory schema
	@REWRITE_OPENAPI=1 REWRITE_STATEMENTS=1 $(E2E) with-infrastructure -- cargo test --workspace --lib --profile ci --locked --quiet -- \
	  the_committed_openapi_document the_rows_are_loaded_and_saved_by_the_statements_of_the_snapshot
	@REWRITE_CONNECTORS=1 cargo test --workspace --test main --profile ci --locked --quiet -- connectors_of_production_are_those_of_the_files

dead-letters: build ## Events that could not be handled and wait for an operator (SERVICE=x: of one service)
	@$(E2E) dead-letters $(SERVICE)

dead-letter: build #- Read one of them, decoded: SERVICE=x ID=n
	@$(call need,SERVICE ID)$(E2E) dead-letter "$(SERVICE)" "$(ID)"

replay: build ## Handle it now, after its cause was removed: SERVICE=x ID=n, or ID=all
	@$(call need,SERVICE ID)$(E2E) replay "$(SERVICE)" "$(ID)"

discard: build ## Discard it for good: SERVICE=x ID=n REASON="…" (asks; for scripts YES=1, CANCEL=1, WRITE_OFF=1)
	@$(call need,SERVICE ID REASON)$(E2E) discard "$(SERVICE)" "$(ID)" $(if $(YES),--yes) $(if $(CANCEL),--cancel) $(if $(WRITE_OFF),--write-off)

pause: build #- Pause the consumer of SERVICE=x in every instance, until it is resumed: REASON="…"
	@$(call need,SERVICE REASON)$(E2E) pause "$(SERVICE)"

resume: build #- Resume the consumer of SERVICE=x that an operator paused, or its circuit breaker (20 decodable events of one topic in a row could not be handled)
	@$(E2E) resume "$(SERVICE)"

poison: build #- Put a record that is not an event into orders.created, which makes a dead letter
	@$(E2E) poison

sql: build #- Run SQL="…" in the database of SERVICE=x, as its superuser
	@$(call need,SERVICE SQL)$(E2E) sql "$(SERVICE)"

report: build #- Print the report of the reporting database, which make up REPORTING=1 starts
	@$(E2E) report

republish: build #- Publish all events again, as after Kafka lost its disk (SERVICE=x, KEY=…, SINCE=time limit them)
	@$(E2E) republish $(if $(SERVICE),--service "$(SERVICE)") $(if $(KEY),--key "$(KEY)") $(if $(SINCE),--since "$(SINCE)")

rewind: build #- Move the consumer of SERVICE=x to TO=a time or an offset, on purpose: REASON="…" (TOPIC=, PARTITION=); the inbox absorbs what it knows
	@$(call need,SERVICE TO REASON)$(E2E) rewind "$(SERVICE)" --to "$(TO)" --reason "$(REASON)" \
	  $(if $(TOPIC),--topic "$(TOPIC)") $(if $(PARTITION),--partition "$(PARTITION)")

lose-disk: build #- Kill Kafka and delete its log directory: the disaster that republish repairs
	@$(E2E) lose-disk

end-transactions: build #- Abort the Kafka transactions that a crash of the broker left open: docs/how-to/cdc.md
	@$(E2E) end-transactions

rebuild: build #- Rebuild the order service's copy of the items from their topic
	@$(E2E) rebuild

rebuild-order: build #- Rebuild the row of order ID=… from its history
	@$(call need,ID)$(E2E) rebuild-order "$(ID)"

# The id reaches the program by its environment, so no list of processes shows it.
erase: export CUSTOMER := $(CUSTOMER)
erase: export REPLACEMENT := $(REPLACEMENT)
erase: build #- Replace the id of the customer CUSTOMER=<id> in all databases, once every order has ended
	@$(E2E) erase

timeline: build ## Show the timeline of the order ID=…: every event, its waiting times, and what is pending
	@$(call need,ID)$(E2E) timeline "$(ID)"

schema: build ## Record a changed schema as its next version, if it is compatible with all earlier ones; rewrite docs/asyncapi.json, the topics and users of Kafka for Strimzi, and what docker compose has of further services
	@$(TARGET)/contracts record
	@$(TARGET)/contracts asyncapi >docs/asyncapi.json
	@$(TARGET)/contracts topics >k8s/overlays/production/topics.yaml
	@$(TARGET)/contracts users >k8s/overlays/production/users.yaml
	@for feature in connect cdc reporting; do $(TARGET)/contracts users $$feature >k8s/components/$$feature/users.yaml; done
	@$(E2E) compose-override

monitoring: tools #- Rewrite what docker compose mounts of k8s/monitoring
	@REWRITE_MONITORING=1 cargo test --package e2e --test main --profile ci --locked --quiet -- docker_compose_mounts_what_the_folder_has

openapi: tools #- Rewrite openapi.json of each service, and admin-openapi.json, from the code
	@REWRITE_OPENAPI=1 cargo test --workspace --lib --profile ci --locked --quiet -- the_committed_openapi_document

check: build ## Formatting, lints and documentation (warnings are errors), packages, contracts and the shape of the tree (CLUSTER=1: also a dry run on kubectl's cluster)
	@cargo fmt --check
	@bash k8s/check.sh
	@bash k8s/monitoring/check.sh
	@if docker compose version >/dev/null 2>&1; then docker compose config --quiet && docker compose $(foreach file,docker-compose.yml $(wildcard docker-compose.override.yml) docker-compose.secure.yml $(wildcard docker-compose.secure.override.yml),-f $(file)) config --quiet; else echo "  skipped  docker-compose.yml: there is no docker compose"; fi
	@if command -v cargo-deny >/dev/null; then cargo deny --locked --log-level error check bans licenses sources --hide-inclusion-graph; else echo "  skipped  the dependencies: there is no cargo-deny (cargo install --locked cargo-deny@$(CARGO_DENY))"; fi
	@cargo package --no-verify --allow-dirty --locked --quiet $(addprefix --package holdfast-,$(LIBRARIES))
	@cargo clippy --workspace --all-targets --profile ci --locked -- -D warnings
	@RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --profile ci --locked --quiet $(addprefix --package holdfast-,$(LIBRARIES))
	@cargo check --manifest-path e2e/fuzz/Cargo.toml --target-dir $(CARGO_TARGET)/fuzz --locked --quiet
	@cargo test --workspace --profile ci --locked --quiet -- structure:: versions:: compatibility:: every_struct_ every_variant_ every_schema_file_ every_consumer_ every_recorded_version every_service_says_ an_added_event_ the_readers_ a_reader_survives the_committed_openapi_document the_committed_asyncapi_document the_committed_topics the_committed_users manifests:: every_mutant_applies every_line_that_the_newer_version_replaces

# Tests and benchmarks are compiled by the targets that run them. The first time, cargo shows its progress on a terminal.
build: tools ## Compile the services and the programs of the stack, in the profile of all tests and demos
	@if [ -e $(E2E) ]; then $(BUILD) 2>&1 | sed -u '/^ *Finished /d' >&2; else \
	  echo "compiling 420 crates, once: six to nine minutes on two cores. Kafka, a schema registry and PostgreSQL are fetched next (165 MB) …" >&2; \
	  $(BUILD); fi
	@[ -e $(E2E) ] || { echo "cargo wrote no $(E2E): unset build.target in the configuration of cargo (in ~/.cargo, or in a folder above)" >&2; exit 1; }

# The services with crash points, in a directory beside the ordinary programs. Both share the compiled
# dependencies, so only our own crates are compiled twice.
crash-programs: tools #- Compile the services with crash points, for the tests that kill them there
	@CARGO_BUILD_BUILD_DIR=$(CARGO_TARGET) cargo build --workspace --profile ci --locked --features holdfast-messaging/crash-points \
	  --target-dir $(CARGO_TARGET)/crash-points $(addprefix --bin ,$(SAGA_SERVICES) shipping) \
	  2>&1 | sed -u '/^ *Finished /d' >&2

tools:
	@sh e2e/tools.sh
