-- The reporting database: what Kafka Connect writes, and what reports read. It can be run again.
--
-- No table has a column for a customer, so the erasure of a customer has nothing to erase here.

create schema if not exists reporting;

-- One row for each confirmed order. An event that comes again writes the same row again.
create table if not exists reporting.confirmed_orders (
    order_id uuid primary key,
    total_cents bigint not null,
    currency text not null,
    -- As in the event, in microseconds since 1970.
    occurred_at bigint not null,
    confirmed_at timestamptz not null generated always as (to_timestamp(occurred_at / 1e6::float8)) stored
);
create index if not exists confirmed_orders_by_time on reporting.confirmed_orders (confirmed_at);

-- What was sold of an item in a minute. A later record of the same key replaces an earlier one.
create table if not exists reporting.item_sales (
    sku text not null,
    currency text not null,
    minute bigint not null,
    minute_began_at timestamptz not null generated always as (to_timestamp(minute / 1e6::float8)) stored,
    name text,
    orders bigint not null,
    units bigint not null,
    revenue_cents bigint not null,
    primary key (sku, currency, minute)
);

-- How the orders of a minute ended. A later record of the same key replaces an earlier one.
create table if not exists reporting.order_outcomes (
    outcome text not null,
    minute bigint not null,
    minute_began_at timestamptz not null generated always as (to_timestamp(minute / 1e6::float8)) stored,
    orders bigint not null,
    timed_orders bigint not null,
    decision_millis_sum bigint not null,
    decision_millis_max bigint not null,
    primary key (outcome, minute)
);

-- The role of the connectors. It may write rows, and neither delete them nor change a table.
do $$ begin execute format('revoke temporary on database %I from public', current_database()); end $$;
grant usage on schema reporting to reporting;
grant select, insert, update on all tables in schema reporting to reporting;
