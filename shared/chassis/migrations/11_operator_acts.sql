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

-- What the vendors of tracing systems add to `traceparent`. A connector does not carry it.
alter table chassis.outbox add column tracestate text;
