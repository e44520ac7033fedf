-- Up to which offset each partition of a Kafka cluster was handled: every record below it had its effect, or is a dead
-- letter. The consumer writes it about once a second, so it may lag behind.
--
-- Reading begins here if the group's committed offset in Kafka lies above: another program may have committed that one,
-- or this database was restored.
create table chassis.consumer_positions (
    cluster     text not null,
    topic       text not null,
    partition   integer not null,
    next_offset bigint not null,
    primary key (cluster, topic, partition)
);
comment on table chassis.consumer_positions is 'append-only';
comment on column chassis.consumer_positions.next_offset is 'mutable: it rises with what is handled';

-- Where operators moved the consumer to, on purpose. The instance that has a partition applies the last one once.
create table chassis.rewinds (
    rewind_id    bigint generated always as identity primary key,
    -- Null: all topics, all partitions.
    topic        text,
    partition    integer,
    -- One of them: the first record of this time or later, or this offset.
    to_time      timestamptz,
    to_offset    bigint,
    reason       text not null,
    -- The operator, if the service knows its callers.
    actor        text,
    requested_at timestamptz not null default now(),
    check (num_nonnulls(to_time, to_offset) = 1)
);
comment on table chassis.rewinds is 'append-only';

-- The last rewind that was applied to the partition, or that was there when its reading began.
alter table chassis.consumer_positions add column rewind_id bigint not null default 0;
comment on column chassis.consumer_positions.rewind_id is 'mutable: with the position';
