//! Dead letters on the command line: what an operator asks of a service's operators' port, in words.
//! And the two ways to make one by hand: bytes that are no event, and a database that refuses.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chassis::event::Topic;
use clap::Subcommand;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::Stack;
use crate::client::Client;
use crate::outcome::Answer;
use crate::strangers::KEY;
use crate::topology::SERVICES;

/// Instances of a service that are asked, one after the other.
const INSTANCES_MAX: usize = 9;

const SENT_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// List the dead letters that wait for an operator
    DeadLetters { service: Option<String> },
    /// Show one dead letter: why, where, what it says, and what it would cost to discard it
    DeadLetter { service: String, id: i64 },
    /// Let a dead letter have its effect now, or `all` that wait
    Replay { service: String, id: String },
    /// Give a dead letter up, for ever
    Discard {
        service: String,
        id: i64,
        /// Why, in your words
        #[arg(long, env)]
        because: String,
        /// Don't ask
        #[arg(long)]
        yes: bool,
        /// Take the offer as well, if there is one
        #[arg(long)]
        cancel: bool,
        /// Agree to what has to be written off
        #[arg(long)]
        write_off: bool,
    },
    /// Let a paused consumer go on
    Resume { service: String },
    /// Put a record that is no event into orders.created
    Poison,
    /// Run a statement in a service's database, as its superuser
    Sql {
        service: String,
        #[arg(env = "SQL")]
        statement: String,
    },
}

