-- The shipment of each confirmed order. Rows are kept: the primary key prevents that an order is shipped twice.
create table shipments (
    order_id    uuid primary key,
    customer_id uuid not null,
    pieces      bigint not null check (pieces > 0),
    state       text not null check (state in
        ('booking', 'booked', 'collected', 'delivered', 'failed', 'cancelling', 'cancelled')),
    -- The parcel that the carrier has, as far as it is known. Another one takes its place if it is booked again.
    parcel_id   uuid,
    -- Why it failed or was cancelled. The program knows the words.
    reason      text,
    -- How often a parcel was booked, and what is known of the last booking.
    bookings    int not null check (bookings > 0),
    booking     text not null check (booking in ('asked', 'done', 'unknown')),
    -- How often the carrier was asked since it told something; one more than the last means that a person is.
    inquiries   int not null check (inquiries >= 0),
    -- Its shipments.booked, and its shipments.delivered or shipments.failed: each with its id, as it was published.
    booked      jsonb,
    ended       jsonb,
    -- The position of the last entry of its history, counted under the lock of this row.
    last_position bigint not null,
    created_at  timestamptz not null,
    updated_at  timestamptz not null,
    constraint ended_is_published check ((state in ('delivered', 'failed', 'cancelled')) = (ended is not null)),
    constraint failed_for_a_reason check ((state in ('failed', 'cancelled')) = (reason is not null)),
    constraint a_parcel_is_published check (parcel_id is null or booked is not null),
    constraint booked_has_a_parcel check (
        state not in ('booked', 'collected', 'delivered', 'cancelling') or parcel_id is not null)
)
-- A row is updated a few times. With room on the page, the update changes no index.
with (fillfactor = 50);
comment on column shipments.customer_id is 'personal';

-- What happened to each shipment, in the sequence in which this service committed it.
create table shipment_history (
    order_id uuid not null,
    -- Counts the entries of the order from 1.
    position bigint not null,
    what     text not null,
    -- The state after it.
    state    text not null,
    at       timestamptz not null,
    -- The event that caused it; none for a command, and for news that nothing waited for.
    cause_id uuid,
    primary key (order_id, position)
);
comment on table shipment_history is 'append-only';
