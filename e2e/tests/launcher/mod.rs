//! The launcher itself: nothing that a crash leaves behind blocks a start or survives a stop, and
//! data that the components have acknowledged survives SIGKILL. Each test has a stack of its own.

mod leftovers;
mod private_files;
mod program;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::stack_description::{SERVICES, stack_description};
use launcher::proc_fs::processes_in;
use launcher::{ComponentState, ExitCause, Stack, StopOutcome};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::fixture::*;
use std::path::Path;

#[tokio::test]
async fn what_databases_kafka_and_registry_acknowledged_survives_sigkill() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    stack.up_infrastructure().await?;
    for service in SERVICES {
        let mut db = PgConnection::connect(&stack.database_url(service)?).await?;
        sqlx::query("create table kept as select 42 as answer").execute(&mut db).await?;
    }
    produce_record(&stack, "kept").await?;
    let schema = json!({"schema": r#"{"type":"record","name":"Kept","fields":[]}"#});
    let subject = format!("{}/subjects/kept-value/versions", stack.registry_url()?);
    let registered = reqwest::Client::new().post(&subject).json(&schema).send().await?;
    let registered: Value = registered.error_for_status()?.json().await?;

    for part in stack_description().infrastructure() {
        let name = part.to_string();
        assert!(stack.kill(&name).await?, "{name} did not run");
        assert!(!stack.is_running(&name).await?, "{name} survived");
    }
    assert_eq!(processes_left_in(stack.directory()), 0);
    stack.up_infrastructure().await?;

    for service in SERVICES {
        let mut db = PgConnection::connect(&stack.database_url(service)?).await?;
        let answer: i32 = sqlx::query_scalar("select answer from kept").fetch_one(&mut db).await?;
        assert_eq!(answer, 42);
    }
    let kafka = stack.kafka_client()?;
    let records = tokio::task::spawn_blocking(move || -> Result<i64> {
        let consumer: BaseConsumer = kafka.create()?;
        Ok(consumer.fetch_watermarks("kept", 0, Duration::from_secs(20))?.1)
    });
    assert_eq!(records.await??, 1);
    let versions: Value = reqwest::get(format!("{subject}/1")).await?.json().await?;
    assert_eq!(versions["id"], registered["id"]);
    Ok(())
}

#[tokio::test]
async fn each_exit_is_recorded_and_a_crash_is_distinguished_from_a_kill() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    stack.start("order-db").await?;
    let pids = pids(&stack).await?.into_iter();
    let pid = pids.filter(|(name, _)| name == "order-db").find_map(|(_, pid)| pid);
    // A crash: this signal does not come from the launcher.
    let kill = format!("kill -SEGV {}", pid.context("it runs")?);
    let outcome = without_unexpected_exits(&stack, async {
        Command::new("sh").args(["-c", &kill]).status()?;
        launcher::eventually("its exit to be recorded", Duration::from_secs(60), async || {
            ensure!(stack.exits().await?.len() == 1 && !stack.is_running("order-db").await?);
            Ok(())
        })
        .await
    });
    let error = outcome.await.expect_err("every test from outside would fail").to_string();
    assert!(error.contains("order-db exited by itself"), "{error}");
    stack.start("order-db").await?;
    stack.kill("order-db").await?;
    stack.start("order-db").await?;
    stack.stop("order-db").await?;
    let ends = stack.exits().await?;
    let exits: Vec<_> = ends.iter().map(|end| (end.name.as_str(), end.status, end.cause)).collect();
    let killed = ("order-db", 137, Some(ExitCause::Kill));
    assert_eq!(exits, [("order-db", 139, None), killed, ("order-db", 0, Some(ExitCause::Stop))]);
    let status = stack.status().await?;
    let shown = status.iter().find(|member| member.name == "order-db").context("listed")?;
    assert_eq!(shown.last_exit.as_ref(), ends.last());
    Ok(())
}

