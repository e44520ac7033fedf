-- The items with their units. The three counters are the books, and the database checks them.
create table items (
    sku         text primary key check (char_length(sku) between 1 and 64),
    name        text not null,
    price_cents bigint not null check (price_cents between 0 and 1000000000),
    currency    text not null,
    -- Counts the changes that stock.items publishes; subscribers keep the highest.
    version     bigint not null,
    delivered   bigint not null default 0,
    available   bigint not null default 0 check (available >= 0),
    reserved    bigint not null default 0 check (reserved >= 0),
    -- The newest stock.items of this item, and its time.
    event_id    uuid not null,
    changed_at  timestamptz not null,
    constraint delivered_is_available_plus_reserved check (delivered = available + reserved)
)
-- Every order updates its items. With room on the page, such an update changes no index.
with (fillfactor = 70);

-- One row for each delivery.
create table deliveries (
    delivery_id uuid primary key,
    sku         text not null,
    quantity    bigint not null check (quantity > 0),
    created_at  timestamptz not null
);
comment on table deliveries is 'append-only';

-- What stock did for an order, and what it answered. Rows are kept. A void one is the tombstone of a cancellation
-- that overtook its order.
create table reservations (
    order_id        uuid primary key,
    state           text not null check (state in ('reserved', 'rejected', 'released', 'void')),
    lines           jsonb not null,
    -- The item that fell short, as stock.rejected states it, and the reason in words.
    shortfall       jsonb,
    reason          text,
    -- stock.reserved or stock.rejected; none for a void one.
    response_event_id     uuid,
    -- stock.released, once cancelled; none for a rejected one.
    compensation_event_id uuid,
    created_at      timestamptz not null,
    updated_at      timestamptz not null,
    constraint rejected_for_a_shortfall check ((state = 'rejected') = (shortfall is not null))
)
with (fillfactor = 80);
