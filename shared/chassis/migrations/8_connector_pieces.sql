-- The rows of a large outbox are handed to the connector in pieces: a transaction that adds rows waits for the lock
-- meanwhile.

-- From now on the connector carries what is written, and first the rows that wait: in a call 10,000 of them, or fewer
-- with 16 MiB. Returns false if rows are left: then the relay's turn has not ended, it may not send yet, and the call
-- has to be repeated. The session of the relay has no nested loops, and the oldest rows would need all of them.
drop function chassis.deliver_by_connector();
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
revoke all on function chassis.deliver_by_connector() from public;

-- A registry that was rebuilt may have given the schemas other ids.
comment on column chassis.outbox_schema_ids.registry_id is 'mutable: the service asks the registry at its start';
