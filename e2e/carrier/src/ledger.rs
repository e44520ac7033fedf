//! The ledger: a file with one fact a line, and what follows from the facts.
//!
//! A fact is in the file before the carrier answers, and a killed process keeps what it gave to the operating system. A
//! line without its end was cut off by a kill, and counts as not written.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::lies::Lie;

const FILE: &str = "ledger.jsonl";

/// The state of a parcel, and what a webhook says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Booked,
    Collected,
    Delivered,
    Lost,
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookState {
    /// It is to be sent, perhaps again.
    Pending,
    /// An attempt was answered 2xx.
    Acknowledged,
    /// No attempt was. A forged one is given up at its first answer.
    GivenUp,
    /// It is never sent, which is a lie.
    Lost,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Webhook {
    /// The header `webhook-id`, equal in all attempts.
    pub webhook_id: Uuid,
    pub event: State,
    pub occurred_at: DateTime<Utc>,
    pub send_at: DateTime<Utc>,
    /// The lies that were drawn for it; those of a lost one have no effect. [`Lie::WebhookForged`] marks a forged one.
    pub lies: Vec<Lie>,
    pub state: WebhookState,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parcel {
    pub parcel_id: Uuid,
    pub pieces: u32,
    pub state: State,
    /// Since when it has its state.
    pub since: DateTime<Utc>,
    #[serde(skip)]
    pub webhooks: Vec<Webhook>,
}

/// What the carrier did for one reference.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    pub requests: u64,
    /// The lies of answers, each with the number of its request, from 0.
    pub lies: Vec<(u64, Lie)>,
    /// In the order in which they were booked.
    pub parcels: Vec<Parcel>,
}

/// What the carrier truly did.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Each reference of a request, also those without a parcel.
    pub references: BTreeMap<Uuid, Reference>,
    /// The last booking of each idempotency key: when, for which reference, and which parcel.
    pub(crate) keys: HashMap<String, (DateTime<Utc>, Uuid, Uuid)>,
    pub(crate) facts: usize,
    /// The file of a running carrier. Without it, nothing can be written.
    pub(crate) file: Option<File>,
}

/// What a line states. A webhook is stated when it is planned, and again when its state changes.
#[derive(Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub(crate) enum Fact {
    Requested { method: String, lies: Vec<Lie> },
    Booked { key: String, parcel: Parcel },
    Moved { parcel_id: Uuid, state: State },
    Webhook { parcel_id: Uuid, webhook: Webhook },
}

#[derive(Serialize, Deserialize)]
struct Line {
    at: DateTime<Utc>,
    reference: Uuid,
    #[serde(flatten)]
    fact: Fact,
}

impl Ledger {
    /// Reads the ledger in a directory, also while its carrier runs. Without a file it is empty.
    pub fn read(directory: &Path) -> Result<Ledger> {
        match fs::read_to_string(directory.join(FILE)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Ledger::default()),
            text => Ok(Ledger::parse(&text?)?.0),
        }
    }

    /// Opens the ledger in a directory to write. Fails if another carrier has it.
    pub(crate) fn open(directory: &Path) -> Result<Ledger> {
        fs::create_dir_all(directory)?;
        let path = directory.join(FILE);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.try_lock().with_context(|| format!("another carrier has {}", path.display()))?;
        let (ledger, length) = Ledger::parse(&fs::read_to_string(&path)?)?;
        file.set_len(length)?;
        Ok(Ledger { file: Some(file), ..ledger })
    }

    /// Writes facts in one piece, and then applies them. After a failure it writes no more.
    pub(crate) fn record(&mut self, reference: Uuid, facts: Vec<Fact>) -> Result<()> {
        let (at, mut text) = (Utc::now(), Vec::new());
        let lines: Vec<Line> = facts.into_iter().map(|fact| Line { at, reference, fact }).collect();
        for line in &lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        let mut file = self.file.take().context("the ledger is closed")?;
        file.write_all(&text)?;
        self.file = Some(file);
        lines.into_iter().try_for_each(|line| self.apply(line))
    }

    /// The parcels of a reference, in the order in which they were booked.
    pub fn parcels(&self, reference: Uuid) -> &[Parcel] {
        self.references.get(&reference).map_or(&[], |entry| &entry.parcels)
    }

    /// The ledger of a file, and the length of its complete lines.
    fn parse(text: &str) -> Result<(Ledger, u64)> {
        let (mut ledger, length) = (Ledger::default(), text.rfind('\n').map_or(0, |end| end + 1));
        for line in text[..length].lines() {
            let applied = serde_json::from_str(line).map_err(Into::into);
            applied.and_then(|line| ledger.apply(line)).with_context(|| line.to_string())?;
        }
        Ok((ledger, length as u64))
    }

    fn apply(&mut self, Line { at, reference, fact }: Line) -> Result<()> {
        self.facts += 1;
        let entry = self.references.entry(reference).or_default();
        match fact {
            Fact::Requested { lies, .. } => {
                entry.lies.extend(lies.into_iter().map(|lie| (entry.requests, lie)));
                entry.requests += 1;
            }
            Fact::Booked { key, parcel } => {
                self.keys.insert(key, (at, reference, parcel.parcel_id));
                entry.parcels.push(parcel);
            }
            Fact::Moved { parcel_id, state } => {
                let parcel = entry.parcel(parcel_id)?;
                (parcel.state, parcel.since) = (state, at);
            }
            Fact::Webhook { parcel_id, webhook } => {
                let webhooks = &mut entry.parcel(parcel_id)?.webhooks;
                match webhooks.iter_mut().find(|it| it.webhook_id == webhook.webhook_id) {
                    Some(known) => *known = webhook,
                    None => webhooks.push(webhook),
                }
            }
        }
        Ok(())
    }
}

impl Reference {
    fn parcel(&mut self, parcel_id: Uuid) -> Result<&mut Parcel> {
        let mut parcels = self.parcels.iter_mut();
        parcels.find(|it| it.parcel_id == parcel_id).context("there is no such parcel")
    }
}
