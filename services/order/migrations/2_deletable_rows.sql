-- The serving role deletes rows of these two tables, and of no other table of this service.
comment on table items is 'deletable: a rebuild removes items that the topic does not have';
comment on table deadlines is 'deletable: the order has ended';
