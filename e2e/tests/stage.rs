//! The stages of the tests from outside: stacks side by side, each started once, when a test first needs
//! it. A test that kills or poisons has a stage to itself, and leaves it running, quiet and in order.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::client::{Client, Order, Wish};
use e2e::load::{self, Load};
use e2e::pairs::{self, Pairs};
use e2e::ports::Ports;
use e2e::stack::own_directory;
use e2e::topology::SERVICES;
use e2e::verdict::Verdict;
use e2e::{Stack, ends, sabotage, seed, verify};
use futures::future::{select_all, try_join_all};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::Instant;
use uuid::Uuid;

pub const SOON: Duration = Duration::from_secs(30);

/// How long after an outage every order has ended.
pub const DRAINED: Duration = Duration::from_secs(60);

/// How far the registry may be behind here, where nothing but tests is waited for.
const REGISTRY_LAG_SECONDS: u32 = 10;

/// Most tests wait most of the time: three stacks keep two cores busy.
static SLOTS: [Slot; 3] = [const { Slot::new() }; 3];

/// The place of one stage. Tests that change what others rely on lock it for writing.
struct Slot {
    directory: OnceCell<PathBuf>,
    turn: RwLock<()>,
}

impl Slot {
    const fn new() -> Slot {
        Slot { directory: OnceCell::const_new(), turn: RwLock::const_new(()) }
    }

    /// The first slot that is free, for one test.
    async fn write() -> (&'static Slot, RwLockWriteGuard<'static, ()>) {
        let free = |slot: &'static Slot| Some((slot, slot.turn.try_write().ok()?));
        if let Some(taken) = SLOTS.iter().find_map(free) {
            return taken;
        }
        let all = SLOTS.iter().map(|slot| Box::pin(async move { (slot, slot.turn.write().await) }));
        select_all(all).await.0
    }

    /// The first slot that no test has for itself.
    async fn read() -> (&'static Slot, RwLockReadGuard<'static, ()>) {
        let free = |slot: &'static Slot| Some((slot, slot.turn.try_read().ok()?));
        if let Some(taken) = SLOTS.iter().find_map(free) {
            return taken;
        }
        let all = SLOTS.iter().map(|slot| Box::pin(async move { (slot, slot.turn.read().await) }));
        select_all(all).await.0
    }

    /// The stage of this slot, started by the first test that asks for it.
    async fn stage(&self) -> Result<Stage> {
        let start = async || {
            let nth = SLOTS.iter().position(|slot| std::ptr::eq(self, slot));
            let stack = match nth {
                Some(0) => Stack::of_tests()?,
                nth => {
                    let directory = own_directory(&format!("stage-{}", nth.unwrap_or_default()));
                    Stack::at(directory, Ports::free()?)?.quiet()
                }
            };
            stack.set_registry_lag(REGISTRY_LAG_SECONDS)?;
            stack.up().await?;
            seed::run(&Client::of(&stack)?).await?;
            anyhow::Ok(stack.directory().to_path_buf())
        };
        let stack = Stack::open(self.directory.get_or_try_init(start).await?)?;
        let client = Client::of(&stack)?;
        Ok(Stage { stack, client })
    }
}

pub struct Stage {
    pub stack: Stack,
    pub client: Client,
}

impl Stage {
    /// The checker's word for it. Dead letters are what some tests make.
    pub async fn verify(&self) -> Result<Verdict> {
        let options = verify::Options { within: Duration::from_secs(90) };
        let verdict = verify::run(&self.client, &options).await?;
        ensure!(verdict.holds(), "verify:\n{}", verdict.lines().join("\n"));
        Ok(verdict)
    }
}

/// A test beside others.
pub async fn together(test: impl AsyncFnOnce(&Stage) -> Result<()>) -> Result<()> {
    let (slot, _turn) = Slot::read().await;
    let stage = slot.stage().await?;
    nobody_dies(&stage.stack, test(&stage)).await
}

/// A test that has the stage to itself. Whatever it killed is started again, and then everything
/// must be in order; nobody may have died but by its hand.
pub async fn alone(test: impl AsyncFnOnce(&Stage) -> Result<()>) -> Result<()> {
    alone_and_checked(async |stage| {
        test(stage).await?;
        stage.stack.up().await.context("after the test")?;
        stage.verify().await.map(drop)
    })
    .await
}

/// The same, of a test that runs the checker itself.
pub async fn alone_and_checked(test: impl AsyncFnOnce(&Stage) -> Result<()>) -> Result<()> {
    let (slot, _turn) = Slot::write().await;
    let stage = slot.stage().await?;
    nobody_dies(&stage.stack, async {
        let tested = test(&stage).await;
        if tested.is_err() {
            tell(&stage.stack).await;
            put_right(&stage.stack).await.context("after a test that failed")?;
        }
        stage.stack.set_instances(1).await?;
        stage.stack.up().await.context("after the test")?;
        tested
    })
    .await
}

