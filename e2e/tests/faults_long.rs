//! Faults that take minutes, or a disk, or a clock of their own: `make faults` runs them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::brokers::Brokers;
use e2e::client::{Client, Order};
use e2e::load::{self, Load};
use e2e::outcome::Outcome;
use e2e::pairs::{Dependency, Pair};
use e2e::progress::Watch;
use e2e::topology::SERVICES;
use e2e::wait::eventually;
use e2e::{Stack, replays, seed, verify};
use events::TOPICS;
use futures::future::try_join_all;
use rdkafka::admin::{AdminOptions, NewPartitions};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::faults::{frozen, read_all, two_of_each};
use crate::faults_network::{cut, ways};
use crate::stage::{
    DRAINED, SOON, Stage, all_end, alone, aside, basket, everybody, missing, nobody_dies,
    nobody_notices, only_dies, place_all, rich, through_proxies, together,
};

mod catching_up;
mod clocks;
mod files;
mod refused;
mod gateways;
mod probes;
mod transactions;

/// F22: nobody's partitions are without an owner for longer.
const UNOWNED_MAX: Duration = Duration::from_secs(15);

/// A stack of its own, with items and customers.
async fn own_stack(stack: &Stack) -> Result<Client> {
    stack.up().await?;
    let client = Client::of(stack)?;
    seed::run(&client).await?;
    Ok(client)
}

/// On a stack that is the test's alone, where nobody dies but by its hand.
async fn on_its_own(test: impl AsyncFnOnce(&Stack) -> Result<()>) -> Result<()> {
    aside(async || {
        let stack = Stack::ephemeral()?;
        nobody_dies(&stack, test(&stack)).await
    })
    .await
}

async fn verified(client: &Client) -> Result<()> {
    let verdict = verify::run(client, &verify::Options::default()).await?;
    ensure!(verdict.holds(), "{}", verdict.lines().join("\n"));
    Ok(())
}

/// F12. Longer than its own session with the controller, and than the relays' patience.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_broker_that_is_frozen_under_load_refuses_no_customer_and_loses_nothing() -> Result<()> {
    alone(async |Stage { stack, client }| {
        nobody_notices(client, 50, 40, async {
            sleep(Duration::from_secs(5)).await;
            stack.pause("kafka").await?;
            sleep(Duration::from_secs(30)).await;
            stack.resume("kafka").await
        })
        .await
    })
    .await
}

/// F12. One of three: nobody notices. Two of three: no record is acknowledged, orders are accepted
/// and wait. The controller: what it leads waits.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn of_three_brokers_one_may_be_lost_and_of_two_that_are_lost_all_is_caught_up() -> Result<()>
{
    on_its_own(brokers_lost).await
}

async fn brokers_lost(stack: &Stack) -> Result<()> {
    let brokers = Brokers::three(stack).await?;
    let client = own_stack(stack).await?;
    all_end(&client, &place_all(&client, 20).await?).await?;
    nobody_notices(&client, 30, 15, async {
        sleep(Duration::from_secs(3)).await;
        brokers.kill(2)?;
        // With a broker less, before any is back.
        sleep(Duration::from_secs(6)).await;
        all_end(&client, &place_all(&client, 10).await?).await?;
        brokers.start(2).await
    })
    .await?;

    let waited = nobody_notices(&client, 30, 15, async {
        sleep(Duration::from_secs(3)).await;
        brokers.kill(2)?;
        brokers.kill(3)?;
        sleep(Duration::from_secs(4)).await;
        let orders = place_all(&client, 10).await?;
        sleep(Duration::from_secs(4)).await;
        let mut waited = 0;
        for order in orders {
            waited += u32::from(client.order(order.order_id).await?.status == "pending");
        }
        tokio::try_join!(brokers.start(2), brokers.start(3))?;
        Ok(waited)
    })
    .await?;
    ensure!(waited == 10, "{waited} of 10 waited: something was acknowledged by one alone");

    nobody_notices(&client, 30, 12, async {
        sleep(Duration::from_secs(3)).await;
        stack.kill("kafka").await?;
        sleep(Duration::from_secs(4)).await;
        stack.start("kafka").await
    })
    .await?;
    verified(&client).await
}

