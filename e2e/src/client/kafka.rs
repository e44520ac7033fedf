//! Plain clients of Kafka, without code of the services: producers and admin clients. `checker::kafka` has
//! consumers.

use anyhow::Result;
use chassis::kafka::RECORD_BYTES_MAX;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::FutureProducer;

use crate::client::http_client::Client;

pub fn create_producer(client: &Client) -> Result<FutureProducer> {
    let producer = client
        .addresses
        .kafka
        .clone()
        .set("enable.idempotence", "true")
        // librdkafka's partitioner must be that of the publishers, so that a key stays in its
        // partition.
        .set("partitioner", "murmur2_random")
        // A topic refuses a batch that is larger than its largest record.
        .set("batch.size", RECORD_BYTES_MAX.to_string())
        .create()?;
    Ok(producer)
}

pub fn admin_client(client: &Client) -> Result<AdminClient<DefaultClientContext>> {
    Ok(client.addresses.kafka.create()?)
}