/// What helps to find out why a test failed, before all of that is gone: what the services complained of
/// last, and what waits to be published.
async fn tell(stack: &Stack) {
    const LINES: usize = 15;
    for service in SERVICES {
        let names = stack.instances_of(service).unwrap_or_default();
        for name in names {
            let log = stack.log_file(&name).and_then(|log| Ok(std::fs::read_to_string(log)?));
            let log = log.unwrap_or_default();
            let complaints: Vec<&str> =
                log.lines().filter(|line| !line.contains(" INFO ")).collect();
            for line in &complaints[complaints.len().saturating_sub(LINES)..] {
                eprintln!("{name}: {}", line.chars().take(300).collect::<String>());
            }
        }
        match sabotage::unpublished(stack, service).await {
            Ok(unpublished) => eprintln!("{service} has yet to publish {unpublished} events"),
            Err(error) => eprintln!("what {service} has yet to publish can't be told: {error:#}"),
        }
    }
}

/// Undoes what a test that broke off may have left behind, so that it is the only one that fails.
async fn put_right(stack: &Stack) -> Result<()> {
    sabotage::mend_all(stack).await?;
    pairs::take_away(stack)?;
    all_again(stack).await
}

/// A test in which nobody dies but whom it ends itself (I14). Whoever is missing afterwards is
/// started again, and would otherwise not be missed.
pub async fn nobody_dies<T>(stack: &Stack, test: impl Future<Output = Result<T>>) -> Result<T> {
    only_dies(stack, &[], test).await
}

/// The same, of a test that makes these members end by what it does to them.
pub async fn only_dies<T>(
    stack: &Stack,
    caused: &[&str],
    test: impl Future<Output = Result<T>>,
) -> Result<T> {
    let before = stack.ends().await?;
    // On the heap: not optimised, what tests await in one another is more than a thread's stack holds.
    let tested = Box::pin(test).await;
    let mut ends = stack.ends().await?;
    ends.retain(|end| !before.contains(end) && !caused.contains(&&*end.name));
    let died: Vec<String> = ends::deaths(&ends).collect();
    match tested {
        tested if died.is_empty() => tested,
        Ok(_) => bail!("{}", died.join("\n")),
        Err(error) => Err(error.context(died.join("\n"))),
    }
}

/// A test that has the stage to itself, with a proxy in every way to a dependency.
pub async fn through_proxies(test: impl AsyncFnOnce(&Stage, &Pairs) -> Result<()>) -> Result<()> {
    alone(async |stage| {
        let pairs = Pairs::between(&stage.stack).await?;
        all_again(&stage.stack).await?;
        let tested = test(stage, &pairs).await;
        pairs.heal();
        pairs::take_away(&stage.stack)?;
        all_again(&stage.stack).await?;
        tested
    })
    .await
}

/// A part of a test that this machine has not got the means for. It fails, since a proof that was
/// not made must not look like one, unless `ALLOW_SKIP=1` says that it may be left out.
pub fn missing(what: &str) -> Result<()> {
    let skips = std::env::var("ALLOW_SKIP").is_ok_and(|allowed| allowed == "1");
    ensure!(skips, "{what}; ALLOW_SKIP=1 leaves the test out");
    eprintln!("SKIPPED: {what}");
    Ok(())
}

/// Every member by its name.
pub async fn everybody(stack: &Stack) -> Result<Vec<String>> {
    Ok(stack.status().await?.into_iter().map(|member| member.name).collect())
}

/// Stops every service, and starts it with what is set now; Kafka likewise.
pub async fn all_again(stack: &Stack) -> Result<()> {
    try_join_all(SERVICES.map(|service| stack.stop(service))).await?;
    stack.up().await
}

/// A test that compiles, or runs a stack of its own, in the place of a stage.
pub async fn aside(test: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let _turn = Slot::write().await;
    test().await
}

/// So many orders a second, while something is done to the stack, and no client may notice: all are
/// answered, and all end. Answers what `meanwhile` does.
pub async fn nobody_notices<T>(
    client: &Client,
    rate: u32,
    seconds: u64,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<T> {
    let lasting = Duration::from_secs(seconds);
    let load = Load { rate, lasting, drained_within: DRAINED, ..Load::default() };
    let (summary, done) = load::run(client, &load, meanwhile).await?;
    ensure!(summary.holds() && summary.answered_all(), "{}", summary.lines().join("\n"));
    Ok(done)
}

/// A customer who can pay, as long as there are some.
pub fn rich() -> Uuid {
    seed::CUSTOMERS[rand::random_range(0..seed::CUSTOMERS.len())].customer_id
}

pub fn wish(sku: &str, quantity: i64) -> Wish {
    Wish { sku: sku.to_string(), quantity }
}

/// What anybody could order.
pub fn basket() -> Vec<Wish> {
    vec![wish("wool-cap", 2), wish("ships-biscuit", 1)]
}

/// As many orders at once, each with what anybody could order.
pub async fn place_all(client: &Client, count: usize) -> Result<Vec<Order>> {
    try_join_all((0..count).map(async |_| client.placed(rich(), &basket()).await)).await
}

/// Each of them ends confirmed, all within one time.
pub async fn all_end(client: &Client, orders: &[Order]) -> Result<()> {
    let deadline = Instant::now() + DRAINED;
    for order in orders {
        let ended = client.ended(order.order_id, deadline - Instant::now()).await?;
        ensure!(ended.status == "confirmed", "{ended:?}");
    }
    Ok(())
}
