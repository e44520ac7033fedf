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
    -- What the vendors of tracing systems add to `traceparent`. A connector does not carry it.
    tracestate         text,
    causation_id       uuid,
    occurred_at        timestamptz not null
)
-- Thousands of rows come and go: the default of a fifth of the table would let it bloat.
with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
comment on table chassis.outbox is 'append-only, deletable: an acknowledged row is deleted';
comment on column chassis.outbox.key is 'personal';
comment on column chassis.outbox.body is 'personal';

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

-- What is due later: one row for each timer, for each delivery of a webhook, and for what came back of a call or a task.
-- The transaction in which its handler decides deletes the row.
create table chassis.scheduled (
    -- What is due, such as 'timer/deadline', and what it is about: a timer that is set again is moved. The key of a
    -- delivery is its id, and that of what came back the id of its call or task.
    source       text not null,
    key          text not null,
    -- Its place among the dead letters, should it become one.
    position     bigint generated always as identity,
    -- Its id in the inbox. Each setting has another one.
    event_id     uuid not null,
    body         jsonb not null,
    -- By the clock of the database. A deferred row is due later.
    due_at       timestamptz not null,
    attempts     integer not null default 0,
    set_at       timestamptz not null default now(),
    -- The newest of clock_ticks when it was set.
    tick         integer not null,
    -- The event that caused it, and its trace.
    causation_id uuid,
    traceparent  text not null,
    tracestate   text,
    primary key (source, key)
)
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
-- Its first entries are due: a look at them reads nothing else.
create index scheduled_due on chassis.scheduled (source, due_at);
comment on table chassis.scheduled is 'append-only, deletable: a row is deleted when its handler has decided, or it is cancelled';
comment on column chassis.scheduled.key is 'personal';
comment on column chassis.scheduled.event_id is 'mutable: the timer is set again';
comment on column chassis.scheduled.body is 'mutable, personal: the timer is set again';
comment on column chassis.scheduled.due_at is 'mutable: the timer is moved or deferred';
comment on column chassis.scheduled.attempts is 'mutable: the timer is deferred';
comment on column chassis.scheduled.set_at is 'mutable: the timer is set again';
comment on column chassis.scheduled.tick is 'mutable: the timer is set again';
comment on column chassis.scheduled.causation_id is 'mutable: the timer is set again';
comment on column chassis.scheduled.traceparent is 'mutable: the timer is set again';
comment on column chassis.scheduled.tracestate is 'mutable: the timer is set again';

-- Requests to systems outside and questions to persons: one row for each call or task, from its decision until its
-- outcome is known. What came back is scheduled in the transaction that changes the row.
create table chassis.calls (
    -- The Idempotency-Key that every try sends, and the id of a task.
    call_id      uuid primary key,
    -- What is asked of whom, such as 'call/carrier.book' or 'task/lost-parcel', and what it is about. The target of a task
    -- is 'person'.
    name         text not null,
    target       text not null,
    key          text not null,
    -- Whether it waits for earlier ones of its name and key.
    in_order     boolean not null,
    call         jsonb not null,
    request      jsonb not null,
    created_at   timestamptz not null default clock_timestamp(),
    -- Null for a task, and for a call that is not tried any more: its outcome is unknown.
    next_try_at  timestamptz default clock_timestamp(),
    tries        integer not null default 0,
    -- When the try that has no result yet began.
    trying_since timestamptz,
    -- Whether a try may have been done without an answer.
    is_uncertain boolean not null default false,
    -- Since when its outcome has been unknown. An operator may have it tried again.
    unknown_since timestamptz,
    -- What the last try met.
    last_error   text,
    causation_id uuid,
    traceparent  text not null,
    tracestate   text
);
create index calls_due on chassis.calls (target, next_try_at);
create index calls_by_key on chassis.calls (name, key, created_at);
comment on table chassis.calls is 'append-only, deletable: a row is deleted when the outcome of its call is known';
comment on column chassis.calls.key is 'personal';
comment on column chassis.calls.call is 'personal';
comment on column chassis.calls.request is 'personal';
comment on column chassis.calls.next_try_at is 'mutable: with each try';
comment on column chassis.calls.tries is 'mutable: with each try';
comment on column chassis.calls.trying_since is 'mutable: with each try';
comment on column chassis.calls.is_uncertain is 'mutable: with each try';
comment on column chassis.calls.unknown_since is 'mutable: with the last try';
comment on column chassis.calls.last_error is 'mutable, personal: with each try';

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
comment on column chassis.idempotency_keys.path is 'personal';
comment on column chassis.idempotency_keys.key is 'personal';
comment on column chassis.idempotency_keys.location is 'personal';
comment on column chassis.idempotency_keys.body is 'personal';

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
    -- The operator who settled it: the subject of the token. Null if the service knows no callers.
    actor       text,
    received_at timestamptz not null default now(),
    settled_at  timestamptz,
    unique (cluster, topic, partition, "offset", hash)
);
create index dead_letters_waiting on chassis.dead_letters (dead_letter_id) where state = 'waiting';
create index dead_letters_discarded on chassis.dead_letters (event_id) where state = 'discarded';
create index dead_letters_settled on chassis.dead_letters (settled_at)
    where state <> 'waiting' and (record is not null or headers <> '{}');
