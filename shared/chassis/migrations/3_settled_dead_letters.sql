-- A dead letter that was settled 30 days ago loses its bytes and headers, which may be about a person. The serving role
-- may empty them, and cannot write other ones.

comment on column chassis.dead_letters.headers is 'mutable: emptied with the bytes';
comment on column chassis.dead_letters.record is 'mutable: emptied 30 days after it was settled';

create function chassis.refuse_changed_record() returns trigger language plpgsql as $$
begin
    raise exception 'the bytes and headers of a dead letter are only emptied, once it is settled'
        using errcode = 'insufficient_privilege';
end
$$;
create trigger dead_letters_keep_their_record before update of headers, record on chassis.dead_letters
    for each row when (old.state = 'waiting' or new.record is not null or new.headers <> '{}')
    execute function chassis.refuse_changed_record();

create index dead_letters_settled on chassis.dead_letters (settled_at)
    where state <> 'waiting' and (record is not null or headers <> '{}');
