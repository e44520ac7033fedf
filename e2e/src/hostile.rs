//! Clients that mean no good, beside others that want something of the same service: headers that
//! never end, bodies larger than anybody may send, and more connections than are served at a time.
//!
//! What has to hold: each of them is closed or answered within a bound, the service's memory stays
//! where it was, and as long as there are connections left for others, these notice nothing. When all
//! are taken, whoever comes waits, and is served again once the hostile ones are closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::client::Client;
use crate::narration::{proved, say, step};
use crate::outcome::Outcome;
use crate::topology::SERVICES;
use crate::wait::eventually;
use crate::{Stack, seed, verify};

/// Connections that a service serves at a time; see the chassis's limits.
const SERVED_MAX: usize = 1024;

/// How long a hostile client is suffered: a header has 10 s, a request 15 s, and an answer may lie
/// unread for as long once more.
const SUFFERED_MAX: Duration = Duration::from_secs(35);

/// How often somebody who means well asks the same service for something, and how long it may take
/// beside hostile ones: 500 who pipeline requests keep both cores of a small machine busy for seconds.
const ASKED_EVERY: Duration = Duration::from_millis(100);
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// How long after the one before it the next one comes. If all came at one moment, a busy machine
/// would forget those for whom its backlog has no room before the service could take any out.
const COMES_AFTER: Duration = Duration::from_millis(1);

/// A siege of fewer of a hundred of those who were to come is none.
const CAME_PERCENT_MIN: usize = 95;

/// What a service may grow by, under attack.
const GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A header that lies about the size of its body.
const HUGE: usize = 64 * 1024 * 1024;

/// How hostile.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many clients there are of each kind, where others are to notice nothing
    #[arg(long, default_value_t = 500)]
    pub clients: usize,
    /// How many where all connections are taken. Those that can't be served wait in the listener's
    /// backlog, which holds as many once more; beyond that the system forgets them, and tells nobody
    #[arg(long, default_value_t = 1_900)]
    pub crowd: usize,
}

/// What a hostile client does with its connection.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Sends a byte of a header now and then, and never the last one.
    SlowHeader,
    /// Ends the header, and sends a byte of the body now and then.
    SlowBody,
    /// Sends almost as much of a body as it may, in chunks of one byte, and no end.
    TinyChunks,
    /// Sends as much as it can, more than anybody may.
    HugeBody,
    /// Asks for a long answer and never reads it.
    NeverReads,
    /// Connects, and says nothing.
    Silent,
}

/// Runs it, and answers whether all of it held. The stack is taken down again if it was not up before.
pub async fn run(stack: &Stack, options: &Options) -> Result<bool> {
    proved(stack, "hostile clients", async |client| all(stack, client, options).await).await
}

/// Every kind against every service that takes commands, one after the other. Answers what was not as
/// promised.
async fn all(stack: &Stack, client: &Client, options: &Options) -> Result<Vec<String>> {
    ensure!(options.clients < SERVED_MAX, "{SERVED_MAX} connections are served at a time");
    let pids = pids(stack).await?;
    let mut faults = Vec::new();
    for (nth, service) in (1..).zip(SERVICES) {
        step(nth, &format!("Against {service}"));
        if taken(client, service).await?.is_none() {
            let api: Value =
                client.get(&format!("{}/openapi.json", client.addresses.apis[service])).await?;
            let paths = api["paths"].as_object().context("an API has paths")?;
            let commands =
                paths.values().any(|path| ["post", "put"].iter().any(|it| !path[it].is_null()));
            ensure!(!commands, "seed::anything knows no command of {service}");
            say("  it takes no commands, so there is nobody whom it could keep waiting");
            continue;
        }
        let bounded =
            [Kind::SlowHeader, Kind::SlowBody, Kind::TinyChunks, Kind::HugeBody, Kind::NeverReads];
        for kind in bounded {
            faults.extend(siege(stack, client, service, kind, options.clients).await?);
        }
        faults.extend(siege(stack, client, service, Kind::Silent, options.crowd).await?);
    }
    step(SERVICES.len() as u32 + 1, "Nothing may be lost or done twice (make verify)");
    let verdict = verify::run(client, &verify::Options::default()).await?;
    verdict.lines().iter().for_each(|line| say(line));
    if !verdict.holds() {
        faults.push("verify found something".to_string());
    }
    ensure!(self::pids(stack).await? == pids, "a service ended under attack");
    Ok(faults)
}

