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

-- A connector writes the header `ce_dataschema` as the relay does. It is null while an older version leads.
alter table chassis.outbox_schema_ids add column dataschema text;
comment on column chassis.outbox_schema_ids.dataschema is 'mutable: with the id';
comment on column chassis.outbox_schema_ids.registry_id is 'mutable: the service asks the registry again and again';
alter table chassis.captured_events add column ce_dataschema text;
alter table chassis.captured_answers add column ce_dataschema text;

create or replace function chassis.capture_event() returns trigger language plpgsql as $$
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
