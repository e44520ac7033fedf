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

-- The owner of the table may change a record: it erases.
create or replace function chassis.refuse_changed_record() returns trigger language plpgsql as $$
begin
    if pg_has_role(current_user, (select relowner from pg_class where oid = tg_relid), 'usage') then
        return new;
    end if;
    raise exception 'the bytes and headers of a dead letter are only emptied, once it is settled'
        using errcode = 'insufficient_privilege';
end
$$;

comment on column chassis.outbox.key is 'personal';
comment on column chassis.outbox.body is 'personal';
comment on column chassis.idempotency_keys.path is 'personal';
comment on column chassis.idempotency_keys.key is 'personal';
comment on column chassis.idempotency_keys.location is 'personal';
comment on column chassis.idempotency_keys.body is 'personal';
comment on column chassis.dead_letters.key is 'personal';
comment on column chassis.dead_letters.headers is 'mutable, personal: emptied with the bytes';
comment on column chassis.dead_letters.record is 'mutable, personal: emptied 30 days after it was settled';
comment on column chassis.dead_letters.reason is 'personal';
comment on column chassis.dead_letters.discard_reason is 'mutable, personal: with the state';
comment on column chassis.write_offs.description is 'personal';
comment on column chassis.consumer.reason is 'personal';
