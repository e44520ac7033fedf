//! A repository of one's own: it is generated, passes its tests, and is upgraded to a newer version of the crates and
//! back, instance by instance, while events arrive.

use std::path::{Path, PathBuf};

use chassis::event::{Event, Subscriptions, Topic};
use checker::{System, check, outbox_log};
use chrono::{DateTime, Utc};
use e2e::mutants::worktree::{Worktree, run_to_end};
use e2e::new_repository::generate;
use e2e::stack_description::checkout;
use launcher::StackDescription;
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};
use testing::EventProducer;
use tokio::process::Command;

use super::*;
use crate::upgrade::{NEWER_INBOX, add_newer_chassis_migration};

const SERVICE: &str = "shop";

/// 50 events a second.
const EVENT_INTERVAL: Duration = Duration::from_millis(20);

/// How long each mix of versions is under load.
const STEP_DURATION: Duration = Duration::from_secs(3);

/// The load reaches half of its rate, even on a busy machine.
const PURCHASES_MIN: usize = 300;

/// The newer crates, and a newer handler.
const NEWER_VERSION: &str = "0.2.0";

static CONFIRMED: Topic = Topic::new(
    "purchases.confirmed",
    "purchase",
    include_str!("../../../repository_template/schemas/purchases.confirmed.avsc"),
)
.personal(&[SERVICE]);
static ACCEPTED: Topic = Topic::new(
    "shop.accepted",
    SERVICE,
    include_str!("../../../repository_template/schemas/shop.accepted.avsc"),
);
static TOPICS: [&Topic; 2] = [&CONFIRMED, &ACCEPTED];

/// What the generated service hears.
#[derive(Serialize, Deserialize)]
struct PurchaseConfirmed {
    purchase_id: Uuid,
    customer_id: Uuid,
    lines: Vec<()>,
    total_cents: i64,
    currency: String,
    #[serde(with = "chrono::serde::ts_microseconds")]
    occurred_at: DateTime<Utc>,
}

impl Event for PurchaseConfirmed {
    fn topic() -> &'static Topic {
        &CONFIRMED
    }
    fn key(&self) -> String {
        self.purchase_id.to_string()
    }
}

/// The repository, and where its programs are built. Both stay for the next run, since the first build takes minutes.
struct Repository {
    root: PathBuf,
    target: PathBuf,
}

impl Repository {
    fn generate() -> Result<Repository> {
        let all = checkout().join("target/repository");
        let (root, target) = (all.join(SERVICE), all.join("build"));
        let _ = std::fs::remove_dir_all(&root);
        generate(&root, SERVICE, checkout().to_str())?;
        Ok(Repository { root, target })
    }

