//! Erased customers: a record that still has the id of a customer differs from the row, which has the replacement. Such
//! a difference is accepted if the services journalled that replacement, and if all its records agree in whose id it
//! replaced.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use anyhow::Result;
use chassis::event::Topic;
use events::saga_topics;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::checker::content_hash::{content_hash, hash};
use crate::checker::expected_records::ExpectedRecord;
use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I13;
use crate::checker::order_cases::OrderCase;
use crate::checker::record::{PersonalHashes, RecordSummary};

/// The personal fields of each topic that has some.
static PERSONAL_FIELDS: LazyLock<HashMap<&str, HashSet<String>>> = LazyLock::new(|| {
    let fields = |topic: &&'static Topic| {
        let schema: Value = serde_json::from_str(topic.schema).ok()?;
        let fields = schema["fields"].as_array()?.iter();
        let personal = fields.filter(|field| field["personal"] == true);
        let names = personal.filter_map(|field| Some(field["name"].as_str()?.to_string()));
        let names: HashSet<String> = names.collect();
        (!names.is_empty()).then_some((topic.name, names))
    };
    saga_topics().iter().filter_map(fields).collect()
});

/// The names of all personal fields.
pub fn personal_field_names() -> HashSet<&'static str> {
    PERSONAL_FIELDS.values().flatten().map(String::as_str).collect()
}

/// The hash of the values of the personal fields, and that of the other fields; none for a topic without personal fields.
pub(crate) fn personal_hashes(topic: &Topic, content: &Value) -> Option<PersonalHashes> {
    let names = PERSONAL_FIELDS.get(topic.name)?;
    // The values alone: in another topic a field of the same person may have another name.
    let ids: BTreeSet<String> = names.iter().map(|name| content[name].to_string()).collect();
    let mut other = content.clone();
    other.as_object_mut()?.retain(|name, _| !names.contains(name));
    Some(PersonalHashes { personal: hash(&ids), other: content_hash(&other) })
}

/// The records that name an erased customer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ErasedRecords {
    pub count: u64,
    /// The hash of the id that each replacement was found to stand for.
    originals: BTreeMap<Uuid, u64>,
}

/// The journals of erasures.
#[derive(Debug, Default)]
pub struct Erasures {
    replacements: BTreeMap<&'static str, HashSet<Uuid>>,
    /// Services with an erasure that has not ended.
    unfinished: Vec<&'static str>,
}

impl Erasures {
    pub async fn load(databases: &BTreeMap<&'static str, PgPool>) -> Result<Erasures> {
        let mut erasures = Erasures::default();
        for (service, db) in databases {
            let journalled: Vec<Uuid> =
                sqlx::query_scalar("select replacement_id from chassis.erasures")
                    .fetch_all(db)
                    .await?;
            erasures.replacements.insert(service, journalled.into_iter().collect());
            let unfinished = "select exists (select from chassis.unfinished_erasures)";
            if sqlx::query_scalar(unfinished).fetch_one(db).await? {
                erasures.unfinished.push(service);
            }
        }
        Ok(erasures)
    }

    /// Adds a replacement of a service.
    pub fn add(&mut self, service: &'static str, replacement_id: Uuid) {
        self.replacements.entry(service).or_default().insert(replacement_id);
    }

    /// An erasure that was interrupted has replaced the id in some services alone.
    pub fn check_ended(&self, findings: &mut Findings) {
        for service in &self.unfinished {
            findings.add(I13, "unfinished erasure", || {
                format!("{service}: an erasure has not ended. Run it again")
            });
        }
    }

    /// The replacement that the rows of an order have in place of its customer, if each service with such a row
    /// journalled it.
    fn replacement_of(&self, case: &OrderCase) -> Option<Uuid> {
        let customer_id = case.order.as_ref()?.customer_id;
        let is_journalled =
            |service| self.replacements.get(service).is_some_and(|ids| ids.contains(&customer_id));
        let mut parts = case.parts.iter().filter_map(|(it, part)| Some((*it, part.customer_id?)));
        let agree = parts.all(|(service, id)| id == customer_id && is_journalled(service));
        (agree && is_journalled("order")).then_some(customer_id)
    }

    /// Whether a record differs from its row by an erasure and by nothing else. One replacement stands for one customer.
    pub fn accept(
        &self,
        case: &OrderCase,
        e: &ExpectedRecord,
        record: &RecordSummary,
        erased: &mut ErasedRecords,
    ) -> bool {
        let hashes = record.personal_hashes.zip(personal_hashes(e.topic, &e.content));
        let (Some(replacement), Some((recorded, expected))) = (self.replacement_of(case), hashes)
        else {
            return false;
        };
        let is_of_row = PERSONAL_FIELDS.get(e.topic.name).is_some_and(|names| {
            names.iter().all(|name| e.content[name].as_str() == Some(&replacement.to_string()))
        });
        let is_accepted = is_of_row
            && recorded.other == expected.other
            && *erased.originals.entry(replacement).or_insert(recorded.personal)
                == recorded.personal;
        erased.count += u64::from(is_accepted);
        is_accepted
    }
}

#[cfg(test)]
#[path = "erasures_tests.rs"]
mod tests;