#[tokio::test]
async fn two_starts_at_once_start_one_process() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    let other = Stack::open(&stack_description(), stack.directory())?;
    tokio::try_join!(stack.start("order-db"), other.start("order-db"))?;
    let postmaster =
        std::fs::read_to_string(stack.directory().join("order-db/data/postmaster.pid"))?;
    let status = stack.status().await?;
    let order_db = status.iter().find(|member| member.name == "order-db").context("listed")?;
    assert_eq!(postmaster.lines().next(), order_db.pid.map(|pid| pid.to_string()).as_deref());
    assert_eq!(order_db.state, ComponentState::Ready);
    Ok(())
}

#[tokio::test]
async fn a_paused_database_answers_again_when_resumed_and_can_be_killed() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    stack.start("order-db").await?;
    let mut db = PgConnection::connect(&stack.database_url("order")?).await?;
    stack.pause("order-db").await?;
    let asked = sqlx::query("select 1").execute(&mut db);
    assert!(tokio::time::timeout(Duration::from_millis(300), asked).await.is_err());
    stack.resume("order-db").await?;
    let mut db = PgConnection::connect(&stack.database_url("order")?).await?;
    sqlx::query("select 1").execute(&mut db).await?;

    // An open connection does not delay a graceful stop, and a pause does not delay a kill.
    assert!(matches!(stack.stop("order-db").await?, StopOutcome::Graceful(_)));
    stack.start("order-db").await?;
    stack.pause("order-db").await?;
    assert!(stack.kill("order-db").await?);
    assert_eq!(processes_left_in(stack.directory()), 0);
    stack.start("order-db").await
}

#[tokio::test]
async fn each_service_reaches_kafka_at_the_address_that_is_advertised_to_it() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    stack.advertise_kafka("stock", Some("127.0.0.1:7"))?;
    stack.start("kafka").await?;
    for (service, listener) in [
        ("order", stack.kafka_listener("order")?),
        ("payment", stack.kafka_listener("payment")?),
        ("stock", "127.0.0.1:7".to_string()),
    ] {
        let kafka = stack.kafka_client_as(service)?;
        let advertised = tokio::task::spawn_blocking(move || -> Result<String> {
            let client: BaseConsumer = kafka.create()?;
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
    let (_permit, stack) = own_stack().await?;
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

    // A variable of a service applies to all its instances, from their next start on.
    stack.set_environment("order", "HTTP_ADDR", Some("nonsense"))?;
    for name in ["order", "order-2"] {
        assert!(matches!(stack.stop(name).await?, StopOutcome::Graceful(_)), "{name}");
        let refusal = stack.start(name).await.expect_err("the address is nonsense").to_string();
        assert!(refusal.contains("exited during its start"), "{refusal}");
    }
    stack.set_environment("order", "HTTP_ADDR", None)?;

    // Another number of instances: new ones are started, and surplus ones are stopped.
    stack.set_instances(2).await?;
    stack.up().await?;
    let running = async || -> Result<usize> {
        Ok(pids(&stack).await?.iter().filter(|(_, pid)| pid.is_some()).count())
    };
    assert_eq!(running().await?, stack_description().components().len() + SERVICES.len());
    stack.set_instances(1).await?;
    assert_eq!(running().await?, stack_description().components().len());
    assert!(stack.url("order-2").is_err());

    stack.down().await?;
    let programs: Vec<&str> = ["java", "postgres"].into_iter().chain(SERVICES).collect();
    assert_eq!(processes_in(stack.directory(), &programs), []);
    Ok(())
}

async fn pids(stack: &Stack) -> Result<Vec<(String, Option<u32>)>> {
    Ok(stack.status().await?.into_iter().map(|member| (member.name, member.pid)).collect())
}

async fn produce_record(stack: &Stack, topic: &str) -> Result<()> {
    let mut config = stack.kafka_client()?;
    config.set("acks", "all");
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

fn processes_left_in(directory: &Path) -> usize {
    processes_in(directory, &["java", "postgres"]).len()
}