    async fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.root);
        command.env("CARGO_TARGET_DIR", &self.target).env("CARGO_NET_OFFLINE", "true");
        command.env("HOLDFAST_STATE", self.root.join(".holdfast"));
        run_to_end(command).await.map(drop)
    }

    /// Builds the programs, and keeps a copy of them.
    async fn build(&self, name: &str) -> Result<PathBuf> {
        self.run("cargo", &["build", "--quiet"]).await?;
        let kept = self.target.join(name);
        std::fs::create_dir_all(&kept)?;
        for program in [SERVICE, "contracts"] {
            std::fs::copy(self.target.join("debug").join(program), kept.join(program))?;
        }
        Ok(kept)
    }

    fn edit(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let file = self.root.join(file);
        let text = std::fs::read_to_string(&file)?;
        ensure!(text.contains(from), "{} has no {from}", file.display());
        Ok(std::fs::write(file, text.replace(from, to))?)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make faults"]
async fn a_new_repository_passes_its_tests_and_is_upgraded_under_load_and_back() -> Result<()> {
    without_fixture(async || {
        let repository = Repository::generate()?;
        repository.run("make", &["test"]).await?;
        let older = repository.build("older").await?;

        let crates = Worktree::create("newer-crates").await?;
        let (file, from, to) = NEWER_INBOX;
        crates.edit(file, from, to)?;
        add_newer_chassis_migration(&crates)?;
        let manifest = std::fs::read_to_string(crates.root.join("Cargo.toml"))?;
        let newer =
            manifest.replace("version = \"0.1.0\"", &format!("version = {NEWER_VERSION:?}"));
        std::fs::write(crates.root.join("Cargo.toml"), newer)?;
        let (here, there) = (checkout(), crates.root.clone());
        repository.edit("Cargo.toml", &here.display().to_string(), &there.display().to_string())?;
        repository.edit(
            "Cargo.toml",
            "version = \"0.1.0\", path",
            &format!("version = {NEWER_VERSION:?}, path"),
        )?;
        repository.edit(
            "src/saga.rs",
            "purchase.currency.clone()",
            "purchase.currency.to_lowercase()",
        )?;
        let newer = repository.build("newer").await?;
        upgrade_and_roll_back(&repository.root, &older, &newer).await
    })
    .await
}

async fn upgrade_and_roll_back(root: &Path, older: &Path, newer: &Path) -> Result<()> {
    let description = StackDescription {
        project: "holdfast-shop".to_string(),
        root: root.to_path_buf(),
        services: vec![SERVICE.to_string()],
        contracts_program: Some("contracts".to_string()),
        console: false,
        stream_processors: Vec::new(),
        optional_services: Vec::new(),
        secure: false,
    };
    let stack = Stack::ephemeral(&description)?;
    without_unexpected_exits(&stack, roll_under_load(&stack, older, newer)).await
}

async fn roll_under_load(stack: &Stack, older: &Path, newer: &Path) -> Result<()> {
    const INSTANCES: [&str; 2] = ["shop", "shop-2"];
    stack.up_infrastructure().await?;
    stack.apply_contracts(older).await?;
    stack.migrate_with(older, SERVICE).await?;
    for instance in INSTANCES {
        stack.set_programs(instance, older)?;
        stack.start(instance).await?;
    }
    let system = System {
        topics: &TOPICS,
        subscriptions: Subscriptions::new([(SERVICE, vec![&CONFIRMED])]),
        databases: [(SERVICE, stack.database_url(SERVICE)?)].into(),
        kafka: stack.kafka_client()?,
        registry: stack.registry_url()?,
        registry_ca: stack.ca_certificate()?,
    };
    outbox_log::install(&system).await?;
    let publisher = EventProducer::new(&system.kafka, &system.registry)?;
    // The instance that clients use: one that is not being replaced.
    let serving = tokio::sync::watch::channel(INSTANCES[1]);
    let roll = async {
        stack.migrate_with(newer, SERVICE).await?;
        for version in [newer, older] {
            for (nth, instance) in INSTANCES.into_iter().enumerate() {
                serving.0.send_replace(INSTANCES[1 - nth]);
                stack.stop(instance).await?;
                stack.set_programs(instance, version)?;
                stack.start(instance).await?;
                sleep(STEP_DURATION).await;
            }
        }
        anyhow::Ok(())
    };
    let mut confirmed: Vec<Uuid> = Vec::new();
    let load = async {
        let (mut ticks, client) = (tokio::time::interval(EVENT_INTERVAL), reqwest::Client::new());
        loop {
            ticks.tick().await;
            let purchase_id = Uuid::now_v7();
            let purchase = PurchaseConfirmed {
                purchase_id,
                customer_id: Uuid::max(),
                lines: Vec::new(),
                total_cents: 0,
                currency: "EUR".to_string(),
                occurred_at: Utc::now(),
            };
            publisher.publish(&purchase).await?;
            confirmed.push(purchase_id);
            let instance = *serving.1.borrow();
            let url = format!("{}/purchases/{purchase_id}", stack.url(instance)?);
            let status = client.get(&url).send().await?.status().as_u16();
            ensure!([200, 404].contains(&status), "{instance} answers with {status}");
        }
    };
    tokio::select! {
        rolled = roll => rolled?,
        failed = load => return failed,
    }
    println!("{} purchases", confirmed.len());
    ensure!(confirmed.len() >= PURCHASES_MIN, "the load was {} purchases", confirmed.len());
    assert_recorded_by_both_versions(stack, &system, &confirmed).await
}

/// Every purchase was recorded once, some by each version.
async fn assert_recorded_by_both_versions(
    stack: &Stack,
    system: &System,
    confirmed: &[Uuid],
) -> Result<()> {
    let client = reqwest::Client::new();
    for purchase_id in confirmed {
        let url = format!("{}/purchases/{purchase_id}", stack.url(SERVICE)?);
        let status = async || Ok(client.get(&url).send().await?.status());
        wait_for("the purchase to be recorded", TIMEOUT, status, |status| *status == 200).await?;
    }
    let verdict = check(system, TIMEOUT).await?;
    ensure!(verdict.holds(), "{}", verdict.lines().join("\n"));
    let mut db = PgConnection::connect(&stack.database_url(SERVICE)?).await?;
    let currencies = "select distinct currency collate \"C\" from confirmed_purchases order by 1";
    let currencies: Vec<String> = sqlx::query_scalar(currencies).fetch_all(&mut db).await?;
    ensure!(currencies == ["EUR", "eur"], "both versions handle events: {currencies:?}");
    let handlers = "select count(distinct handled_by) from chassis.inbox";
    let handlers: i64 = sqlx::query_scalar(handlers).fetch_one(&mut db).await?;
    ensure!(handlers == 2, "both versions of the chassis write the inbox: {handlers}");
    Ok(())
}
