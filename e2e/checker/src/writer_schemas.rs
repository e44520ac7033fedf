//! The schemas with which records were written, as the registry has them.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use chassis::event::Topic;
use chassis::event::avro::{Codec, Fingerprint};
use serde_json::Value as Json;
use tokio::runtime::Handle;

use crate::envelope::Envelope;
use crate::http;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The schema of a record's writer.
pub struct WriterSchema {
    codec: Codec,
    reader: GenericDatumReader<'static>,
    writer: GenericDatumWriter<'static>,
}

impl WriterSchema {
    /// Parses a schema. Its memory is never freed: there is one for each version of a schema.
    pub fn new(schema: &str) -> Result<WriterSchema> {
        let mut codec = Codec::new(schema)?;
        // The codec decodes a body of its own schema without Avro's values, and JSON cannot be read
        // that way. So no schema counts as its own.
        codec.fingerprint = Fingerprint::default();
        let schema: &'static Schema = Box::leak(Box::new(Schema::parse_str(schema)?));
        let reader = GenericDatumReader::builder(schema).build()?;
        let writer = GenericDatumWriter::builder(schema).build()?;
        Ok(WriterSchema { codec, reader, writer })
    }

    /// The chassis's codec of the schema, with which a topic's codec decodes a body, into JSON too.
    pub fn codec(&self) -> &Codec {
        &self.codec
    }

    /// Reads the fields of a body without the chassis's codec. They must encode to the same bytes, so a
    /// body that is truncated, too long or not canonical is an error.
    ///
    /// # Errors
    /// The reason, for users.
    pub fn read_fields(&self, body: &[u8]) -> Result<Vec<(String, Value)>, String> {
        let value = self.reader.read_value(&mut &body[..]).ok();
        let is_canonical = |value: &Value| {
            let mut again = Vec::with_capacity(body.len());
            self.writer.write_value_ref(&mut again, value).is_ok() && again == body
        };
        match value.filter(is_canonical) {
            Some(Value::Record(fields)) => Ok(fields),
            _ => Err("its body is not exactly one record of its schema".into()),
        }
    }
}

/// The schemas of a registry, each fetched once.
pub struct WriterSchemas {
    registry: String,
    http: reqwest::Client,
    handle: Handle,
    /// By id; `None` where the registry has none.
    by_id: HashMap<u32, Option<WriterSchema>>,
    /// Those of topics, as they are declared.
    declared: HashMap<&'static str, WriterSchema>,
}

impl WriterSchemas {
    /// The schemas of the registry at this URL, for a thread on which blocking is allowed. A registry
    /// over HTTPS is checked against the certificate in the file `ca`, or against those of the system.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn new(registry: &str, ca: Option<&Path>) -> Result<WriterSchemas> {
        let http = http::client_builder(ca)?.timeout(REQUEST_TIMEOUT).build()?;
        let (registry, handle) = (registry.to_string(), Handle::current());
        let (by_id, declared) = (HashMap::new(), HashMap::new());
        Ok(WriterSchemas { registry, http, handle, by_id, declared })
    }

    /// Adds a schema that need not be fetched; `None` if the registry has none with this id.
    pub fn insert(&mut self, id: u32, schema: Option<WriterSchema>) {
        self.by_id.insert(id, schema);
    }

    /// The schema of a record: that of its id, or that of its topic if the record names it and the registry
    /// has another one under the id. `None` if there is none. Blocks while it is fetched.
    pub fn of_record(
        &mut self,
        topic: &'static Topic,
        envelope: &Envelope<'_>,
    ) -> Result<Option<&WriterSchema>> {
        let id = envelope.schema_id;
        let Some(named) = envelope.header("ce_dataschema") else { return self.get(id) };
        let is_named = |schema: &WriterSchema| schema.codec.dataschema == named;
        if named != topic.codec().dataschema || self.get(id)?.is_some_and(is_named) {
            return self.get(id);
        }
        if !self.declared.contains_key(topic.name) {
            self.declared.insert(topic.name, WriterSchema::new(topic.schema)?);
        }
        Ok(self.declared.get(topic.name))
    }

    /// The schema with an id; `None` if the registry has none. Blocks while it is fetched.
    pub fn get(&mut self, id: u32) -> Result<Option<&WriterSchema>> {
        if !self.by_id.contains_key(&id) {
            let fetched = self.handle.block_on(self.fetch(id))?;
            self.insert(id, fetched);
        }
        Ok(self.by_id.get(&id).and_then(Option::as_ref))
    }

    async fn fetch(&self, id: u32) -> Result<Option<WriterSchema>> {
        let url = format!("{}/schemas/ids/{id}", self.registry);
        let answer = self.http.get(&url).send().await.context("the registry does not answer")?;
        match answer.status().as_u16() {
            200 => {
                let found: Json = answer.json().await?;
                let text =
                    found["schema"].as_str().context("the registry's answer has no schema")?;
                Ok(Some(WriterSchema::new(text)?))
            }
            404 => Ok(None),
            // A registry may answer otherwise for an id that is out of range.
            _ if i32::try_from(id).is_err() => Ok(None),
            status => bail!("the registry answers {status} for schema {id}"),
        }
    }
}
