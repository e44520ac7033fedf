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
insert into pending_orders (created_at, order_id)
    select created_at, order_id from orders where status = 'pending';
comment on table pending_orders is 'deletable: the order has ended';
comment on table deadlines is
    'deletable: only an older version reads and writes it. A later migration drops it, once no older replica runs.';
