//! The example domain of these tests: amounts counted into tills, with events, rows and handlers.

use super::*;

pub const COUNTED_SCHEMA: &str = r#"{"type": "record", "name": "Counted", "fields": [
    {"name": "till", "type": "string"},
    {"name": "amount", "type": "long"},
    {"name": "note", "type": ["null", "string"], "default": null}]}"#;

pub const TALLIED_SCHEMA: &str = r#"{"type": "record", "name": "Tallied", "fields": [
    {"name": "till", "type": "string"},
    {"name": "total", "type": "long"}]}"#;

/// The same schema with one more field at its end, which has a default.
pub fn newer_schema() -> String {
    COUNTED_SCHEMA.replace("]}", r#", {"name": "by", "type": "string", "default": ""}]}"#)
}

/// An amount was counted into a till. A topic belongs to a type, so each test has types of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counted<const TEST: u32> {
    pub till: String,
    pub amount: i64,
    pub note: Option<String>,
}

/// The current total of a till.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tallied<const TEST: u32> {
    pub till: String,
    pub total: i64,
}

impl<const TEST: u32> Event for Counted<TEST> {
    fn topic() -> &'static Topic {
        names(TEST).counted
    }
    fn key(&self) -> String {
        self.till.clone()
    }
}

impl<const TEST: u32> Event for Tallied<TEST> {
    fn topic() -> &'static Topic {
        names(TEST).tallied
    }
    fn key(&self) -> String {
        self.till.clone()
    }
}

pub fn counted<const TEST: u32>(till: &str, amount: i64) -> Counted<TEST> {
    Counted { till: till.to_string(), amount, note: None }
}

/// Names for one test: its service, which is its consumer group as well, and its topics.
pub struct Names {
    pub service: &'static str,
    pub counted: &'static Topic,
    pub tallied: &'static Topic,
}

pub fn names(test: u32) -> &'static Names {
    static NAMES: LazyLock<Mutex<BTreeMap<u32, &'static Names>>> = LazyLock::new(Mutex::default);
    NAMES.lock().entry(test).or_insert_with(|| {
        let run = Uuid::now_v7().simple();
        let service: &'static str = format!("till-{run}").leak();
        let topic = |event: &str, schema| {
            let name = format!("till.{event}.{run}").leak();
            &*Box::leak(Box::new(Topic::new(name, service, schema).days(1)))
        };
        let (counted, tallied) =
            (topic("counted", COUNTED_SCHEMA), topic("tallied", TALLIED_SCHEMA));
        Box::leak(Box::new(Names { service, counted, tallied }))
    })
}

/// The rows of a batch.
#[derive(Default)]
pub struct Tills {
    pub tallies: Table<Tally>,
}

#[derive(Clone, Debug, PartialEq, sqlx::FromRow, derive::Record)]
#[record(table = "tallies", key = "till")]
pub struct Tally {
    pub till: String,
    pub counted: i64,
    pub total: i64,
}

impl Tills {
    pub fn add(&mut self, till: &str, amount: i64) -> i64 {
        let (counted, total) = self.tallies.get(till).map_or((0, 0), |t| (t.counted, t.total));
        let tally = Tally { till: till.to_string(), counted: counted + 1, total: total + amount };
        self.tallies.put(tally);
        total + amount
    }
}

/// Publishes in an open transaction.
pub async fn publish_in(tx: &mut PgTransaction<'static>, events: &[Envelope]) {
    let mut writes = WriteBatch::new(tx);
    outbox::insert(&mut writes, events);
    writes.execute().await.unwrap();
}

impl UnitOfWork for Tills {
    type Keys = BTreeSet<String>;

    async fn load(loader: &mut Loader<'_>, keys: Self::Keys) -> sqlx::Result<Tills> {
        Ok(Tills { tallies: loader.lock(keys).await? })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.tallies);
    }
}

impl<const TEST: u32> Loads<Counted<TEST>> for Tills {
    fn keys(counted: &Counted<TEST>, keys: &mut BTreeSet<String>) {
        keys.insert(counted.till.clone());
    }
}

impl<const TEST: u32> Loads<Tallied<TEST>> for Tills {
    fn keys(_: &Tallied<TEST>, _: &mut BTreeSet<String>) {}
}

