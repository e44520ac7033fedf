-- One row for each confirmed purchase. Rows are kept: the inbox deletes its row of an event after 30 days, and then the
-- primary key prevents that a purchase is recorded twice.
create table confirmed_purchases (
    purchase_id uuid primary key,
    customer_id uuid not null,
    lines jsonb not null,
    total_cents bigint not null check (total_cents >= 0),
    currency text not null,
    confirmed_at timestamptz not null,
    recorded_at timestamptz not null,
    -- The event that is published about it.
    event_id uuid not null
);
comment on table confirmed_purchases is 'append-only';
-- An erasure of the customer replaces the id here.
comment on column confirmed_purchases.customer_id is 'personal';
