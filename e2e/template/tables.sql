-- One row for each order that was confirmed. Rows are kept: beyond the inbox's time, the primary
-- key is what keeps an order from being noted twice.
create table confirmed_orders (
    order_id     uuid primary key,
    customer_id  uuid not null,
    lines        jsonb not null,
    total_cents  bigint not null check (total_cents >= 0),
    currency     text not null,
    confirmed_at timestamptz not null
);
