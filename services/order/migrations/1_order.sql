-- Stock's items as the order service knows them: a read model of the topic stock.items, so that
-- ordering works while stock is down.
create table items (
    sku         text primary key,
    name        text not null,
    price_cents bigint not null,
    currency    text not null,
    version     bigint not null
);
comment on table items is 'deletable: a rebuild removes items that the topic does not have';

-- Only the row of an order decides about it: its status leaves 'pending' once. The legs hold the answers of the
-- participants. They only climb, also after the order has ended. The leg of a participant that joins later is null in
-- the orders that do not ask it.
create table orders (
    -- UUIDv7: rows that were written at one time lie together, in the table and in the index.
    order_id         uuid primary key,
    customer_id      uuid not null,
    status           text not null check (status in ('pending', 'confirmed', 'cancelled')),
    -- Why it was cancelled. The program knows the words, so a new one changes no table.
    reason           text,
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
    -- The position of the last entry of its history, counted under the lock of this row. A position is left out
    -- if an event is received again after the inbox has deleted its row.
    last_position    bigint not null,
    constraint ended_or_pending check ((status = 'pending') = (ended_at is null)),
    constraint ended_is_published check ((status = 'pending') = (ended_event_id is null)),
    constraint cancelled_has_a_reason check ((status = 'cancelled') = (reason is not null))
)
-- Each order is updated two or three times soon after it was written. No index has its status, so an update that
-- finds room on the page of its row changes no index.
with (fillfactor = 50);
create index orders_by_customer on orders (customer_id, order_id);
comment on column orders.customer_id is 'personal';

-- Every event of an order, published and received, in the sequence in which this service committed them.
create table history (
    order_id    uuid not null,
    event_id    uuid not null,
    -- Counts the events of the order from 1; `orders.last_position` is the last one. It is no sequence: a failover
    -- can set a sequence back, and the last event would then stand before the first.
    position    bigint not null,
    event       text not null,
    -- `json`, and not `jsonb`: it is read whole and never searched, and its text need not be parsed.
    detail      json not null,
    occurred_at timestamptz not null,
    recorded_at timestamptz not null,
    primary key (order_id, event_id)
);
comment on table history is 'append-only';
-- Whole events, and those of this service name the customer.
comment on column history.detail is 'personal';

-- A row for each pending order: added with the order, deleted when the order ends. Operators list what is stuck with
-- it, and the deadline finds what is overdue. An index on the status of `orders` would make each update of an order
-- change every index of that table.
create table pending_orders (
    -- The same as in `orders`, where it never changes.
    created_at timestamptz not null,
    order_id   uuid not null,
    primary key (created_at, order_id)
)
-- Rows come and go with the orders: the default of a fifth of the table would let it bloat.
with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
comment on table pending_orders is 'deletable: the order has ended';

-- While a leg is open, an event with the customer's id is on its way, and the participant would meet it with rows that
-- name the replacement. Each leg of a confirmed order is a yes.
create function erasure_obstacle(customer uuid) returns text language sql stable as $$
    select 'order ' || order_id || ' has not ended with all its legs' from orders
    where customer_id = customer
      and (status = 'pending' or status = 'cancelled' and (
          payment in ('waiting', 'verified')
          or stock in ('waiting', 'reserved')))
    order by order_id limit 1
$$;

-- What a rebuild of the items has read: the newest version of each item, and whether the last record of each key and
-- partition is undecodable. A rebuild adds the rows and deletes them in one transaction, so no other one sees them.
-- They are no temporary tables, which could fill the disk beyond every limit: the serving role may make none.
create unlogged table staged_items (like items including indexes);
create unlogged table last_records (
    sku         text not null,
    partition   int not null,
    undecodable boolean not null,
    primary key (sku, partition)
);
comment on table staged_items is 'deletable: its rebuild ends';
comment on table last_records is 'deletable: its rebuild ends';
