//! The launcher itself: nothing that a crash leaves behind blocks a start or outlives a stop, and
//! what the parts have acknowledged survives SIGKILL. Each test has a stack of its own.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::ends::Cause;
use e2e::member::Stopped;
use e2e::process::{self, Identity, NOBODY, Signal, processes_in};
use e2e::stack::{self, State};
use e2e::topology::{Member, SERVICES};
use e2e::{Ports, Stack, parts};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::stage::nobody_dies;

/// So many stacks start at a time, beside the one of all other tests.
static ROOM: Semaphore = Semaphore::const_new(2);

pub async fn room() -> Result<SemaphorePermit<'static>> {
    Ok(ROOM.acquire().await?)
}

#[tokio::test]
async fn what_every_part_acknowledged_survives_sigkill() -> Result<()> {
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    stack.up_parts().await?;
    for service in SERVICES {
        let mut db = PgConnection::connect(&stack.database_url(service)?).await?;
        sqlx::query("create table kept as select 42 as answer").execute(&mut db).await?;
    }
    produce(&stack, "kept").await?;
    let schema = json!({"schema": r#"{"type":"record","name":"Kept","fields":[]}"#});
    let subject = format!("{}/subjects/kept-value/versions", stack.registry_url()?);
    let registered: Value = reqwest::Client::new()
        .post(&subject)
        .json(&schema)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;

    for part in Member::parts() {
        let name = part.to_string();
        assert!(stack.kill(&name).await?, "{name} did not run");
        assert!(!stack.is_running(&name).await?, "{name} survived");
    }
    assert_eq!(left_in(stack.directory()), 0);
    stack.up_parts().await?;

    for service in SERVICES {
        let mut db = PgConnection::connect(&stack.database_url(service)?).await?;
        let answer: i32 = sqlx::query_scalar("select answer from kept").fetch_one(&mut db).await?;
        assert_eq!(answer, 42);
    }
    let bootstrap = stack.kafka_bootstrap()?;
    let records = tokio::task::spawn_blocking(move || -> Result<i64> {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", bootstrap).create()?;
        Ok(consumer.fetch_watermarks("kept", 0, Duration::from_secs(20))?.1)
    });
    assert_eq!(records.await??, 1);
    let versions: Value =
        reqwest::get(format!("{subject}/1")).await?.error_for_status()?.json().await?;
    assert_eq!(versions["id"], registered["id"]);
    Ok(())
}

#[tokio::test]
async fn down_leaves_no_process_even_where_the_pid_file_is_lost() -> Result<()> {
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    stack.start("order-db").await?;
    stack.start("kafka").await?;
    std::fs::remove_file(stack.directory().join("run/order-db.pid"))?;
    assert!(left_in(stack.directory()) > 2);
    stack.down().await?;
    assert_eq!(left_in(stack.directory()), 0);
    Ok(())
}

#[tokio::test]
async fn a_stale_pid_file_is_not_a_living_process() -> Result<()> {
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    stack.start("order-db").await?;
    let pid_file = stack.directory().join("run/order-db.pid");
    let written = std::fs::read_to_string(&pid_file)?;
    stack.kill("order-db").await?;

    // The pid belongs to somebody else now, this test, as after a long time or a new boot.
    let own = std::process::id().to_string();
    let rest = written.split_once(' ').context("pid, start time, boot")?.1;
    std::fs::write(&pid_file, format!("{own} {rest}"))?;
    assert!(!stack.is_running("order-db").await?);
    assert_eq!(stack.stop("order-db").await?, Stopped::WasNotRunning);

    // PostgreSQL's own pid file names a living process as well.
    let postmaster = stack.directory().join("order-db/data/postmaster.pid");
    std::fs::write(&postmaster, format!("{own}\n"))?;
    stack.start("order-db").await?;
    assert!(stack.is_running("order-db").await?);
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_what_moves_it() -> Result<()> {
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    let url = stack.database_url("stock")?;
    let port: u16 = url.rsplit([':', '/']).nth(1).context("a port")?.parse()?;
    let taken = TcpListener::bind(("127.0.0.1", port))?;
    let refusal = stack.start("stock-db").await.expect_err("the port is taken").to_string();
    assert!(refusal.contains(&port.to_string()), "{refusal}");
    assert!(refusal.contains("STOCK_DB_PORT"), "{refusal}");
    drop(taken);
    stack.start("stock-db").await
}

#[tokio::test]
async fn how_each_process_ended_is_written_down_and_a_death_is_told_from_a_kill() -> Result<()> {
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    stack.start("order-db").await?;
    let pid = pids(&stack).await?.into_iter().find_map(
        |(name, pid)| {
            if name == "order-db" { pid } else { None }
        },
    );
    // As if it had crashed: whoever did this is not the launcher.
    let kill = format!("kill -SEGV {}", pid.context("it runs")?);
    let died = nobody_dies(&stack, async {
        Command::new("sh").args(["-c", &kill]).status()?;
        e2e::wait::eventually("its end to be written down", Duration::from_secs(60), async || {
            ensure!(stack.ends().await?.len() == 1 && !stack.is_running("order-db").await?);
            Ok(())
        })
        .await
    });
    let died = died.await.expect_err("every test from outside would fail").to_string();
    assert!(died.contains("order-db died by itself"), "{died}");
    stack.start("order-db").await?;
    stack.kill("order-db").await?;
    stack.start("order-db").await?;
    stack.stop("order-db").await?;
    let ends = stack.ends().await?;
    let told: Vec<_> = ends.iter().map(|end| (end.name.as_str(), end.status, end.cause)).collect();
    let killed = ("order-db", 137, Some(Cause::Kill));
    assert_eq!(told, [("order-db", 139, None), killed, ("order-db", 0, Some(Cause::Stop))]);
    let status = stack.status().await?;
    let shown = status.iter().find(|member| member.name == "order-db").context("listed")?;
    assert_eq!(shown.end.as_ref(), ends.last());
    Ok(())
}

#[tokio::test]
async fn two_starts_at_once_start_one_process() -> Result<()> {
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    let other = Stack::open(stack.directory())?;
    tokio::try_join!(stack.start("order-db"), other.start("order-db"))?;
    let postmaster =
        std::fs::read_to_string(stack.directory().join("order-db/data/postmaster.pid"))?;
    let status = stack.status().await?;
    let order_db = status.iter().find(|member| member.name == "order-db").context("listed")?;
    assert_eq!(postmaster.lines().next(), order_db.pid.map(|pid| pid.to_string()).as_deref());
    assert_eq!(order_db.state, State::Ready);
    Ok(())
}

#[tokio::test]
async fn a_paused_database_answers_again_when_resumed_and_can_be_killed() -> Result<()> {
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    stack.start("order-db").await?;
    let mut db = PgConnection::connect(&stack.database_url("order")?).await?;
    stack.pause("order-db").await?;
    let asked = sqlx::query("select 1").execute(&mut db);
    assert!(tokio::time::timeout(Duration::from_millis(300), asked).await.is_err());
    stack.resume("order-db").await?;
    let mut db = PgConnection::connect(&stack.database_url("order")?).await?;
    sqlx::query("select 1").execute(&mut db).await?;

    // An open connection does not hold a graceful stop up, nor does a pause a kill.
    assert!(matches!(stack.stop("order-db").await?, Stopped::Gracefully(_)));
    stack.start("order-db").await?;
    stack.pause("order-db").await?;
    assert!(stack.kill("order-db").await?);
    assert_eq!(left_in(stack.directory()), 0);
    stack.start("order-db").await
}

#[tokio::test]
async fn each_service_reaches_kafka_at_the_address_that_is_advertised_to_it() -> Result<()> {
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    stack.advertise_kafka("stock", Some("127.0.0.1:7"))?;
    stack.start("kafka").await?;
    for (service, listener) in [
        ("order", stack.kafka_listener("order")?),
        ("payment", stack.kafka_listener("payment")?),
        ("stock", "127.0.0.1:7".to_string()),
    ] {
        let bootstrap = stack.kafka_listener(service)?;
        let advertised = tokio::task::spawn_blocking(move || -> Result<String> {
            let client: BaseConsumer =
                ClientConfig::new().set("bootstrap.servers", bootstrap).create()?;
            let metadata = client.fetch_metadata(None, Duration::from_secs(20))?;
            let broker = metadata.brokers().first().context("one broker")?;
            Ok(format!("{}:{}", broker.host(), broker.port()))
        });
        assert_eq!(advertised.await??, listener, "{service}");
    }
    Ok(())
}

#[tokio::test]
async fn instances_of_a_service_run_side_by_side_and_a_second_up_adopts_what_runs() -> Result<()> {
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    stack.up().await?;
    stack.start("order-2").await?;
    assert_ne!(stack.url("order")?, stack.url("order-2")?);
    let before = pids(&stack).await?;
    assert!(before.iter().all(|(_, pid)| pid.is_some()), "{before:?}");

    assert!(stack.kill("order-2").await?);
    stack.up().await?;
    let changed = |name: &str, pid: &Option<u32>| {
        before.iter().any(|(other, old)| other == name && old != pid)
    };
    for (name, pid) in pids(&stack).await? {
        assert_eq!(changed(&name, &pid), name == "order-2", "{name}");
    }

    // What is set for a service holds for all its instances, from their next start on.
    stack.set_environment("order", "HTTP_ADDR", Some("nonsense"))?;
    for name in ["order", "order-2"] {
        assert!(matches!(stack.stop(name).await?, Stopped::Gracefully(_)), "{name}");
        let refusal = stack.start(name).await.expect_err("the address is nonsense").to_string();
        assert!(refusal.contains("ended while it started"), "{refusal}");
    }
    stack.set_environment("order", "HTTP_ADDR", None)?;

    // Another number of instances: what is new is started, what is too many is stopped.
    stack.set_instances(2).await?;
    stack.up().await?;
    let running = async || -> Result<usize> {
        Ok(pids(&stack).await?.iter().filter(|(_, pid)| pid.is_some()).count())
    };
    assert_eq!(running().await?, Member::all().len() + SERVICES.len());
    stack.set_instances(1).await?;
    assert_eq!(running().await?, Member::all().len());
    assert!(stack.url("order-2").is_err());

    stack.down().await?;
    let programs: Vec<&str> = ["java", "postgres"].into_iter().chain(SERVICES).collect();
    assert_eq!(processes_in(stack.directory(), &programs), []);
    Ok(())
}

#[tokio::test]
async fn a_command_run_with_parts_decides_the_exit_status_and_leaves_nothing() -> Result<()> {
    let _room = room().await?;
    let place = Place::new()?;
    let script = r#"test -n "$TEST_DATABASE_URL" && exit 7"#;
    let status = place.e2e(&["with-parts", "--", "sh", "-c", script]).status()?;
    assert_eq!(status.code(), Some(7));
    assert_eq!(left_in(&place.0), 0);
    assert!(!place.0.join("state/test").exists());
    Ok(())
}

#[tokio::test]
async fn a_launcher_that_was_killed_or_ended_leaves_nothing_that_blocks_the_next_start()
-> Result<()> {
    let _room = room().await?;
    let place = Place::new()?;
    let (marker, pid) = (place.0.join("started"), place.0.join("pid"));
    // As cargo and a test have it: what was started has started something itself.
    let below = format!("echo $$ > {}; touch {}; exec sleep 300", pid.display(), marker.display());
    let script = format!("sh -c '{below}'; true");
    let sleeping = || -> Result<Identity> {
        let sleeping = Identity::of(std::fs::read_to_string(&pid)?.trim().parse()?);
        ensure!(sleeping.lives(), "it ended by itself");
        Ok(sleeping)
    };
    let mut launcher = place.e2e(&["with-parts", "--", "sh", "-c", &script]).spawn()?;
    appears(&marker).await?;
    launcher.kill()?;
    launcher.wait()?;
    assert!(left_in(&place.0) > 0, "a launcher killed by SIGKILL cannot take its stack along");
    process::send(Signal::Kill, &[sleeping()?])?;

    std::fs::remove_file(&marker)?;
    let mut launcher = place.e2e(&["with-parts", "--", "sh", "-c", &script]).spawn()?;
    appears(&marker).await?;
    let sleeping = sleeping()?;
    Command::new("sh").args(["-c", &format!("kill -TERM {}", launcher.id())]).status()?;
    assert_eq!(launcher.wait()?.code(), Some(143));
    assert!(!sleeping.lives(), "what the command had started has outlived it");
    assert_eq!(left_in(&place.0), 0);
    Ok(())
}

#[tokio::test]
async fn the_parts_run_as_an_ordinary_user() -> Result<()> {
    let _room = room().await?;
    if !parts::is_root() {
        return Ok(()); // Every other test here is the proof.
    }
    let place = Place::new()?;
    // `nobody` is the one user besides root that every machine has.
    let id = NOBODY.to_string();
    let own = place.0.join("user");
    std::fs::create_dir(&own)?;
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY))?;
    // The checkout may lie where an ordinary user cannot enter.
    let program = place.0.join("e2e");
    std::fs::copy(env!("CARGO_BIN_EXE_e2e"), &program)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let status = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
        .arg(&program)
        .args(["with-parts", "--", "sh", "-c", "test $(id -u) != 0 && exit 7"])
        .env("HOME", &own)
        .env("HOLDFAST_STATE", own.join("state"))
        .env("HOLDFAST_CACHE", parts::cache_directory()?)
        .current_dir(&own)
        .status()?;
    assert_eq!(status.code(), Some(7));
    assert_eq!(left_in(&place.0), 0);
    Ok(())
}

/// A directory that a launcher started as a program keeps its state in.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let place = Self(stack::own_directory(&format!("place-{:08x}", rand::random::<u32>())));
        parts::create_open_directory(&place.0)?;
        Ok(place)
    }

    fn e2e(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_e2e"));
        command.args(arguments).env("HOLDFAST_STATE", self.0.join("state")).stdin(Stdio::null());
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = stack::end_all_in(&self.0);
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn left_in(directory: &Path) -> usize {
    processes_in(directory, &["java", "postgres"]).len()
}

async fn pids(stack: &Stack) -> Result<Vec<(String, Option<u32>)>> {
    Ok(stack.status().await?.into_iter().map(|member| (member.name, member.pid)).collect())
}

async fn appears(file: &Path) -> Result<()> {
    let begun = Instant::now();
    while !file.exists() {
        ensure!(begun.elapsed() < Duration::from_secs(300), "{} did not appear", file.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn produce(stack: &Stack, topic: &str) -> Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", stack.kafka_bootstrap()?).set("acks", "all");
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    for made in admin.create_topics([&new], &AdminOptions::new()).await? {
        made.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
    }
    let producer: FutureProducer = config.create()?;
    let record = FutureRecord::to(topic).key("key").payload("payload");
    producer.send(record, Duration::from_secs(20)).await.map_err(|(error, _)| error)?;
    Ok(())
}

/// Nobody else would end what it had started.
#[tokio::test]
async fn the_stack_of_a_test_that_was_killed_is_removed_and_that_of_a_running_one_is_not()
-> Result<()> {
    let _room = room().await?;
    let running = Stack::ephemeral()?;
    // It lives until all is there: beside this test, others look for what was left behind as well.
    let mut killed = Command::new("sleep").arg("300").spawn()?;
    let left = std::env::temp_dir().join(format!("holdfast-{}-killed", killed.id()));
    // A launcher's state, with the stack of one kind of run.
    let below = Stack::at(left.join("state/test"), Ports::free()?)?.quiet();
    below.start("order-db").await?;
    killed.kill()?;
    killed.wait()?;
    Stack::clean_left_behind().await?;
    ensure!(!left.exists(), "{} is still there", left.display());
    assert_eq!(left_in(&left), 0);
    ensure!(running.directory().exists(), "a running test's stack is gone");
    Ok(())
}

#[tokio::test]
async fn a_stack_that_is_gone_is_not_made_anew_by_a_change() -> Result<()> {
    let stack = Stack::ephemeral()?;
    stack.clean().await?;
    let refusal = stack.set_environment("order", "KEY", Some("value")).expect_err("it is gone");
    ensure!(refusal.to_string().contains("there is no stack"), "{refusal}");
    ensure!(!stack.directory().exists(), "{} is there again", stack.directory().display());
    Ok(())
}
