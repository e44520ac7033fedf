-- Where the id of a customer may be, and when it may be erased.

comment on column orders.customer_id is 'personal';
-- Whole events, and those of this service name the customer.
comment on column history.detail is 'personal';

-- While a leg is open, an event with the customer's id is on its way, and payment or stock would meet it with rows that
-- name the replacement.
create function erasure_obstacle(customer uuid) returns text language sql stable as $$
    select 'order ' || order_id || ' has not ended with both legs' from orders
    where customer_id = customer
      and not (status = 'confirmed' and payment = 'verified' and stock = 'reserved'
            or status = 'cancelled' and payment in ('declined', 'refunded', 'void')
                                    and stock in ('rejected', 'released', 'void'))
    order by order_id limit 1
$$;