/// Does it, and tells `out`. The code says whether it was done.
pub async fn run(stack: &Stack, command: &Command, out: &mut impl Write) -> Result<ExitCode> {
    let done = match command {
        Command::DeadLetters { service } => list(stack, service.as_deref(), out).await?,
        Command::DeadLetter { service, id } => {
            let letter = Desk::of(stack, service).await?.letter(*id).await?;
            show(service, &letter, out)?;
            true
        }
        Command::Replay { service, id } if id == "all" => replay_all(stack, service, out).await?,
        Command::Replay { service, id } => {
            let id: i64 =
                id.parse().with_context(|| format!("`{id}` is neither a number nor all"))?;
            replay(stack, service, id, out).await?
        }
        Command::Discard { service, id, because, yes, cancel, write_off } => {
            let agreed = Agreed { yes: *yes, cancel: *cancel, write_off: *write_off };
            discard(stack, service, *id, because, agreed, out).await?
        }
        Command::Resume { service } => {
            let desk = Desk::of(stack, service).await?;
            let _: Value = desk.post("/consumer/resume", None).await?.accepted()?;
            writeln!(out, "the consumer of {service} goes on within a few seconds")?;
            true
        }
        Command::Poison => {
            poison(stack, &events::orders::CREATED, out).await?;
            true
        }
        Command::Sql { service, statement } => sql(stack, service, statement, out).await?,
    };
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The operators' port of a service: that of the first instance that answers.
struct Desk {
    client: Client,
    url: String,
}

impl Desk {
    async fn of(stack: &Stack, service: &str) -> Result<Desk> {
        ensure!(
            SERVICES.contains(&service),
            "`{service}` is no service: say SERVICE={}",
            SERVICES.join(" or ")
        );
        let client = Client::of(stack)?;
        let further = (2..=INSTANCES_MAX).map(|nth| format!("{service}-{nth}"));
        let mut trouble = None;
        for name in std::iter::once(service.to_string()).chain(further) {
            let Ok(url) = stack.operator_url(&name) else { continue };
            match client.send(Method::GET, &format!("{url}/consumer"), None, None).await {
                Ok(_) => return Ok(Desk { client, url }),
                Err(error) => trouble = Some(error),
            }
        }
        let trouble = trouble.map_or("it has no instance".into(), |error| error.to_string());
        bail!("no instance of {service} answers at its operators' port: {trouble}")
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.client.get(&format!("{}{path}", self.url)).await
    }

    async fn post(&self, path: &str, body: Option<&Value>) -> Result<Answer> {
        let body = body.map(|body| body.to_string().into_bytes());
        Ok(self.client.send(Method::POST, &format!("{}{path}", self.url), None, body).await?)
    }

    async fn letter(&self, id: i64) -> Result<Value> {
        self.get(&format!("/dead-letters/{id}")).await
    }
}

/// What a problem says, for people.
fn detail(answer: &Answer) -> String {
    let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    problem["detail"].as_str().map_or_else(|| answer.to_string(), str::to_string)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn place(letter: &Value) -> String {
    format!("{}[{}]@{}", text(&letter["topic"]), letter["partition"], letter["offset"])
}

async fn list(stack: &Stack, service: Option<&str>, out: &mut impl Write) -> Result<bool> {
    let services = service.map_or(SERVICES.to_vec(), |service| vec![service]);
    let (mut first, mut all) = (None, true);
    for service in services {
        let desk = match Desk::of(stack, service).await {
            Ok(desk) => desk,
            Err(error) => {
                writeln!(out, "{service}: {error:#}")?;
                all = false;
                continue;
            }
        };
        let page = desk.get("/dead-letters").await?;
        writeln!(out, "{service}: {} waiting", page["waiting"])?;
        for letter in page["dead_letters"].as_array().into_iter().flatten() {
            let id = &letter["letter_id"];
            first.get_or_insert_with(|| format!("SERVICE={service} ID={id}"));
            let (kind, since) = (text(&letter["kind"]), text(&letter["received_at"]));
            writeln!(out, "  {id:>4}  {since}  {}  {kind}", place(letter))?;
            writeln!(out, "        {}", text(&letter["reason"]))?;
        }
        if page["next"].is_i64() {
            writeln!(out, "        and more, which are newer")?;
        }
        let consumer = desk.get("/consumer").await?;
        if let Some(since) = consumer["paused_at"].as_str() {
            let reason = text(&consumer["reason"]);
            writeln!(out, "  its consumer is paused since {since}: {reason}")?;
            writeln!(out, "  when the cause is gone: make resume SERVICE={service}")?;
        }
    }
    if let Some(first) = first {
        writeln!(out, "read one: make dead-letter {first}")?;
    }
    Ok(all)
}

fn show(service: &str, letter: &Value, out: &mut impl Write) -> Result<()> {
    let (id, state) = (&letter["letter_id"], text(&letter["state"]));
    writeln!(out, "dead letter {id} of {service}: {state}")?;
    let mut row = |name: &str, what: String| writeln!(out, "  {name:<13} {what}");
    row("why", format!("{}: {}", text(&letter["kind"]), text(&letter["reason"])))?;
    row("where", format!("{} in cluster {}", place(letter), text(&letter["cluster"])))?;
    row("since", text(&letter["received_at"]).to_string())?;
    row("tries", letter["attempts"].to_string())?;
    if let Some(settled_at) = letter["settled_at"].as_str() {
        let because = letter["because"].as_str().map(|because| format!(", because: {because}"));
        row("settled", format!("{settled_at}{}", because.unwrap_or_default()))?;
    }
    row("event", text(&letter["event_id"]).to_string())?;
    row("key", text(&letter["key"]).to_string())?;
    row("trace", text(&letter["traceparent"]).to_string())?;
    for (nth, (name, value)) in letter["headers"].as_object().into_iter().flatten().enumerate() {
        row(if nth == 0 { "headers" } else { "" }, format!("{name}: {}", text(value)))?;
    }
    row("record", text(&letter["record"]).to_string())?;
    if let Some(read_with) = letter["read_with"].as_str() {
        row("says", format!("read with {read_with}:"))?;
        for line in serde_json::to_string_pretty(&letter["event"])?.lines() {
            row("", line.to_string())?;
        }
    }
    if let Some(because) = letter["unreadable"].as_str() {
        row("unreadable", because.to_string())?;
    }
    if state == "waiting" {
        tell_loss(&letter["if_discarded"], "if discarded", out)?;
        writeln!(out, "once its cause is gone:  make replay SERVICE={service} ID={id}")?;
        writeln!(
            out,
            "to give it up for ever:  make discard SERVICE={service} ID={id} BECAUSE=\"…\""
        )?;
    }
    Ok(())
}

fn tell_loss(loss: &Value, title: &str, out: &mut impl Write) -> Result<()> {
    writeln!(out, "  {title:<13} {}", text(&loss["consequence"]))?;
    for write_off in loss["write_offs"].as_array().into_iter().flatten() {
        let (unit, what) = (text(&write_off["unit"]), text(&write_off["what"]));
        writeln!(out, "  {:<13} {} {unit}: {what}", "written off", write_off["amount"])?;
    }
    let offer = &loss["offer"];
    if offer.is_object() {
        let (method, path) = (text(&offer["method"]), text(&offer["path"]));
        let (service, does) = (text(&offer["service"]), text(&offer["does"]));
        writeln!(out, "  {:<13} {method} {path} at {service}: {does}", "offered")?;
    }
    Ok(())
}

async fn replay(stack: &Stack, service: &str, id: i64, out: &mut impl Write) -> Result<bool> {
    let desk = Desk::of(stack, service).await?;
    let answer = desk.post(&format!("/dead-letters/{id}/replay"), None).await?;
    if !answer.is_success() {
        writeln!(out, "{}", detail(&answer))?;
        return Ok(false);
    }
    let answer: Value = answer.json()?;
    let said = match text(&answer["outcome"]) {
        "replayed" => "is replayed: its event has had its effect",
        "handled_before" => "is closed: its event was handled when it came another time",
        "discarded_before" => "is closed: its event was discarded in another letter",
        _ => "was replayed before; nothing was done",
    };
    writeln!(out, "dead letter {id} of {service} {said}")?;
    Ok(true)
}

async fn replay_all(stack: &Stack, service: &str, out: &mut impl Write) -> Result<bool> {
    let desk = Desk::of(stack, service).await?;
    let (mut replayed, mut still_dead, mut after) = (0, 0, json!(0));
    while !after.is_null() {
        let wish = json!({ "after": after });
        let answer = desk.post("/dead-letters/replay", Some(&wish)).await?;
        if !answer.is_success() {
            writeln!(out, "{}", detail(&answer))?;
            return Ok(false);
        }
        let answer: Value = answer.json()?;
        replayed += answer["replayed"].as_i64().unwrap_or(0);
        still_dead += answer["still_dead"].as_i64().unwrap_or(0);
        after = answer["next"].clone();
    }
    writeln!(
        out,
        "{replayed} dead letters of {service} are replayed, {still_dead} are dead still"
    )?;
    Ok(still_dead == 0)
}

/// What was agreed to beforehand.
#[derive(Clone, Copy)]
struct Agreed {
    yes: bool,
    cancel: bool,
    write_off: bool,
}

async fn discard(
    stack: &Stack,
    service: &str,
    id: i64,
    because: &str,
    agreed: Agreed,
    out: &mut impl Write,
) -> Result<bool> {
    let desk = Desk::of(stack, service).await?;
    let letter = desk.letter(id).await?;
    if letter["state"] != "waiting" {
        writeln!(out, "dead letter {id} of {service} is {} already", text(&letter["state"]))?;
        return Ok(letter["state"] == "discarded");
    }
    let loss = &letter["if_discarded"];
    writeln!(
        out,
        "dead letter {id} of {service}, {}: {}",
        place(&letter),
        text(&letter["reason"])
    )?;
    tell_loss(loss, "if discarded", out)?;
    let has_write_off = loss["write_offs"].as_array().is_some_and(|them| !them.is_empty());
    let offered = loss["offer"].is_object();
    let Agreed { yes, mut cancel, mut write_off } = agreed;
    if !yes {
        ensure!(
            std::io::stdin().is_terminal(),
            "without a terminal to ask at, say YES=1 (and CANCEL=1 or WRITE_OFF=1 where you want that)"
        );
        let question = if has_write_off { "Discard it, and write that off" } else { "Discard it" };
        if !is_yes(question, out)? {
            writeln!(out, "nothing was done")?;
            return Ok(false);
        }
        write_off |= has_write_off;
        cancel |= offered
            && is_yes(
                &format!("And then what is offered ({})", text(&loss["offer"]["does"])),
                out,
            )?;
    }
    let wish = json!({ "because": because, "write_off": write_off });
    let answer = desk.post(&format!("/dead-letters/{id}/discard"), Some(&wish)).await?;
    if !answer.is_success() {
        let say = if answer.problem().as_deref() == Some("write-off-needed") {
            " Here: WRITE_OFF=1."
        } else {
            ""
        };
        writeln!(out, "{}{say}", detail(&answer))?;
        return Ok(false);
    }
    writeln!(out, "dead letter {id} of {service} is discarded")?;
    if cancel && offered {
        let (at, path) = (text(&loss["offer"]["service"]), text(&loss["offer"]["path"]));
        let url =
            format!("{}{path}", desk.client.addresses.apis.get(at).context("who offers it?")?);
        let answer = desk.client.send(Method::POST, &url, None, None).await?;
        ensure!(answer.is_success(), "{at} did not take POST {path}: {}", detail(&answer));
        writeln!(out, "{at} took POST {path}")?;
    }
    Ok(true)
}

fn is_yes(question: &str, out: &mut impl Write) -> Result<bool> {
    write!(out, "{question}? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// Puts a record that is no event into a topic.
pub async fn poison(stack: &Stack, topic: &Topic, out: &mut impl Write) -> Result<()> {
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", stack.kafka_bootstrap()?).create()?;
    let event_id = Uuid::now_v7().to_string();
    let headers = OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(&event_id) });
    let topic = topic.name;
    let record = FutureRecord::to(topic).key(KEY).payload("this is no event").headers(headers);
    let landed = producer.send(record, SENT_WITHIN).await.map_err(|(error, _)| error)?;
    writeln!(out, "\"this is no event\" lies at {topic}[{}]@{}", landed.partition, landed.offset)?;
    Ok(())
}

async fn sql(stack: &Stack, service: &str, statement: &str, out: &mut impl Write) -> Result<bool> {
    let service = service.trim_end_matches("-db");
    let mut db = PgConnection::connect(&stack.database_url(service)?).await?;
    // A table that is in use is not to be waited for, for everybody else then waits as well.
    db.execute("set lock_timeout = '5s'").await?;
    if statement.trim_start().to_lowercase().starts_with("select") {
        let statement = statement.trim_end().trim_end_matches(';');
        let rows = format!("select row_to_json(row)::text from ({statement}) as row");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(rows)).fetch_all(&mut db).await?;
        rows.iter().try_for_each(|row| writeln!(out, "{row}"))?;
    } else {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut db).await?;
        writeln!(out, "done in the database of {service}")?;
    }
    Ok(true)
}
