-- The accounts of the customers. The three counters are the books, and the database checks them.
create table accounts (
    customer_id     uuid primary key,
    currency        text not null,
    -- A deposit is checked against this bound. The bound includes what was taken, so a refund, which must not be
    -- refused, cannot overflow.
    deposited_cents bigint not null check (deposited_cents between 0 and 1000000000000000),
    balance_cents   bigint not null check (balance_cents >= 0),
    taken_cents     bigint not null check (taken_cents >= 0),
    constraint deposited_is_balance_plus_taken check (deposited_cents = balance_cents + taken_cents)
)
-- Every order updates its account. With room on the page, such an update changes no index.
with (fillfactor = 70);
comment on column accounts.customer_id is 'personal';

-- One row for each deposit.
create table deposits (
    deposit_id   uuid primary key,
    customer_id  uuid not null,
    amount_cents bigint not null check (amount_cents > 0),
    created_at   timestamptz not null
);
comment on table deposits is 'append-only';
comment on column deposits.customer_id is 'personal';

-- What payment did for an order, and what it answered. Rows are kept. A void one is the tombstone of a cancellation
-- that overtook its order.
create table payments (
    order_id        uuid primary key,
    state           text not null check (state in ('verified', 'declined', 'refunded', 'void')),
    -- Null for a void one, which never saw the order.
    customer_id     uuid,
    amount_cents    bigint not null check (amount_cents >= 0),
    currency        text,
    reason          text,
    -- payments.verified or payments.declined; none for a void one.
    response_event_id     uuid,
    -- payments.refunded, once cancelled; none for a declined one.
    compensation_event_id uuid,
    created_at      timestamptz not null,
    updated_at      timestamptz not null
)
with (fillfactor = 80);
comment on column payments.customer_id is 'personal';
