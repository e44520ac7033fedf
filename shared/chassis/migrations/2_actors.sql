-- Who acted: the subject of the operator's token. Null for an act of before, of an older version that runs beside this
-- one, or of a service that knows no callers.
alter table chassis.dead_letters add column actor text;
comment on column chassis.dead_letters.actor is 'mutable: with the state';
alter table chassis.write_offs add column actor text;
-- Who resumed the consumer last.
alter table chassis.consumer add column actor text;
