-- The sales of each hour: orders and revenue, the best item, and the share of orders that were confirmed.

with orders as (
    select date_trunc('hour', confirmed_at, 'UTC') as hour, currency,
        count(*) as confirmed, sum(total_cents) as revenue_cents
    from reporting.confirmed_orders
    group by hour, currency
), items as (
    select date_trunc('hour', minute_began_at, 'UTC') as hour, currency, coalesce(max(name), sku) as item,
        sum(units) as units
    from reporting.item_sales
    group by hour, currency, sku
), best as (
    select distinct on (hour, currency) hour, currency, item, units
    from items
    order by hour, currency, units desc, item
), outcomes as (
    select date_trunc('hour', minute_began_at, 'UTC') as hour,
        round(100.0 * sum(orders) filter (where outcome = 'confirmed') / sum(orders), 1) as confirmed_percent,
        round(sum(decision_millis_sum) / nullif(sum(timed_orders), 0)) as mean_decision_millis
    from reporting.order_outcomes
    group by hour
)
select to_char(hour at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as hour, currency, confirmed,
    (revenue_cents / 100.0)::numeric(20, 2) as revenue, item as best_item, units as best_units,
    confirmed_percent, mean_decision_millis
from orders left join best using (hour, currency) left join outcomes using (hour)
order by hour desc, currency;
