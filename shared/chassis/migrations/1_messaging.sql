-- The tables of the chassis, in a schema of their own in the database of every service. `migrate` creates the schema
-- and applies this file before the migrations of the service.
--
-- The comments of tables and columns declare what the serving role may do there, and `migrate` grants it that: rows of
-- an `append-only` table are read and added, of a `deletable` one deleted as well, and only `mutable` columns change.

-- Events that a broker has not acknowledged yet. The relay deletes a row when its record is acknowledged, so the
-- table has only the rows that wait.
create table chassis.outbox (
    -- Drawn while the aggregate is locked, so it orders the events of one key. It does not order commits: the
    -- relay always begins at the first row, and does not continue behind the last row that it read.
    position           bigint generated always as identity primary key,
    event_id           uuid not null,
    topic              text not null,
    key                text not null,
    schema_fingerprint bytea not null,
    -- Without the wire header, so that writing an event needs no registry. The bound is `BODY_BYTES_MAX` of the
    -- chassis, well below the limit of a broker.
    body               bytea not null check (octet_length(body) <= 262144),
    traceparent        text,
    causation_id       uuid,
    occurred_at        timestamptz not null
)
-- Thousands of rows come and go: the default of a fifth of the table would let it bloat.
with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
comment on table chassis.outbox is 'append-only, deletable: an acknowledged row is deleted';

-- The text of each schema that an outbox row was written with, so that a relay of an older version
-- can publish what a newer replica wrote.
create table chassis.outbox_schemas (
    fingerprint bytea primary key,
    schema      text not null
);
comment on table chassis.outbox_schemas is 'append-only';

-- The time that the processes of the service have measured with their monotonic clocks. While one of them runs, a
-- row is added about once a minute. A row that must not be deleted early stores the number of the newest tick: its
-- age is the difference between two ticks, and no date is compared.
create table chassis.clock_ticks (
    tick       integer primary key,
    -- Since tick 0. The time in which no process ran or the machine slept is not counted.
    elapsed_ms bigint not null unique,
    -- The time by the clock of the database.
    recorded_at timestamptz not null default now()
);
insert into chassis.clock_ticks (tick, elapsed_ms) values (0, 0);
comment on table chassis.clock_ticks is 'append-only, deletable: old ticks are deleted';

-- One row for each event that was handled, written in the transaction of its effect.
create table chassis.inbox (
    event_id    uuid primary key,
    topic       text not null,
    -- The newest of clock_ticks when the event was handled.
    tick        integer not null,
    received_at timestamptz not null default now(),
    -- The number of attempts at handling it.
    attempts    integer not null default 1
);
-- For deletion by age. It is no BRIN index: when deleted rows leave pages that are filled again, each range of a
-- BRIN index reaches from the oldest row to the newest, and every query reads the whole table.
create index inbox_tick on chassis.inbox (tick);
comment on table chassis.inbox is 'append-only, deletable: old rows are deleted';

-- The replies to commands that had an Idempotency-Key, for at least 24 hours.
create table chassis.idempotency_keys (
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
create index idempotency_keys_tick on chassis.idempotency_keys (tick);
comment on table chassis.idempotency_keys is 'append-only, deletable: old rows are deleted';

-- Records that can never be handled, with their bytes and the reason.
create table chassis.dead_letters (
    dead_letter_id bigint generated always as identity primary key,
    -- The position of the record. A recreated cluster counts from 0 again, hence its id and the hash.
    cluster     text not null,
    topic       text not null,
    partition   integer not null,
    "offset"    bigint not null,
    hash        bytea not null,
    event_id    uuid,
    key         bytea,
    headers     jsonb not null,
    -- Null if the record had no payload.
    record      bytea,
    kind        text not null check (kind in ('undecodable', 'unprocessable', 'handler_failed')),
    reason      text not null,
    attempts    integer not null default 1,
    -- It leaves 'waiting' once. Settled dead letters stay: a record that is read again is found to be settled.
    state       text not null default 'waiting' check (state in ('waiting', 'replayed', 'discarded')),
    -- The operator's reason for discarding it.
    discard_reason text,
    received_at timestamptz not null default now(),
    settled_at  timestamptz,
    unique (cluster, topic, partition, "offset", hash)
);
create index dead_letters_waiting on chassis.dead_letters (dead_letter_id) where state = 'waiting';
create index dead_letters_discarded on chassis.dead_letters (event_id) where state = 'discarded';
comment on table chassis.dead_letters is 'append-only';
comment on column chassis.dead_letters.state is 'mutable: an operator settles it';
comment on column chassis.dead_letters.discard_reason is 'mutable: with the state';
comment on column chassis.dead_letters.settled_at is 'mutable: with the state';

-- What was given up with discarded dead letters. The books show the sums.
create table chassis.write_offs (
    write_off_id   bigint generated always as identity primary key,
    dead_letter_id bigint not null references chassis.dead_letters,
    description    text not null,
    amount         bigint not null check (amount >= 0),
    unit           text not null,
    written_off_at timestamptz not null default now()
);
comment on table chassis.write_offs is 'append-only';

-- Whether the circuit breaker has paused the consumer. One row.
create table chassis.consumer (
    singleton boolean primary key default true check (singleton),
    paused_at timestamptz,
    reason    text
);
insert into chassis.consumer default values;