/// An amount that only an empty till accepts.
pub const ONLY_WHEN_EMPTY: i64 = 111_111;

/// `till.counted` → `till.tallied`. An amount of 0 is unprocessable, and so is [`ONLY_WHEN_EMPTY`] in a till that
/// is not empty. A negative amount panics. The database refuses a million, and a NUL in a till's name.
pub fn tally<const TEST: u32>(
    counted: &Counted<TEST>,
    tills: &mut Tills,
    _: HandlerContext,
) -> HandlerResult<Tallied<TEST>> {
    match counted.amount {
        0 => unprocessable!("nothing was counted"),
        ONLY_WHEN_EMPTY if tills.tallies.get(&counted.till).is_some() => {
            unprocessable!("it is not empty")
        }
        amount if amount < 0 => panic!("a till can't owe {amount}"),
        amount => {
            let total = tills.add(&counted.till, amount);
            Ok(Some(Tallied { till: counted.till.clone(), total }))
        }
    }
}

/// `till.tallied` → nothing.
pub fn ignore_tallied<const TEST: u32>(
    _: &Tallied<TEST>,
    _: &mut Tills,
    _: HandlerContext,
) -> HandlerResult<()> {
    Ok(None)
}

/// The impact of discarding an event that was not counted: an amount of 100 or more needs a write-off.
pub fn discard_impact<const TEST: u32>(counted: &Counted<TEST>, tills: &Tills) -> DiscardImpact {
    let total = tills.tallies.get(&counted.till).map_or(0, |tally| tally.total);
    let loss = DiscardImpact::new(format!("Till {} stays at {total}.", counted.till));
    match counted.amount {
        100.. => loss.with_write_off("what was not counted", counted.amount, "coins"),
        _ => loss.with_remedy("counts it by hand", "till", format!("/tills/{}", counted.till)),
    }
}

/// The command of a client → `till.counted`. An amount of 0 is refused, and a negative amount panics.
impl<const TEST: u32> Command for Counted<TEST> {
    type Aggregate = Tills;
    type Output = serde_json::Value;
    type Event = Counted<TEST>;
    type Refusal = Problem;

    fn decide(&self, tills: &mut Tills, _: HandlerContext) -> Decision<Self> {
        match self.amount {
            0 => Err(Problem::invalid("amount", "It must not be 0.")),
            amount if amount < 0 => panic!("a till can't owe {amount}"),
            amount => {
                let total = tills.add(&self.till, amount);
                let answer = serde_json::json!({ "till": self.till, "total": total });
                let location = format!("/tills/{}", self.till);
                Ok(Self::created(location, answer).publishing(Some(self.clone())))
            }
        }
    }
}

/// The same command with a decision of its own.
pub struct Deciding<const TEST: u32, E, R = Tills>(pub Counted<TEST>, pub DecideFn<TEST, E, R>);

pub type DecideFn<const TEST: u32, E, R = Tills> =
    fn(&Counted<TEST>, &mut R, HandlerContext) -> Result<Accepted<serde_json::Value, E>, Problem>;

impl<const TEST: u32, E> Loads<Deciding<TEST, E>> for Tills {
    fn keys(Deciding(counted, _): &Deciding<TEST, E>, keys: &mut Self::Keys) {
        <Tills as Loads<Counted<TEST>>>::keys(counted, keys);
    }
}

impl<const TEST: u32, E, R> Command for Deciding<TEST, E, R>
where
    E: Outcome + 'static,
    R: Loads<Self>,
{
    type Aggregate = R;
    type Output = serde_json::Value;
    type Event = E;
    type Refusal = Problem;

    fn decide(&self, rows: &mut R, context: HandlerContext) -> Decision<Self> {
        (self.1)(&self.0, rows, context)
    }
}

/// A command without a key.
pub fn once<C: Command>(command: C) -> Idempotent<C> {
    Idempotent::without_key(command)
}

/// The decision to accept, with nothing to publish.
pub fn accepted<E>(output: serde_json::Value) -> Accepted<serde_json::Value, E> {
    Accepted { output, event: None, location: None }
}
