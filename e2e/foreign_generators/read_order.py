"""Reads an order with the clients that two generators make of the description of the order service.

`read_order.py URL ID` prints it twice, as JSON: from the client of openapi-python-client in the package `client`, and
from the models of datamodel-code-generator in the module `models`."""

import json
import sys
import urllib.request
from uuid import UUID

from client import Client
from client.api.default import show_order
from models import Order

url, order_id = sys.argv[1:]
print(json.dumps(show_order.sync(UUID(order_id), client=Client(base_url=url)).to_dict()))
with urllib.request.urlopen(f"{url}/orders/{order_id}") as answer:
    print(Order.model_validate_json(answer.read()).model_dump_json())