/// The machine sleeps, as a laptop does, and everything on it but the clients. When it wakes, every
/// session, lease and patience has run out at the same moment.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn a_machine_that_sleeps_for_a_minute_under_load_loses_nothing() -> Result<()> {
    alone(async |stage| {
        two_of_each(stage).await?;
        let Stage { stack, client } = stage;
        let everybody = everybody(stack).await?;
        let lasting = Duration::from_secs(80);
        let load = Load { rate: 20, lasting, drained_within: DRAINED, ..Load::default() };
        let sleeping = async {
            sleep(Duration::from_secs(10)).await;
            try_join_all(everybody.iter().map(|name| stack.pause(name))).await?;
            sleep(Duration::from_secs(60)).await;
            try_join_all(everybody.iter().map(|name| stack.resume(name))).await.map(drop)
        };
        let (summary, ()) = load::run(client, &load, sleeping).await?;
        ensure!(summary.holds(), "{}", summary.lines().join("\n"));
        Ok(())
    })
    .await
}

/// F21 and F32, as long as the matrix has it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn an_instance_that_wakes_after_a_minute_does_nothing_twice() -> Result<()> {
    alone(async |stage| frozen(stage, 60).await).await
}

/// F22.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn from_one_instance_to_three_and_back_under_load_nobody_stands_still() -> Result<()> {
    alone(async |Stage { stack, client }| {
        let lasting = Duration::from_secs(60);
        let load = Load { rate: 50, lasting, drained_within: DRAINED, ..Load::default() };
        let mut watch = Watch::open(client).await?;
        let scaling = async {
            for service in ["order", "payment", "stock"] {
                for further in 2..=3 {
                    stack.start(&format!("{service}-{further}")).await?;
                    client.learn(stack)?;
                    sleep(Duration::from_secs(3)).await;
                }
                for further in 2..=3 {
                    stack.remove(&format!("{service}-{further}")).await?;
                    client.learn(stack)?;
                    sleep(Duration::from_secs(3)).await;
                }
            }
            Ok(())
        };
        let (summary, ()) = tokio::select! {
            loaded = load::run(client, &load, scaling) => loaded?,
            broken = watch.run() => return Err(broken.err().context("the watch ended")?),
        };
        ensure!(
            summary.holds() && summary.refused <= summary.excused(),
            "{}",
            summary.lines().join("\n")
        );
        for still in watch.standstills() {
            let longest = still.consumer.max(still.relay).max(still.partition);
            ensure!(longest < UNOWNED_MAX, "{still:?}");
        }
        Ok(())
    })
    .await
}

/// F39. Every way meets every kind of dependency, at one service each, and every service all three.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes five minutes: make faults"]
async fn whichever_pair_is_cut_for_long_in_whichever_way_the_others_go_on() -> Result<()> {
    through_proxies(async |stage, pairs| {
        let mut orders = Vec::new();
        for (nth, way) in ways().into_iter().enumerate() {
            for (further, dependency) in Dependency::ALL.into_iter().enumerate() {
                let pair = Pair::of(SERVICES[(nth + further) % SERVICES.len()], dependency);
                orders.extend(cut(stage, pairs, &pair, way, Duration::from_secs(15)).await?);
            }
        }
        all_end(&stage.client, &orders).await
    })
    .await
}

/// F28. A key may go to another partition from then on; no handler depends on order.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn partitions_that_are_added_under_load_are_read_from_their_first_record() -> Result<()> {
    on_its_own(partitions_added).await
}

async fn partitions_added(stack: &Stack) -> Result<()> {
    let client = own_stack(stack).await?;
    nobody_notices(&client, 50, 50, async {
        // Many at once, and so for long: it is while their logs are being made that records are refused.
        for count in [16, 40, 64] {
            sleep(Duration::from_secs(10)).await;
            let more = TOPICS.iter().map(|topic| NewPartitions::new(topic.name, count));
            let more: Vec<_> = more.collect();
            let options = AdminOptions::new().request_timeout(Some(SOON));
            for made in replays::admin(&client)?.create_partitions(&more, &options).await? {
                made.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
            }
        }
        Ok(())
    })
    .await?;
    verified(&client).await
}

/// F28. Deleted by an operator, and made again by `contracts apply`: what had been acknowledged went
/// with it and is announced again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_topic_that_is_missing_holds_up_its_own_events_and_nothing_else() -> Result<()> {
    on_its_own(topic_missing).await
}

