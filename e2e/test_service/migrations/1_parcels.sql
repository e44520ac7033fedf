-- The parcel of each order that is paid, asks this service or was cancelled. Rows are kept. One that waits has one half:
-- the units of the order, or payment's yes. A void one is the tombstone of an order that was cancelled first.
create table parcels (
    order_id    uuid primary key,
    state       text not null check (state in ('waiting', 'packed', 'refused', 'unpacked', 'void')),
    units       bigint check (units > 0),
    paid        boolean not null,
    -- parcels.packed or parcels.refused, once both halves are there.
    response_event_id     uuid,
    -- parcels.unpacked, once cancelled; none for a refused one.
    compensation_event_id uuid,
    -- When it answered. Before that, when the row was created.
    created_at  timestamptz not null,
    updated_at  timestamptz not null,
    constraint waits_for_one_half check (state <> 'waiting' or paid = (units is null)),
    constraint answers_with_both check (response_event_id is null or paid and units is not null)
)
-- A row is updated once or twice. With room on the page, the update changes no index.
with (fillfactor = 70);
