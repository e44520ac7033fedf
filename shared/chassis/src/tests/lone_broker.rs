//! A lone broker that takes itself for dead, as when it wakes from a freeze or at the end of a graceful
//! stop: it answers that the cluster has no broker, and ends the connection.
//!
//! Between the client and the real broker stands a proxy that reads the Kafka protocol as far as that
//! takes: it puts itself in the place of the broker in what that tells of itself, and leaves it out when
//! it is told to.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;

use super::*;

const METADATA: i16 = 3;
const FIND_COORDINATOR: i16 = 10;

/// How long a client may take for what it does at once, unless it has lost its way.
const AT_ONCE: Duration = Duration::from_secs(6);

/// How often a client is told that there is no broker. Whether it believes it is a race between two
/// threads of its own: mostly lost within ten times, on a busy machine sometimes never.
const TOLD_MAX: i64 = 40;

struct LoneBroker {
    port: u16,
    /// Changes when all connections are to end.
    hang_up: watch::Sender<()>,
    takes_itself_for_dead: Arc<AtomicBool>,
}

impl LoneBroker {
    async fn before(kafka: &str) -> LoneBroker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (kafka, dead) = (kafka.to_string(), Arc::new(AtomicBool::new(false)));
        let (takes_itself_for_dead, hang_up) = (dead.clone(), watch::Sender::new(()));
        let hung_up = hang_up.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&kafka).await.unwrap();
                let (dead, mut hung_up) = (dead.clone(), hung_up.clone());
                hung_up.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = carry(client, server, port, dead) => {}
                        _ = hung_up.changed() => {}
                    }
                });
            }
        });
        LoneBroker { port, hang_up, takes_itself_for_dead }
    }

    /// All have to connect again. The first one that then asks for the brokers is told that there is
    /// none, and hung up on.
    fn take_yourself_for_dead(&self) {
        self.takes_itself_for_dead.store(true, Ordering::Relaxed);
        self.hang_up.send_replace(());
    }
}

async fn carry(
    client: TcpStream,
    server: TcpStream,
    port: u16,
    dead: Arc<AtomicBool>,
) -> io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    // Kafka answers the requests of a connection in their order.
    let asked = Mutex::new(VecDeque::new());
    let requests = async {
        loop {
            let request = frame_of(&mut from_client).await?;
            asked.lock().unwrap().push_back(i16::from_be_bytes([request[0], request[1]]));
            send(&mut to_server, &request).await?;
        }
    };
    let answers = async {
        loop {
            let mut answer = frame_of(&mut from_server).await?;
            let about = asked.lock().unwrap().pop_front().expect("an answer has its request");
            let ends = about == METADATA && dead.swap(false, Ordering::Relaxed);
            match about {
                METADATA => tell_brokers(&mut answer, if ends { None } else { Some(port) }),
                FIND_COORDINATOR => {
                    // It ends with the port, up to version 2, which is what librdkafka asks for.
                    let at = answer.len() - 4;
                    answer[at..].copy_from_slice(&u32::from(port).to_be_bytes());
                }
                _ => {}
            }
            send(&mut to_client, &answer).await?;
            if ends {
                return Ok(());
            }
        }
    };
    tokio::select! {
        ended = requests => ended,
        ended = answers => ended,
    }
}

async fn frame_of(stream: &mut tcp::OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn send(stream: &mut tcp::OwnedWriteHalf, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, frame].concat()).await
}

/// Sets the port of every broker in an answer to Metadata, or takes them all out of it. From version 9
/// on, behind the correlation id, a tag count and the throttle time: a compact array of node id, host,
/// port, rack and tags, in which lengths are written with one added.
fn tell_brokers(answer: &mut Vec<u8>, port: Option<u16>) {
    const COUNT: usize = 9;
    let mut at = COUNT + 1;
    for _ in 1..answer[COUNT] {
        let port_at = at + 4 + usize::from(answer[at + 4]);
        if let Some(port) = port {
            answer[port_at..port_at + 4].copy_from_slice(&u32::from(port).to_be_bytes());
        }
        let rack_at = port_at + 4;
        at = rack_at + usize::from(answer[rack_at]).max(1) + 1;
    }
    if port.is_none() {
        answer.splice(COUNT..at, [1]);
    }
}

/// Tells a client again and again that there is no broker, until it believes it. What it is there for
/// goes on all the same.
async fn told_until_it_believes(lone: &LoneBroker, mut goes_on: impl AsyncFnMut(i64)) {
    for nth in 1..=TOLD_MAX {
        let began = Instant::now();
        goes_on(nth).await;
        if nth > 1 && began.elapsed() > AT_ONCE {
            return;
        }
        lone.take_yourself_for_dead();
    }
    println!("it found back every time, which proves nothing of one that does not");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_was_told_that_there_is_no_broker_goes_on_with_a_new_client() {
    let till = Till::<16>::open_with_contracts().await;
    let relay = till.relay();
    let _relaying = Running::start(|stop| relay.run(stop));
    let (lone, there) = beyond_a_lone_broker(&till).await;
    let consumer = there.consumer();
    let consuming = Running::start(|stop| consumer.run(stop));
    told_until_it_believes(&lone, async |nth| {
        till.publish(&[counted("a", 1)]).await;
        eventually("the event is handled", async || {
            till.tallies().await.get("a").is_some_and(|(counted, _)| *counted == nth)
        })
        .await;
    })
    .await;
    consuming.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_was_told_that_there_is_no_broker_goes_on_with_a_new_producer() {
    let till = Till::<113>::open_with_contracts().await;
    let (lone, there) = beyond_a_lone_broker(&till).await;
    let relay = there.relay();
    let relaying = Running::start(|stop| relay.run(stop));
    let mut published = Vec::new();
    told_until_it_believes(&lone, async |nth| {
        published.extend(till.publish(&[counted("a", nth)]).await);
        till.outbox_is_empty().await;
    })
    .await;
    relaying.stop().await;
    let mut arrived: Vec<Uuid> =
        till.published().await.into_iter().map(|(event_id, ..)| event_id).collect();
    arrived.dedup();
    assert_eq!(arrived, published);
}

/// The same service with a lone broker in place of Kafka.
async fn beyond_a_lone_broker<const TEST: u32>(till: &Till<TEST>) -> (LoneBroker, Till<TEST>) {
    let lone = LoneBroker::before(&till.config.kafka.kafka_bootstrap_servers).await;
    let there = format!("127.0.0.1:{}", lone.port);
    let there = till.with(|config| config.kafka.kafka_bootstrap_servers = there);
    (lone, there)
}
