// Every service of the saga, in the order of its ports: the one declaration. The programs of `e2e`, their tests, make and
// what is written for docker compose read this file. `make service` adds a line.
[
    "order",
    "payment",
    "stock",
]
