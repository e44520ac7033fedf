-- Who paused the consumer: the circuit breaker or an operator. Null while it is not paused. An older version that runs
-- beside this one leaves it as it is; where it is null, its circuit breaker has paused the consumer.
alter table chassis.consumer add column cause text check (cause in ('circuit_breaker', 'operator'));
