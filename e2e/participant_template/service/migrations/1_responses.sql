-- What fraud answered to each order. No row is deleted. A void one is the tombstone of a cancellation that overtook its
-- order.
create table fraud_responses (
    order_id    uuid primary key,
    state       text not null check (state in ('cleared', 'flagged', 'kept', 'withdrawn', 'void')),
    total_cents bigint not null check (total_cents >= 0),
    -- The program knows the words, so a new one changes no table.
    reason      text,
    -- fraud.cleared or fraud.flagged; none for a void one.
    response_event_id     uuid,
    -- fraud.kept, if it could not be undone.
    kept_event_id         uuid,
    kept_at               timestamptz,
    -- fraud.withdrawn, once cancelled; none for a no.
    compensation_event_id uuid,
    created_at  timestamptz not null,
    updated_at  timestamptz not null
)
-- A response may be updated twice. With room on the page, the update changes no index.
with (fillfactor = 80);