-- Finds the dead letters of an event, for operators who follow one event through the services. Settled dead letters
-- stay, so without this index the query would read them all.
create index dead_letters_by_event on chassis.dead_letters (event_id, dead_letter_id) where event_id is not null;
comment on table chassis.dead_letters is 'append-only';
comment on column chassis.dead_letters.key is 'personal';
comment on column chassis.dead_letters.headers is 'mutable, personal: emptied with the bytes';
comment on column chassis.dead_letters.record is 'mutable, personal: emptied 30 days after it was settled';
comment on column chassis.dead_letters.reason is 'personal';
comment on column chassis.dead_letters.state is 'mutable: an operator settles it';
comment on column chassis.dead_letters.discard_reason is 'mutable, personal: with the state';
comment on column chassis.dead_letters.actor is 'mutable: with the state';
comment on column chassis.dead_letters.settled_at is 'mutable: with the state';

-- The bytes and headers of a settled dead letter may be about a person. The serving role may empty them, and cannot
-- write other ones. The owner of the table may change them: it erases.
create function chassis.refuse_changed_record() returns trigger language plpgsql as $$
begin
    if pg_has_role(current_user, (select relowner from pg_class where oid = tg_relid), 'usage') then
        return new;
    end if;
    raise exception 'the bytes and headers of a dead letter are only emptied, once it is settled'
        using errcode = 'insufficient_privilege';
end
$$;
create trigger dead_letters_keep_their_record before update of headers, record on chassis.dead_letters
    for each row when (old.state = 'waiting' or new.record is not null or new.headers <> '{}')
    execute function chassis.refuse_changed_record();

-- What was given up with discarded dead letters. The books show the sums.
create table chassis.write_offs (
    write_off_id   bigint generated always as identity primary key,
    dead_letter_id bigint not null references chassis.dead_letters,
    description    text not null,
    amount         bigint not null check (amount >= 0),
    unit           text not null,
    -- The operator, as in the dead letter.
    actor          text,
    written_off_at timestamptz not null default now()
);
comment on table chassis.write_offs is 'append-only';
comment on column chassis.write_offs.description is 'personal';

-- Whether the consumer is paused. One row.
create table chassis.consumer (
    singleton boolean primary key default true check (singleton),
    paused_at timestamptz,
    reason    text,
    -- Who paused it. Null while it is not paused.
    cause     text check (cause in ('circuit_breaker', 'operator')),
    -- The operator who paused it, or who resumed it last.
    actor     text
);
insert into chassis.consumer default values;
comment on column chassis.consumer.reason is 'personal';

-- Up to which offset each partition of a Kafka cluster was handled: every record below it had its effect, or is a dead
-- letter. The consumer writes it about once a second, so it may lag behind.
--
-- Reading begins here if the group's committed offset in Kafka lies above: another program may have committed that one,
-- or this database was restored.
create table chassis.consumer_positions (
    cluster     text not null,
    topic       text not null,
    partition   integer not null,
    next_offset bigint not null,
    -- The last rewind that was applied to the partition, or that was there when its reading began.
    rewind_id   bigint not null default 0,
    primary key (cluster, topic, partition)
);
comment on table chassis.consumer_positions is 'append-only';
comment on column chassis.consumer_positions.next_offset is 'mutable: it rises with what is handled';
comment on column chassis.consumer_positions.rewind_id is 'mutable: with the position';

-- Where operators moved the consumer to, on purpose. The instance that has a partition applies the last one once.
create table chassis.rewinds (
    rewind_id    bigint generated always as identity primary key,
    -- Null: all topics, all partitions.
    topic        text,
    partition    integer,
    -- One of them: the first record of this time or later, or this offset.
    to_time      timestamptz,
    to_offset    bigint,
    reason       text not null,
    -- The operator, if the service knows its callers.
    actor        text,
    requested_at timestamptz not null default now(),
    check (num_nonnulls(to_time, to_offset) = 1)
);
comment on table chassis.rewinds is 'append-only';

-- What the ids of the schema registry mean. A registry that was replaced or lost its data gives other ids, and
-- what was written before has the old ones.

