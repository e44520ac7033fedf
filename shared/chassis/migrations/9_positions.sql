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
