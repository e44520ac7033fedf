// The services that consume `orders.confirmed`. `make service` adds a line.
[
]
