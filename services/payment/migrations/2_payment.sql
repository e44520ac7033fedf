-- What each customer has. The three counters are the books, and the database keeps them.
create table accounts (
    customer_id     uuid primary key,
    currency        text not null,
    -- The bound is checked on deposit and covers what was taken as well, so that a refund, which
    -- may not be refused, can't overflow.
    deposited_cents bigint not null check (deposited_cents between 0 and 1000000000000000),
    balance_cents   bigint not null check (balance_cents >= 0),
    taken_cents     bigint not null check (taken_cents >= 0),
    constraint deposited_is_balance_plus_taken check (deposited_cents = balance_cents + taken_cents)
)
-- Every order updates its account; room on the page keeps these updates off the index.
with (fillfactor = 70);

-- What came in, one row a deposit.
create table deposits (
    deposit_id   uuid primary key,
    customer_id  uuid not null,
    amount_cents bigint not null check (amount_cents > 0),
    created_at   timestamptz not null
);

-- What payment did for an order, and what it said. Rows are kept: a void one is the tombstone of a
-- cancellation that overtook its order.
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
