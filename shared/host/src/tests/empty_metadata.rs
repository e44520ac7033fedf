//! A single broker that lists no broker. After a freeze, or at the end of a graceful stop, its Metadata response is
//! empty and it closes the connection.
//!
//! A proxy between the client and the real broker parses as much of the Kafka protocol as this needs: it
//! replaces the broker's address in Metadata responses by its own, and removes all brokers on request.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;

use super::*;

const METADATA: i16 = 3;
const FIND_COORDINATOR: i16 = 10;

/// A client that needs longer than this to continue has lost its brokers.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(6);

/// How often a client gets an empty list of brokers. Whether it loses its brokers is a race between two
/// of its threads: it mostly does within ten times, on a busy machine sometimes never.
const EMPTY_RESPONSES_MAX: i64 = 40;

pub struct BrokerProxy {
    port: u16,
    /// How many connections are open.
    connections: Arc<AtomicUsize>,
    /// Changes when all connections are to be closed.
    disconnect: watch::Sender<()>,
    hide_brokers: Arc<AtomicBool>,
}

impl BrokerProxy {
    async fn new(kafka: &str) -> BrokerProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (kafka, hide) = (kafka.to_string(), Arc::new(AtomicBool::new(false)));
        let connections = Arc::<AtomicUsize>::default();
        let open = connections.clone();
        let (hide_brokers, disconnect) = (hide.clone(), watch::Sender::new(()));
        let disconnected = disconnect.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&kafka).await.unwrap();
                let (hide, mut disconnected) = (hide.clone(), disconnected.clone());
                let open = open.clone();
                open.fetch_add(1, Ordering::Relaxed);
                disconnected.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = forward(client, server, port, hide) => {}
                        _ = disconnected.changed() => {}
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        BrokerProxy { port, connections, disconnect, hide_brokers }
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Closes all connections. The first client that then requests Metadata gets an empty list of
    /// brokers, and is disconnected.
    fn disconnect_and_hide_brokers(&self) {
        self.hide_brokers.store(true, Ordering::Relaxed);
        self.disconnect.send_replace(());
    }
}

async fn forward(
    client: TcpStream,
    server: TcpStream,
    port: u16,
    hide: Arc<AtomicBool>,
) -> io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    // Kafka answers the requests of a connection in their order.
    let asked = Mutex::new(VecDeque::new());
    let requests = async {
        loop {
            let request = read_frame(&mut from_client).await?;
            asked.lock().push_back(i16::from_be_bytes([request[0], request[1]]));
            write_frame(&mut to_server, &request).await?;
        }
    };
    let answers = async {
        loop {
            let mut answer = read_frame(&mut from_server).await?;
            let about = asked.lock().pop_front().expect("an answer has its request");
            let ends = about == METADATA && hide.swap(false, Ordering::Relaxed);
            match about {
                METADATA => rewrite_brokers(&mut answer, if ends { None } else { Some(port) }),
                FIND_COORDINATOR => {
                    // Up to version 2, which librdkafka requests, the response ends with the port.
                    let at = answer.len() - 4;
                    answer[at..].copy_from_slice(&u32::from(port).to_be_bytes());
                }
                _ => {}
            }
            write_frame(&mut to_client, &answer).await?;
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

async fn read_frame(stream: &mut tcp::OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn write_frame(stream: &mut tcp::OwnedWriteHalf, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, frame].concat()).await
}

/// Sets the port of every broker in a Metadata response, or removes all brokers. From version 9 on, the brokers are
/// behind the correlation id, a tag count and the throttle time: a compact array of node id, host, port, rack and
/// tags. Its lengths are written plus one.
fn rewrite_brokers(answer: &mut Vec<u8>, port: Option<u16>) {
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

/// Hides the brokers from a client repeatedly, until the client loses them. The client's work has to continue
/// regardless.
async fn hide_brokers_until_client_fails(proxy: &BrokerProxy, mut goes_on: impl AsyncFnMut(i64)) {
    for nth in 1..=EMPTY_RESPONSES_MAX {
        let began = Instant::now();
        goes_on(nth).await;
        if nth > 1 && began.elapsed() > RECONNECT_TIMEOUT {
            return;
        }
        proxy.disconnect_and_hide_brokers();
    }
    println!("the client reconnected every time: this run proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_metadata_lists_no_broker_replaces_its_client() {
    let fixture = Fixture::<16>::create_with_contracts().await;
    let _relaying = fixture.start_relay();
    let (proxy, there) = with_broker_proxy(&fixture).await;
    let consuming = there.start_consumer();
    hide_brokers_until_client_fails(&proxy, async |nth| {
        fixture.publish(&[counted("a", 1)]).await;
        eventually("the event is handled", async || fixture.counted().await == nth).await;
    })
    .await;
    consuming.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_whose_metadata_lists_no_broker_replaces_its_producer() {
    let fixture = Fixture::<113>::create_with_contracts().await;
    let (proxy, there) = with_broker_proxy(&fixture).await;
    let relaying = there.start_relay();
    let mut published = Vec::new();
    hide_brokers_until_client_fails(&proxy, async |nth| {
        published.extend(fixture.publish(&[counted("a", nth)]).await);
        fixture.wait_for_empty_outbox().await;
    })
    .await;
    relaying.stop().await;
    let mut arrived: Vec<Uuid> =
        fixture.published().await.into_iter().map(|(event_id, ..)| event_id).collect();
    arrived.dedup();
    assert_eq!(arrived, published);
}

/// The same service with a broker proxy in place of Kafka.
pub async fn with_broker_proxy<const TEST: u32>(
    fixture: &Fixture<TEST>,
) -> (BrokerProxy, Fixture<TEST>) {
    let proxy = BrokerProxy::new(&fixture.config.kafka.kafka_bootstrap_servers).await;
    let there = format!("127.0.0.1:{}", proxy.port);
    let there = fixture.with_config(|config| config.kafka.kafka_bootstrap_servers = there);
    (proxy, there)
}
