-- Who paused the consumer: the circuit breaker or an operator. Null while it is not paused, and for a pause by an older
-- version that runs beside this one, which is always its circuit breaker's.
alter table chassis.consumer add column cause text check (cause in ('circuit_breaker', 'operator'));
