"""Reads the topics of the stream processor with Confluent's Avro deserializer: a client that shares no code with Holdfast.

Prints the sums as JSON: for each key and minute the newest record counts. e2e/tests/faults/long/foreign_client.rs
compares them with the orders.
"""

import json
import sys

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

TIMEOUT_SECONDS = 30


def read(consumer, decode, topic):
    """The decoded values of a topic, up to its present end."""
    partitions = consumer.list_topics(topic, TIMEOUT_SECONDS).topics[topic].partitions
    for partition in partitions:
        consumer.assign([TopicPartition(topic, partition, 0)])
        while True:
            record = consumer.poll(TIMEOUT_SECONDS)
            if record is None:
                raise TimeoutError(f"{topic}, partition {partition}")
            if record.error() and record.error().code() == KafkaError._PARTITION_EOF:
                break
            if record.error():
                raise KafkaException(record.error())
            yield decode(record.value(), SerializationContext(topic, MessageField.VALUE))


def newest(events, key, fields):
    """The sums by key, of the newest record of each key and minute."""
    by_minute = {(key(event), event["minute"]): event for event in events}
    sums = {}
    for (name, _), event in by_minute.items():
        before = sums.setdefault(name, dict.fromkeys(fields, 0))
        sums[name] = {field: before[field] + event[field] for field in fields}
    return sums


def main(bootstrap, registry):
    consumer = Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": "reports",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "enable.partition.eof": True,
    })
    decode = AvroDeserializer(SchemaRegistryClient({"url": registry}))
    sales = newest(
        read(consumer, decode, "insights.sales"),
        lambda event: f"{event['currency']} {event['sku']}",
        ["orders", "units", "revenue_cents"],
    )
    outcomes = newest(
        read(consumer, decode, "insights.outcomes"), lambda event: event["outcome"], ["orders"]
    )
    confirmed = {event["order_id"] for event in read(consumer, decode, "orders.confirmed")}
    outcomes = {outcome: sums["orders"] for outcome, sums in outcomes.items()}
    print(json.dumps({"sales": sales, "outcomes": outcomes, "confirmed": len(confirmed)}))


main(*sys.argv[1:])