-- The schema of each id that a record of this service was read with, as the registry had it then. If the registry has
-- another schema for the id later, records that do not name their schema wait until an operator restores the
-- registry, or deletes the rows as the owner of the table: then the registry's schema counts.
create table chassis.schema_ids (
    registry_id  integer primary key,
    -- The header `ce_dataschema` of its records.
    dataschema   text not null,
    schema       text not null,
    -- The schemas that it refers to, each behind those that it refers to itself.
    referenced   text[] not null,
    first_used_at timestamptz not null default now()
);
comment on table chassis.schema_ids is 'append-only';

-- The erasure of a person: `erase` puts one replacement id in the place of the person's id, as the owner of the tables.
-- The comments of columns declare where such an id may be: `personal`, or `mutable, personal`.

-- Which ids are replacements. The id that was replaced is not recorded.
create table chassis.erasures (
    replacement_id uuid primary key,
    erased_at      timestamptz not null default now(),
    -- Who asked for it, if the one who ran it said so.
    actor          text
);
comment on table chassis.erasures is 'read-only: only the owner erases';

-- Erasures that have not ended in every service. A repeated run continues with the same replacement, and until the end
-- no row of the person is added.
create table chassis.unfinished_erasures (
    person_id      uuid primary key,
    replacement_id uuid not null
);
comment on table chassis.unfinished_erasures is 'read-only: only the owner erases';

-- The function of the triggers that exist while an erasure is unfinished. The program treats the error as a locked row,
-- so only what needs that row waits. The pause bounds how often it tries.
create function chassis.wait_for_erasure() returns trigger language plpgsql as $$
begin
    if exists (select from chassis.unfinished_erasures
               where person_id = (to_jsonb(new) ->> tg_argv[0])::uuid) then
        perform pg_sleep(0.1);
        raise exception 'rows of a person wait for the end of an erasure' using errcode = 'lock_not_available';
    end if;
    return new;
end
$$;

-- The acts of operators that no other row records: a replay and a discard are in the row of their dead letter, and an
-- erasure in that of its replacement. A row is added by the transaction of the act, so an act without a row is none.
create table chassis.operator_acts (
    act_id   bigint generated always as identity primary key,
    act      text not null,
    -- Why, or of what: the reason of a pause, and the selection of a republication.
    request  text,
    -- The subject of the operator's token; null if the service knows no callers.
    actor    text,
    acted_at timestamptz not null default now()
);
comment on table chassis.operator_acts is 'append-only';
comment on column chassis.operator_acts.request is 'personal';

-- A connector may carry the outbox to Kafka in place of the relay. It reads the log of the database, and sees the rows
-- of two tables as they are added. A trigger makes these rows of those of the outbox; it is off while the relay carries
-- them.

-- The ids that the registry gave the schemas, and `ce_source`: what a record has beside its row of the outbox.
create table chassis.outbox_schema_ids (
    topic       text not null,
    fingerprint bytea not null,
    registry_id integer not null,
    -- The header `ce_dataschema` of the records.
    dataschema  text not null,
    source      text not null,
    primary key (topic, fingerprint)
);
comment on table chassis.outbox_schema_ids is 'append-only';
comment on column chassis.outbox_schema_ids.registry_id is 'mutable: the service asks the registry again and again';
comment on column chassis.outbox_schema_ids.dataschema is 'mutable: with the id';

-- Records as the relay would send them, each column from `ce_specversion` on a header. A row is deleted by the
-- transaction that adds it: the log has it. The transform of the connector makes a header of each column, also of an
-- empty one, so the records with one header more have a table of their own.
create table chassis.captured_events (
    position       bigint primary key,
    topic          text not null,
    key            text not null,
    record         bytea not null,
    ce_specversion text not null,
    ce_id          text not null,
    ce_type        text not null,
    ce_source      text not null,
    ce_time        text not null,
    "content-type" text not null,
    traceparent    text,
    ce_dataschema  text
)
with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
create table chassis.captured_answers (
    like chassis.captured_events including indexes,
    ce_causationid text not null
)
with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
comment on table chassis.captured_events is 'append-only, deletable: by the transaction that adds it';
comment on table chassis.captured_answers is 'append-only, deletable: by the transaction that adds it';
comment on column chassis.captured_events.key is 'personal';
comment on column chassis.captured_events.record is 'personal';
comment on column chassis.captured_answers.key is 'personal';
comment on column chassis.captured_answers.record is 'personal';

-- A row without a known id stays in the outbox. The rows of a statement are captured in the order of their positions.
create function chassis.capture_event() returns trigger language plpgsql as $$
declare
    known  chassis.outbox_schema_ids;
    framed bytea;
    at     text;
