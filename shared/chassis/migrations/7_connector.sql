-- A connector may carry the outbox to Kafka in place of the relay. It reads the log of the database, and sees the rows
-- of two tables as they are added. A trigger makes these rows of those of the outbox; it is off while the relay carries
-- them.

-- The ids that the registry gave the schemas, and `ce_source`: what a record has beside its row of the outbox.
create table chassis.outbox_schema_ids (
    topic       text not null,
    fingerprint bytea not null,
    registry_id integer not null,
    source      text not null,
    primary key (topic, fingerprint)
);
comment on table chassis.outbox_schema_ids is 'append-only';

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
    traceparent    text
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
        values (new.position, new.topic, new.key, framed, '1.0', new.event_id, new.topic, known.source, at,
                'application/avro', new.traceparent);
        delete from chassis.captured_events where position = new.position;
    else
        insert into chassis.captured_answers
        values (new.position, new.topic, new.key, framed, '1.0', new.event_id, new.topic, known.source, at,
                'application/avro', new.traceparent, new.causation_id);
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
            'application/octet-stream', null);
    delete from chassis.captured_events where position = nth;
    return before;
end
$$;

-- Both functions lock the outbox: an event is carried by the one or by the other, whichever replica writes it. They run
-- as the owner, because a trigger is switched by the owner of its table.

-- From now on the connector carries what is written, and first the rows that wait. It can be repeated.
create function chassis.deliver_by_connector() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    lock table chassis.outbox in share row exclusive mode;
    if exists (select from pg_trigger
               where tgrelid = 'chassis.outbox'::regclass and tgname = 'capture_event' and tgenabled = 'D') then
        alter table chassis.outbox enable trigger capture_event;
    end if;
    update chassis.delivery set drain_to = null where drain_to is not null;
    with waiting as (
        delete from chassis.outbox using chassis.outbox_schema_ids as known
        where known.topic = outbox.topic and known.fingerprint = outbox.schema_fingerprint
        returning outbox.*
    )
    insert into chassis.outbox
        (event_id, topic, key, schema_fingerprint, body, traceparent, causation_id, occurred_at)
    select event_id, topic, key, schema_fingerprint, body, traceparent, causation_id, occurred_at
    from waiting order by position;
end
$$;

-- From now on the relay carries what is written, once the connector has come to the end of what was captured.
create function chassis.deliver_by_relay() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    lock table chassis.outbox in share row exclusive mode;
    update chassis.delivery set drain_to = chassis.write_heartbeat();
    alter table chassis.outbox disable trigger capture_event;
end
$$;
revoke all on function chassis.deliver_by_connector(), chassis.deliver_by_relay() from public;
