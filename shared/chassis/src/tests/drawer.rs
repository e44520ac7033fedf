//! What is counted into a till: its events, its rows, and the functions that decide.

use super::*;

pub const COUNTED: &str = r#"{"type": "record", "name": "Counted", "fields": [
    {"name": "till", "type": "string"},
    {"name": "amount", "type": "long"},
    {"name": "note", "type": ["null", "string"], "default": null}]}"#;

pub const TALLIED: &str = r#"{"type": "record", "name": "Tallied", "fields": [
    {"name": "till", "type": "string"},
    {"name": "total", "type": "long"}]}"#;

/// Something was counted into a till. A topic belongs to a type, so each test has types of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counted<const TEST: u32> {
    pub till: String,
    pub amount: i64,
    pub note: Option<String>,
}

/// What is in a till now.
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

/// What is the test's own: its service, which is its consumer group as well, and its topics.
pub struct Names {
    pub service: &'static str,
    pub counted: &'static Topic,
    pub tallied: &'static Topic,
}

pub fn names(test: u32) -> &'static Names {
    static NAMES: LazyLock<Mutex<BTreeMap<u32, &'static Names>>> = LazyLock::new(Mutex::default);
    NAMES.lock().unwrap().entry(test).or_insert_with(|| {
        let run = Uuid::now_v7().simple();
        let service: &'static str = format!("till-{run}").leak();
        let topic = |event: &str, schema| {
            let name = format!("till.{event}.{run}").leak();
            let (heard_by, kept) = (vec![service].leak(), Retention::Days(1));
            &*Box::leak(Box::new(Topic::new(name, service, heard_by, 3, kept, schema)))
        };
        let (counted, tallied) = (topic("counted", COUNTED), topic("tallied", TALLIED));
        Box::leak(Box::new(Names { service, counted, tallied }))
    })
}

/// The rows of a batch.
#[derive(Default)]
pub struct Drawer {
    pub tallies: Table<String, Tally>,
}

#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
pub struct Tally {
    pub till: String,
    pub counted: i64,
    pub total: i64,
}

impl Drawer {
    pub fn add(&mut self, till: &str, amount: i64) -> i64 {
        let (counted, total) = self.tallies.get(till).map_or((0, 0), |t| (t.counted, t.total));
        let tally = Tally { till: till.to_string(), counted: counted + 1, total: total + amount };
        self.tallies.put(till.to_string(), tally);
        total + amount
    }
}

/// Publishes in a transaction that is open, and nothing else.
pub async fn publish(tx: &mut PgTransaction<'static>, events: &[Envelope]) {
    let mut writes = Writes::of(tx);
    outbox::publish(&mut writes, events);
    writes.run().await.unwrap();
}

impl Rows for Drawer {
    type Keys = BTreeSet<String>;

    async fn load(tx: &mut PgConnection, keys: Self::Keys) -> sqlx::Result<Drawer> {
        let tallies =
            sqlx::query_as("select * from tallies where till = any($1) order by till for update")
                .bind(Vec::from_iter(keys.iter().map(String::as_str)))
                .fetch_all(tx)
                .await?;
        Ok(Drawer { tallies: Table::read(keys, tallies, |tally: &Tally| tally.till.clone()) })
    }

    fn save(&self, writes: &mut Writes<'_>) {
        const UPDATE: &str = "
            update tallies set counted = t.counted, total = t.total
            from (select unnest($1::text[]) as till, unnest($2::bigint[]) as counted,
                         unnest($3::bigint[]) as total) as t
            where tallies.till = t.till";
        const INSERT: &str = "
            insert into tallies
            select unnest($1::text[]), unnest($2::bigint[]), unnest($3::bigint[])";
        for (statement, rows) in
            [(UPDATE, self.tallies.updated()), (INSERT, self.tallies.inserted())]
        {
            if !rows.is_empty() {
                writes
                    .add(statement)
                    .bind(rows.iter().map(|tally| tally.till.as_str()).collect::<Vec<_>>())
                    .bind(rows.iter().map(|tally| tally.counted).collect::<Vec<_>>())
                    .bind(rows.iter().map(|tally| tally.total).collect::<Vec<_>>());
            }
        }
    }
}

impl<const TEST: u32> Touches<Counted<TEST>> for Drawer {
    fn touch(counted: &Counted<TEST>, keys: &mut BTreeSet<String>) {
        keys.insert(counted.till.clone());
    }
}

impl<const TEST: u32> Touches<Tallied<TEST>> for Drawer {
    fn touch(_: &Tallied<TEST>, _: &mut BTreeSet<String>) {}
}

/// What is put into an empty till, or not at all.
pub const CHANGE: i64 = 111_111;

/// `till.counted` → `till.tallied`. To count nothing is impossible, and so is [`CHANGE`] in a till that
/// is not empty; to count less is a panic, and the database refuses a million, and a NUL in a till's
/// name.
pub fn tally<const TEST: u32>(
    counted: &Counted<TEST>,
    drawer: &mut Drawer,
    _: At,
) -> Answer<Tallied<TEST>> {
    match counted.amount {
        0 => impossible!("nothing was counted"),
        CHANGE if drawer.tallies.get(&counted.till).is_some() => impossible!("it is not empty"),
        amount if amount < 0 => panic!("a till can't owe {amount}"),
        amount => {
            let total = drawer.add(&counted.till, amount);
            Ok(Some(Tallied { till: counted.till.clone(), total }))
        }
    }
}

/// `till.tallied` → nothing.
pub fn noted<const TEST: u32>(_: &Tallied<TEST>, _: &mut Drawer, _: At) -> Answer<()> {
    Ok(None)
}

/// What it costs that something is never counted: from 100 up it has to be written off.
pub fn uncounted<const TEST: u32>(counted: &Counted<TEST>, drawer: &Drawer) -> Loss {
    let total = drawer.tallies.get(&counted.till).map_or(0, |tally| tally.total);
    let loss = Loss::that(format!("Till {} stays at {total}.", counted.till));
    match counted.amount {
        100.. => loss.writing_off("what was not counted", counted.amount, "coins"),
        _ => loss.offering("counts it by hand", "till", format!("/tills/{}", counted.till)),
    }
}

/// The command of a client who counts → `till.counted`. Nothing is refused, less is a panic.
pub fn count<const TEST: u32>(
    wish: &Counted<TEST>,
    drawer: &mut Drawer,
    _: At,
) -> Result<Reply, Problem> {
    match wish.amount {
        0 => Err(Problem::invalid("amount", "It must not be 0.")),
        amount if amount < 0 => panic!("a till can't owe {amount}"),
        amount => {
            let total = drawer.add(&wish.till, amount);
            let answer = serde_json::json!({ "till": wish.till, "total": total });
            let place = format!("/tills/{}", wish.till);
            Ok(Reply::created(place, &answer).publishing(Some(wish.clone())))
        }
    }
}
