-- One row for each confirmed order. Rows are kept: the inbox deletes its row of an event after 30 days, and then the
-- primary key prevents that an order is recorded twice.
create table confirmed_orders (
    order_id     uuid primary key,
    customer_id  uuid not null,
    lines        jsonb not null,
    total_cents  bigint not null check (total_cents >= 0),
    currency     text not null,
    confirmed_at timestamptz not null
);
comment on table confirmed_orders is 'append-only';
-- An erasure of the customer replaces the id here.
comment on column confirmed_orders.customer_id is 'personal';
