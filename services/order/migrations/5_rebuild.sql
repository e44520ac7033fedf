-- What a rebuild of the items has read: the newest version of each item, and whether the last record of each key and
-- partition is undecodable. A rebuild adds the rows and deletes them in one transaction, so no other one sees them.
-- They are no temporary tables, which could fill the disk beyond every limit: the serving role may make none.
create unlogged table staged_items (like items including indexes);
create unlogged table last_records (
    sku         text not null,
    partition   int not null,
    undecodable boolean not null,
    primary key (sku, partition)
);
comment on table staged_items is 'deletable: its rebuild ends';
comment on table last_records is 'deletable: its rebuild ends';
