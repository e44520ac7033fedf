-- Stock's items as the order service knows them: a read model of the topic stock.items, so that
-- ordering works while stock is down.
create table items (
    sku         text primary key,
    name        text not null,
    price_cents bigint not null,
    currency    text not null,
    version     bigint not null
);

-- The order row decides, and nothing else does: status leaves 'pending' once. The legs say what
-- payment and stock answered; they only climb, also after the order has ended.
create table orders (
    -- UUIDv7: rows of one time lie together, in the table and in the index.
    order_id         uuid primary key,
    customer_id      uuid not null,
    status           text not null check (status in ('pending', 'confirmed', 'cancelled')),
    reason           text check (reason in ('payment_declined', 'stock_rejected', 'customer', 'deadline')),
    payment          text not null check (payment in ('waiting', 'verified', 'declined', 'refunded', 'void')),
    stock            text not null check (stock in ('waiting', 'reserved', 'rejected', 'released', 'void')),
    total_cents      bigint not null check (total_cents >= 0),
    currency         text not null,
    lines            jsonb not null,
    created_at       timestamptz not null,
    ended_at         timestamptz,
    -- orders.created; orders.confirmed or orders.cancelled.
    created_event_id uuid not null,
    ended_event_id   uuid,
    -- The position of the last entry of its history, counted under the lock of this row. One is left out
    -- where an event is heard again after the inbox forgot it.
    last_position    bigint not null,
    constraint ended_or_pending check ((status = 'pending') = (ended_at is null)),
    constraint ended_is_published check ((status = 'pending') = (ended_event_id is null)),
    constraint cancelled_has_a_reason check ((status = 'cancelled') = (reason is not null))
)
-- Each order is updated two or three times soon after it was written, and no index knows its
-- status: with room on the page these updates touch no index at all. At 60, a fifth of the updates that
-- one transaction makes to orders of one page touched every index.
with (fillfactor = 50);
create index orders_by_customer on orders (customer_id, order_id);

-- Every event of an order, those it published and those it heard, in the order in which they became
-- true here.
create table history (
    order_id    uuid not null,
    event_id    uuid not null,
    -- Counts the order's events from 1; `orders.last_position` is the last one. A sequence that a failover set
    -- back would give the last event a place before the first.
    position    bigint not null,
    event       text not null,
    -- Read whole and never searched: text, which costs nothing to take apart or to count.
    detail      json not null,
    occurred_at timestamptz not null,
    recorded_at timestamptz not null,
    primary key (order_id, event_id)
);

-- A row for each pending order that was placed while a deadline was set. Without one the table is empty.
create table deadlines (
    order_id   uuid primary key,
    created_at timestamptz not null
)
-- Rows come and go with the orders: the default of a fifth of the table would let it bloat.
with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
create index deadlines_by_age on deadlines (created_at, order_id);