begin
    select * into known from chassis.outbox_schema_ids
    where topic = new.topic and fingerprint = new.schema_fingerprint;
    if not found then
        return null;
    end if;
    framed := '\x00'::bytea || int4send(known.registry_id) || new.body;
    at := to_char(new.occurred_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
    if new.causation_id is null then
        insert into chassis.captured_events
            (position, topic, key, record, ce_specversion, ce_id, ce_type, ce_source, ce_time, "content-type",
             traceparent, ce_dataschema)
        values (new.position, new.topic, new.key, framed, '1.0', new.event_id, new.topic, known.source, at,
                'application/avro', new.traceparent, known.dataschema);
        delete from chassis.captured_events where position = new.position;
    else
        insert into chassis.captured_answers
            (position, topic, key, record, ce_specversion, ce_id, ce_type, ce_source, ce_time, "content-type",
             traceparent, ce_dataschema, ce_causationid)
        values (new.position, new.topic, new.key, framed, '1.0', new.event_id, new.topic, known.source, at,
                'application/avro', new.traceparent, known.dataschema, new.causation_id);
        delete from chassis.captured_answers where position = new.position;
    end if;
    delete from chassis.outbox where position = new.position;
    return null;
end
$$;
create trigger capture_event after insert on chassis.outbox
    for each row execute function chassis.capture_event();
alter table chassis.outbox disable trigger capture_event;

create publication outbox for table chassis.captured_events, chassis.captured_answers with (publish = 'insert');

-- The position of the log up to which the connector has to come before the relay may send. One row.
create table chassis.delivery (
    singleton boolean primary key default true check (singleton),
    drain_to  pg_lsn
);
insert into chassis.delivery default values;
comment on table chassis.delivery is 'read-only: the functions below change it, and that of the relay';
comment on column chassis.delivery.drain_to is 'mutable: null once the connector has come so far';

-- A record to an internal topic. A slot that has confirmed it has confirmed all that was captured before it. Returns a
-- position before it.
create function chassis.write_heartbeat() returns pg_lsn language plpgsql as $$
declare
    before pg_lsn := pg_current_wal_insert_lsn();
    nth    bigint := nextval(pg_get_serial_sequence('chassis.outbox', 'position'));
begin
    insert into chassis.captured_events
    values (nth, 'connect-heartbeats', current_database(), '\x', '1.0', gen_random_uuid(), 'connect-heartbeats',
            '/' || current_database(), to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            'application/octet-stream', null, null);
    delete from chassis.captured_events where position = nth;
    return before;
end
$$;

-- Both functions lock the outbox: an event is carried by the one or by the other, whichever replica writes it. They run
-- as the owner, because a trigger is switched by the owner of its table.

-- From now on the relay carries what is written, once the connector has come to the end of what was captured.
create function chassis.deliver_by_relay() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    lock table chassis.outbox in share row exclusive mode;
    update chassis.delivery set drain_to = chassis.write_heartbeat();
    alter table chassis.outbox disable trigger capture_event;
end
$$;

-- From now on the connector carries what is written, and first the rows that wait: in a call 10,000 of them, or fewer
-- with 16 MiB, because a transaction that adds rows waits for the lock meanwhile. Returns false if rows are left: then
-- the relay's turn has not ended, it may not send yet, and the call has to be repeated. The session of the relay has no nested loops, and the oldest rows would need all of them.
create function chassis.deliver_by_connector() returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_nestloop = on as $$
begin
    lock table chassis.outbox in share row exclusive mode;
    if exists (select from pg_trigger
               where tgrelid = 'chassis.outbox'::regclass and tgname = 'capture_event' and tgenabled = 'D') then
        alter table chassis.outbox enable trigger capture_event;
    end if;
    update chassis.delivery set drain_to = null where drain_to is not null;
    with oldest as (
        select position, octet_length(body) as bytes from chassis.outbox
        join chassis.outbox_schema_ids known on known.topic = outbox.topic and known.fingerprint = schema_fingerprint
        order by position limit 10000
    ), piece as (
        select position from (select position, sum(bytes) over (order by position) - bytes as before from oldest) sizes
        where before < 16777216
    ), waiting as (
        delete from chassis.outbox using piece where outbox.position = piece.position
        returning outbox.*
    )
    insert into chassis.outbox
        (event_id, topic, key, schema_fingerprint, body, traceparent, causation_id, occurred_at)
    select event_id, topic, key, schema_fingerprint, body, traceparent, causation_id, occurred_at
    from waiting order by position;
    if not exists (select from chassis.outbox join chassis.outbox_schema_ids known
                   on known.topic = outbox.topic and known.fingerprint = schema_fingerprint) then
        return true;
    end if;
    perform chassis.deliver_by_relay();
    return false;
end
$$;
revoke all on function chassis.deliver_by_connector(), chassis.deliver_by_relay() from public;
