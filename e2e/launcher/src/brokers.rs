//! Further brokers beside the stack's own, so that any one of three can be lost. They only carry
//! records: the stack's own broker is also the controller.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use tokio::time::{Duration, Instant, sleep};

use crate::class_archives::class_archive_mode;
use crate::directories::create_closed_directory;
use crate::java::java_options;
use crate::kafka_config;
use crate::ports;
use crate::process::{self, Process, Signal};
use crate::provision;
use crate::readiness::READY_TIMEOUT;
use crate::stack::Stack;
use crate::topology::HOST;

/// The number of brokers, each with a replica of every partition.
const BROKER_COUNT: u16 = 3;

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The second and the third broker of a stack.
pub struct Brokers<'a> {
    stack: &'a Stack,
    additional: Vec<Broker>,
}

struct Broker {
    node: u16,
    /// The ports for its peers, for each service and for each stream processor.
    ports: Vec<u16>,
}

impl<'a> Brokers<'a> {
    /// Starts the infrastructure of a new stack with three brokers. Topics created from now on, and
    /// the groups' offsets, have three replicas, and a record is acknowledged when two brokers have
    /// it.
    ///
    /// # Errors
    /// If a broker does not start.
    pub async fn start_three(stack: &'a Stack) -> Result<Brokers<'a>> {
        stack.update_state(|stack_state| stack_state.replication_factor = Some(BROKER_COUNT))?;
        stack.up_infrastructure().await?;
        let mut brokers = Brokers { stack, additional: Vec::new() };
        for node in 2..=BROKER_COUNT {
            let own = stack.ports()?.kafka_listeners().len();
            let ports = (0..=own).map(|_| ports::free_port());
            let ports = ports.collect::<Result<_>>()?;
            brokers.additional.push(Broker { node, ports });
            brokers.start(node).await?;
        }
        for (nth, (client, first)) in stack.ports()?.kafka_listeners().into_iter().enumerate() {
            let further = brokers.additional.iter().map(|b| b.ports[nth + 1]);
            let all = [first].into_iter().chain(further).map(|port| format!("{HOST}:{port}"));
            let all = all.collect::<Vec<_>>().join(",");
            stack.set_environment(client, "KAFKA_BOOTSTRAP_SERVERS", Some(&all))?;
        }
        Ok(brokers)
    }

    /// SIGKILL to the second or the third broker, by its number.
    ///
    /// # Errors
    /// If it survives.
    pub fn kill(&self, node: u16) -> Result<()> {
        self.process(node).kill_all()
    }

    /// Freezes the broker.
    ///
    /// # Errors
    /// If a process has an invalid id.
    pub fn pause(&self, node: u16) -> Result<()> {
        process::send_signal(Signal::STOP, &self.process(node).all_processes())
    }

    /// Lets a frozen broker continue.
    ///
    /// # Errors
    /// If a process has an invalid id.
    pub fn resume(&self, node: u16) -> Result<()> {
        process::send_signal(Signal::CONT, &self.process(node).all_processes())
    }

    /// Starts the broker, and returns when it listens.
    ///
    /// # Errors
    /// If it exits during its start, or does not listen after two minutes.
    pub async fn start(&self, node: u16) -> Result<()> {
        let broker = self.additional.iter().find(|broker| broker.node == node);
        let ports = &broker.with_context(|| format!("there is no broker {node}"))?.ports;
        let artifacts = self.stack.artifacts().await?;
        let process = self.process(node);
        create_closed_directory(&process.home)?;
        provision::provision_java(&process.home)?;
        let stack_state = self.stack.state()?;
        let config =
            |logs: PathBuf| kafka_config::kafka_additional_config(&stack_state, node, ports, &logs);
        let logs = process.home.join("data");
        fs::write(process.home.join("log4j2.properties"), kafka_config::kafka_log_config())?;
        fs::write(process.home.join("server.properties"), config(logs.clone())?)?;
        if !logs.exists() {
            let fresh = process.home.join("data.new");
            let format = process.home.join("format.properties");
            fs::write(&format, config(fresh.clone())?)?;
            let launch =
                kafka_config::kafka_format(&artifacts, &process.home, &format, &self.cluster_id()?);
            let formatted = launch.run(&process.home, &process.log, READY_TIMEOUT).await?;
            ensure!(formatted, "broker {node} could not format its log");
            fs::rename(fresh, logs)?;
        }
        let archive = artifacts.class_archive("kafka", &java_options("KAFKA_JAVA_OPTS"));
        let archived = class_archive_mode(&archive);
        let launch = kafka_config::kafka(&artifacts, &process.home, archived, &archive);
        let identity = process.spawn(&launch).await?;
        let deadline = Instant::now() + READY_TIMEOUT;
        while tokio::net::TcpStream::connect((HOST, ports[0])).await.is_err() {
            let tail = || process.log_tail(0);
            ensure!(identity.is_alive() && Instant::now() < deadline, "broker {node}: {}", tail());
            sleep(POLL_INTERVAL).await;
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
            journal: self.stack.exit_journal(),
            name,
        }
    }

    /// The id of the cluster, from the first broker's log directory.
    fn cluster_id(&self) -> Result<String> {
        let file = self.stack.directory().join("kafka").join("data").join("meta.properties");
        let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        let id = text.lines().find_map(|line| line.strip_prefix("cluster.id="));
        Ok(id.context("a formatted log names its cluster")?.to_string())
    }
}