/// So many hostile clients at once, while somebody asks the same service for what it is there for.
async fn siege(
    stack: &Stack,
    client: &Client,
    service: &str,
    kind: Kind,
    count: usize,
) -> Result<Vec<String>> {
    let address = client.addresses.apis[service].trim_start_matches("http://").to_string();
    // Those that come too many are served, and suffered, when the first are gone.
    let rounds = u32::try_from(count.div_ceil(SERVED_MAX))?;
    let before = stack.memory_bytes(service)?;
    let mut others = Others { grown_to: before, ..Others::default() };
    let hostile = (0..).take(count).map(async |nth| {
        sleep(COMES_AFTER * nth).await;
        timeout(SUFFERED_MAX * rounds, kind.plague(&address)).await
    });
    let is_over = AtomicBool::new(false);
    let besieging = async {
        let plagued = join_all(hostile).await;
        is_over.store(true, Ordering::Relaxed);
        Ok(plagued)
    };
    // Whoever has asked hears the answer, however long it takes: the last is often the slowest.
    let living = async {
        while !is_over.load(Ordering::Relaxed) {
            others.live(stack, client, service).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let (plagued, ()) = tokio::try_join!(besieging, living)?;
    let still_open = plagued.iter().filter(|plagued| plagued.is_err()).count();
    let ended: Vec<Plagued> = plagued.into_iter().flatten().collect();
    let came = still_open + ended.iter().filter(|plagued| plagued.came).count();
    let longest = ended.iter().map(|plagued| plagued.took).max().unwrap_or_default();
    // Whoever waited is served again.
    let served = async || taken(client, service).await;
    eventually("a command to be taken", ANSWERED_WITHIN, served).await?;
    let grown = others.grown_to.saturating_sub(before);
    say(&format!(
        "  {:<34} closed within {:>4.1} s; of {} others {} were refused or late, {:.2} s at most; \
         memory grew by {:.1} MB",
        format!("{count} {}", kind.what()),
        longest.as_secs_f64(),
        others.asked,
        others.failed,
        others.longest.as_secs_f64(),
        grown as f64 / 1e6
    ));
    let mut faults = Vec::new();
    let what = format!("{service}, {count} {}", kind.what());
    if still_open > 0 {
        faults.push(format!("{what}: {still_open} connections stayed open"));
    }
    if came * 100 < count * CAME_PERCENT_MIN {
        faults.push(format!("{what}: only {came} came in, which proves little"));
    }
    if (others.failed > 0 || others.asked == 0) && count < SERVED_MAX {
        let Others { asked, failed, longest, .. } = others;
        let longest = longest.as_secs_f64();
        faults.push(format!("{what}: of {asked} others {failed} noticed, {longest:.1} s at most"));
    }
    if grown > GROWTH_BYTES_MAX {
        faults.push(format!("{what}: memory grew by {} MB", grown / 1_000_000));
    }
    Ok(faults)
}

/// Those who mean well.
#[derive(Default)]
struct Others {
    asked: u32,
    /// Refused, or answered too late.
    failed: u32,
    longest: Duration,
    /// The most memory that the service was seen with.
    grown_to: u64,
}

impl Others {
    async fn live(&mut self, stack: &Stack, client: &Client, service: &str) -> Result<()> {
        sleep(ASKED_EVERY).await;
        self.grown_to = self.grown_to.max(stack.memory_bytes(service)?);
        let began = Instant::now();
        let taken = taken(client, service).await;
        self.asked += 1;
        self.failed += u32::from(taken.is_err() || began.elapsed() > ANSWERED_WITHIN);
        self.longest = self.longest.max(began.elapsed());
        Ok(())
    }
}

/// A command that the service stores; `None` where it takes none.
async fn taken(client: &Client, service: &str) -> Result<Option<()>> {
    let Some(outcome) = seed::anything(client, service).await else { return Ok(None) };
    ensure!(matches!(outcome, Outcome::Ok(_)), "{outcome:?}");
    Ok(Some(()))
}

/// What a hostile client met with.
struct Plagued {
    /// Whether it had a connection at all.
    came: bool,
    /// How long it was suffered.
    took: Duration,
}

impl Kind {
    fn what(self) -> &'static str {
        match self {
            Kind::SlowHeader => "headers that never end",
            Kind::SlowBody => "bodies that never end",
            Kind::TinyChunks => "bodies in chunks of one byte",
            Kind::HugeBody => "bodies far too large",
            Kind::NeverReads => "who never read their answers",
            Kind::Silent => "connections that say nothing",
        }
    }

    /// Does its worst until the service closes.
    async fn plague(self, address: &str) -> Plagued {
        let began = Instant::now();
        let stream = connected(address).await;
        let came = stream.is_ok();
        if let Ok(stream) = stream {
            // Cut is closed as well.
            let _ = self.try_to_plague(stream).await;
        }
        Plagued { came, took: began.elapsed() }
    }

    async fn try_to_plague(self, mut stream: TcpStream) -> std::io::Result<()> {
        let post = "POST /orders HTTP/1.1\r\nHost: hostile\r\nContent-Type: application/json\r\n";
        match self {
            Kind::SlowHeader => {
                stream.write_all(b"GET /items HTTP/1.1\r\nX-Long: ").await?;
                drip(&mut stream).await
            }
            Kind::SlowBody => {
                let head = format!("{post}Content-Length: 60000\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                drip(&mut stream).await
            }
            Kind::TinyChunks => {
                let head = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                for _ in 0..60 {
                    stream.write_all("1\r\n \r\n".repeat(1_000).as_bytes()).await?;
                }
                drip(&mut stream).await
            }
            Kind::HugeBody => {
                let head = format!("{post}Content-Length: {HUGE}\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                let piece = [b' '; 64 * 1024];
                for _ in 0..HUGE / piece.len() {
                    stream.write_all(&piece).await?;
                }
                drip(&mut stream).await
            }
            Kind::NeverReads => loop {
                stream.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: hostile\r\n\r\n").await?;
                sleep(Duration::from_millis(20)).await;
            },
            Kind::Silent => stream.read_to_end(&mut Vec::new()).await.map(drop),
        }
    }
}

async fn connected(address: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(16 * 1024)?;
    socket.connect(address.parse().map_err(std::io::Error::other)?).await
}

/// A byte a second, until the other side closes.
async fn drip(stream: &mut TcpStream) -> std::io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let dripping = async {
        loop {
            sleep(Duration::from_secs(1)).await;
            writer.write_all(b"a").await?;
        }
    };
    tokio::select! {
        closed = reader.read_to_end(&mut answer) => closed.map(drop),
        cut = dripping => cut,
    }
}

async fn pids(stack: &Stack) -> Result<Vec<Option<u32>>> {
    Ok(stack.status().await?.into_iter().map(|member| member.pid).collect())
}
