-- What every service keeps for its three loops. This file is the same in every service, on purpose:
-- a service's migrations show its whole database. `make check` compares the copies.

-- Events that were decided and not yet acknowledged by the broker. The relay deletes a row when its
-- record is acknowledged, so the table is as long as what is waiting.
create table outbox (
    -- Drawn while the aggregate is locked, so it orders the events of one key. It does not order
    -- commits: the relay takes what is there and never continues after the last one it saw.
    position           bigint generated always as identity primary key,
    event_id           uuid not null,
    topic              text not null,
    key                text not null,
    schema_fingerprint bytea not null,
    -- Without the wire header: writing an event needs no registry. The bound is the chassis's
    -- `BODY_BYTES_MAX`, well below what a broker takes.
    body               bytea not null check (octet_length(body) <= 262144),
    traceparent        text,
    causation_id       uuid,
    occurred_at        timestamptz not null
)
-- Rows come and go by the thousand: the default of a fifth of the table would let it bloat.
with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);

-- The text of each schema that an outbox row was written with, so that a relay of an older version
-- can publish what a newer replica wrote.
create table outbox_schemas (
    fingerprint bytea primary key,
    schema      text not null
);

-- How much time has passed, as the processes of the service measured it by clocks that nobody sets. One row
-- is added about once a minute while any of them runs. What must not be forgotten early is numbered by the
-- newest row when it is written: its age is a difference between two rows here, and no date is compared.
create table clock_ticks (
    tick       integer primary key,
    -- Since tick 0, without the time in which no process ran or the machine slept.
    elapsed_ms bigint not null unique,
    -- What the database took for the time.
    recorded_at timestamptz not null default now()
);
insert into clock_ticks (tick, elapsed_ms) values (0, 0);

-- One row for each event that was handled, written in the transaction of its effect.
create table inbox (
    event_id    uuid primary key,
    topic       text not null,
    -- The newest of clock_ticks when the event was handled.
    tick        integer not null,
    received_at timestamptz not null default now(),
    -- Tries that handling it took: one, unless something had to pass first.
    attempts    integer not null default 1
);
-- For pruning by age. Not a BRIN: once pruned pages are filled anew, each of its ranges
-- reaches from the oldest row there ever was to the newest, and every look reads the whole table.
create index inbox_tick on inbox (tick);

-- Answers to commands that came with an Idempotency-Key, for 24 hours at least.
create table idempotency_keys (
    path         text not null,
    key          text not null,
    request_hash bytea not null,
    status       smallint not null,
    location     text,
    body         bytea not null,
    created_at   timestamptz not null default now(),
    -- The newest of clock_ticks when the key was stored.
    tick         integer not null,
    primary key (path, key)
);
create index idempotency_keys_tick on idempotency_keys (tick);

-- Events that can never be handled, set aside with their bytes and the reason.
create table dead_letters (
    dead_letter_id bigint generated always as identity primary key,
    -- Where it lies. A cluster made anew counts from 0 again, hence its id and the hash.
    cluster     text not null,
    topic       text not null,
    partition   integer not null,
    "offset"    bigint not null,
    hash        bytea not null,
    event_id    uuid,
    key         bytea,
    headers     jsonb not null,
    -- Null is what the record held, not an omission.
    record      bytea,
    kind        text not null check (kind in ('undecodable', 'unprocessable', 'handler_failed')),
    reason      text not null,
    attempts    integer not null default 1,
    -- Left once. Settled letters stay: a record that is read again meets its own.
    state       text not null default 'waiting' check (state in ('waiting', 'replayed', 'discarded')),
    -- Why it was discarded, in the operator's words.
    discard_reason text,
    received_at timestamptz not null default now(),
    settled_at  timestamptz,
    unique (cluster, topic, partition, "offset", hash)
);
create index dead_letters_waiting on dead_letters (dead_letter_id) where state = 'waiting';
create index dead_letters_discarded on dead_letters (event_id) where state = 'discarded';

-- What was given up with discarded letters, of which the books show the sums.
create table write_offs (
    write_off_id   bigint generated always as identity primary key,
    dead_letter_id bigint not null references dead_letters,
    description    text not null,
    amount         bigint not null check (amount >= 0),
    unit           text not null,
    written_off_at timestamptz not null default now()
);

-- Whether the consumer was paused by a run of events that it could not handle. One row.
create table consumer (
    singleton boolean primary key default true check (singleton),
    paused_at timestamptz,
    reason    text
);
insert into consumer default values;
