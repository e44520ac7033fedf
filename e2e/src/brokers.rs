//! Further brokers beside the stack's own, so that any one of three can be lost. They only carry
//! records: the stack's own is the controller too.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use tokio::time::{Duration, Instant, sleep};

use crate::Stack;
use crate::member::READY_WITHIN;
use crate::parts::create_open_directory;
use crate::ports;
use crate::preparation;
use crate::process::{self, Process, Signal};
use crate::settings;
use crate::topology::{HOST, SERVICES};

/// How many there are then, each with all records.
const BROKERS: u16 = 3;

const POLL: Duration = Duration::from_millis(100);

/// The second and the third broker of a stack.
pub struct Brokers<'a> {
    stack: &'a Stack,
    further: Vec<Broker>,
}

struct Broker {
    node: u16,
    /// For its peers and for each service.
    ports: Vec<u16>,
}

impl<'a> Brokers<'a> {
    /// Starts the parts of a fresh stack with three brokers. Topics that are made from now on, and
    /// the groups' offsets, lie on all three, and two must have a record before it is acknowledged.
    pub async fn three(stack: &'a Stack) -> Result<Brokers<'a>> {
        stack.change(|layout| layout.replication_factor = Some(BROKERS))?;
        stack.up_parts().await?;
        let mut brokers = Brokers { stack, further: Vec::new() };
        for node in 2..=BROKERS {
            let ports = (0..=SERVICES.len()).map(|_| ports::free_port());
            let ports = ports.collect::<Result<_>>()?;
            brokers.further.push(Broker { node, ports });
            brokers.start(node).await?;
        }
        for (nth, service) in SERVICES.into_iter().enumerate() {
            let further = brokers.further.iter().map(|b| format!("{HOST}:{}", b.ports[nth + 1]));
            let first = stack.kafka_listener(service)?;
            let all: Vec<String> = [first].into_iter().chain(further).collect();
            stack.set_environment(service, "KAFKA_BOOTSTRAP_SERVERS", Some(&all.join(",")))?;
        }
        Ok(brokers)
    }

    /// SIGKILL to the second or the third.
    pub fn kill(&self, node: u16) -> Result<()> {
        self.process(node).kill_family()
    }

    pub fn pause(&self, node: u16) -> Result<()> {
        process::send(Signal::Stop, &self.process(node).family())
    }

    pub fn resume(&self, node: u16) -> Result<()> {
        process::send(Signal::Continue, &self.process(node).family())
    }

    /// Starts it, and returns when it listens.
    pub async fn start(&self, node: u16) -> Result<()> {
        let broker = self.further.iter().find(|broker| broker.node == node);
        let ports = &broker.with_context(|| format!("there is no broker {node}"))?.ports;
        let parts = self.stack.parts().await?;
        let process = self.process(node);
        create_open_directory(&process.home)?;
        preparation::prepare_java(&process.home)?;
        let layout = self.stack.layout()?;
        let config = |logs: PathBuf| settings::kafka_further(&layout, node, ports, &logs);
        let logs = process.home.join("data");
        fs::write(process.home.join("log4j2.properties"), settings::kafka_logging())?;
        fs::write(process.home.join("server.properties"), config(logs.clone()))?;
        if !logs.exists() {
            let fresh = process.home.join("data.new");
            let format = process.home.join("format.properties");
            fs::write(&format, config(fresh.clone()))?;
            let launch = settings::kafka_format(&parts, &process.home, &format, &self.cluster()?);
            let formatted = launch.run(&process.home, &process.log, READY_WITHIN).await?;
            ensure!(formatted, "broker {node} could not format its log");
            fs::rename(fresh, logs)?;
        }
        let archive = parts.class_archive("kafka", &settings::java_options("KAFKA_JAVA_OPTS"));
        let archived = preparation::use_if_there(&archive);
        let launch = settings::kafka(&parts, &process.home, archived, &archive);
        let identity = process.spawn(&launch).await?;
        let deadline = Instant::now() + READY_WITHIN;
        while tokio::net::TcpStream::connect((HOST, ports[0])).await.is_err() {
            let tail = || process.log_tail(0);
            ensure!(identity.lives() && Instant::now() < deadline, "broker {node}: {}", tail());
            sleep(POLL).await;
        }
        Ok(())
    }

    fn process(&self, node: u16) -> Process {
        let name = format!("kafka-{node}");
        let directory = self.stack.directory();
        Process {
            home: directory.join(&name),
            program: "java".to_string(),
            log: directory.join("log").join(format!("{name}.log")),
            pid_file: directory.join("run").join(format!("{name}.pid")),
            journal: self.stack.journal(),
            name,
        }
    }

    /// The id of the cluster, as the first broker wrote it down.
    fn cluster(&self) -> Result<String> {
        let file = self.stack.directory().join("kafka").join("data").join("meta.properties");
        let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        let id = text.lines().find_map(|line| line.strip_prefix("cluster.id="));
        Ok(id.context("a formatted log names its cluster")?.to_string())
    }
}
