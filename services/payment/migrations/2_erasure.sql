-- Where the id of a customer may be.

comment on column accounts.customer_id is 'personal';
comment on column deposits.customer_id is 'personal';
comment on column payments.customer_id is 'personal';