async fn topic_missing(stack: &Stack) -> Result<()> {
    stack.up_parts().await?;
    // Nobody has made a topic yet. Services wait for what they need and do not end.
    for service in SERVICES {
        stack.migrate_own(service).await?;
        stack.start(service).await?;
    }
    sleep(Duration::from_secs(3)).await;
    let client = own_stack(stack).await?;
    all_end(&client, &place_all(&client, 20).await?).await?;
    let topic = events::stock::RESERVED.name;
    let options = AdminOptions::new().request_timeout(Some(SOON));
    for deleted in replays::admin(&client)?.delete_topics(&[topic], &options).await? {
        deleted.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
    }
    let orders = place_all(&client, 20).await?;
    eventually("payment's answers", Duration::from_secs(25), async || {
        for order in &orders {
            let order = client.order(order.order_id).await?;
            ensure!(order.payment == "verified", "{order:?}");
        }
        Ok(())
    })
    .await?;
    sleep(Duration::from_secs(5)).await;
    for order in &orders {
        let order = client.order(order.order_id).await?;
        ensure!((&*order.payment, &*order.stock) == ("verified", "waiting"), "{order:?}");
    }
    e2e::announce::run(stack, &e2e::announce::Announce::default()).await?;
    all_end(&client, &orders).await?;
    verified(&client).await
}

/// A disk of a few megabytes; gone when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where it takes rights that we do not have.
    fn at(path: &Path, megabytes: u32) -> Result<Option<SmallDisk>> {
        e2e::parts::create_open_directory(path)?;
        let size = format!("size={megabytes}m,mode=755");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        let mounted = mounted.is_ok_and(|mounted| mounted.status.success());
        Ok(mounted.then(|| SmallDisk(path.to_path_buf())))
    }

    /// Leaves no byte.
    fn fill(&self) -> Result<()> {
        let mut ballast = std::fs::File::create(self.0.join("ballast"))?;
        for bytes in [1 << 20, 1 << 12, 1] {
            while std::io::Write::write_all(&mut ballast, &vec![7; bytes]).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.join("ballast"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// F36, for one member's disk.
async fn disk_full(member: &str, megabytes: u32, refuses: bool) -> Result<()> {
    aside(async || {
        let stack = Stack::ephemeral()?;
        let Some(disk) = SmallDisk::at(&stack.directory().join(member), megabytes)? else {
            return missing(&format!("a disk of {megabytes} MB for {member} takes root and mount"));
        };
        // Whose disk it is may end for want of space, and nobody else.
        only_dies(&stack, &[member], full_for_a_while(&stack, &disk, refuses)).await?;
        stack.down().await?;
        drop(disk);
        Ok(())
    })
    .await
}

async fn full_for_a_while(stack: &Stack, disk: &SmallDisk, refuses: bool) -> Result<()> {
    let client = own_stack(stack).await?;
    let mut orders = place_all(&client, 20).await?;
    all_end(&client, &orders).await?;
    disk.fill()?;
    let (began, mut refused) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(15) {
        let key = Uuid::now_v7().to_string();
        match client.place(rich(), &basket(), &key).await {
            Outcome::Ok(answer) => orders.push(answer.json()?),
            Outcome::Refused(answer) => {
                ensure!(answer.status == 503, "{answer}");
                refused += 1;
            }
            Outcome::Unknown(_) => {}
            Outcome::Failed(answer) => anyhow::bail!("{answer}"),
        }
    }
    ensure!((refused > 0) == refuses, "{refused} were refused while the disk was full");
    if !refuses {
        // The last of them wait for whom the disk belongs to: it was full.
        let last: Order = client.order(orders[orders.len() - 1].order_id).await?;
        ensure!(last.status == "pending", "the full disk held up nobody: {last:?}");
    }
    disk.free()?;
    // Whoever ended is started again, as anything that supervises would.
    stack.up().await?;
    orders.push(client.placed(rich(), &basket()).await?);
    all_end(&client, &orders).await?;
    verified(&client).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn while_the_disk_of_its_database_is_full_orders_are_refused_and_nothing_is_lost()
-> Result<()> {
    disk_full("order-db", 160, true).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn while_the_disk_of_payments_database_is_full_orders_are_accepted_and_end_afterwards()
-> Result<()> {
    disk_full("payment-db", 160, false).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn while_the_disk_of_kafka_is_full_orders_are_accepted_and_end_afterwards() -> Result<()> {
    disk_full("kafka", 64, false).await
}
