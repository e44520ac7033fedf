//! Transactions in Kafka that never end. A client that reads committed records waits at their first record.
//!
//! A single broker that is fenced while it runs can drop the end of a transaction (KAFKA-20734). The producer and the
//! coordinator then treat the transaction as ended, and the partition treats it as open.

use anyhow::{Context, Result, ensure};
use events::connect;
use futures::future::join_all;
use launcher::Stack;

use crate::console::print_line;

const TOOL: &str = "org.apache.kafka.tools.TransactionsCommand";

/// The only broker of a native stack.
const BROKER: &str = "1";

/// Where a transaction began that stays open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HangingTransaction {
    topic: String,
    partition: String,
    start_offset: String,
}

/// Aborts the transactions that hang, and returns them. The components that write in transactions are stopped meanwhile:
/// a producer that goes on in such a partition could add records to the transaction, and they would be aborted too.
///
/// A client that reads committed records never gets the records of these transactions. Their producer sends them again if
/// it was not told that they were committed. Kafka tells it so before the end of the transaction reaches the partitions,
/// so republish afterwards.
///
/// # Errors
/// If Kafka's tool fails, or a component does not stop or start. Every component that was stopped is started.
pub async fn end(stack: &Stack) -> Result<Vec<HangingTransaction>> {
    ensure!(
        stack.is_native(),
        "this works on the native stack only: docs/how-to/cdc.md has the commands for docker compose"
    );
    let processors = &stack.description().stream_processors;
    let mut writers = stack.status().await?;
    writers.retain(|it| {
        it.pid.is_some() && (it.name == connect::NAME || processors.contains(&it.name))
    });
    let ended = async {
        for writer in &writers {
            stack.stop(&writer.name).await?;
        }
        abort_all(stack).await
    };
    let ended = ended.await;
    let started = join_all(writers.iter().map(|writer| stack.start(&writer.name))).await;
    started.into_iter().collect::<Result<()>>()?;
    ended
}

/// The transactions whose coordinator believes that they have ended, from a minute after their last record on.
///
/// # Errors
/// If Kafka's tool fails.
pub async fn find(stack: &Stack) -> Result<Vec<HangingTransaction>> {
    let words = ["find-hanging", "--broker-id", BROKER, "--max-transaction-timeout", "1"];
    parse(&stack.run_kafka_tool(TOOL, &words).await?)
}

async fn abort_all(stack: &Stack) -> Result<Vec<HangingTransaction>> {
    let hanging = find(stack).await?;
    for HangingTransaction { topic, partition, start_offset } in &hanging {
        let of = ["--topic", topic, "--partition", partition, "--start-offset", start_offset];
        let words: Vec<&str> = ["abort"].into_iter().chain(of).collect();
        stack.run_kafka_tool(TOOL, &words).await?;
    }
    Ok(hanging)
}

/// Reads the table that the tool prints: a line of headings, then a line for each transaction.
fn parse(table: &str) -> Result<Vec<HangingTransaction>> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let headings = lines.find(|words| words.first() == Some(&"Topic")).unwrap_or_default();
    let column = |name: &str| headings.iter().position(|heading| *heading == name);
    let transactions = lines.filter(|words| !words.is_empty()).map(|words| {
        let cell = |name: &str| {
            let cell = column(name).and_then(|nth| words.get(nth));
            cell.map(ToString::to_string).with_context(|| format!("no {name} in: {table}"))
        };
        let (topic, partition) = (cell("Topic")?, cell("Partition")?);
        Ok(HangingTransaction { topic, partition, start_offset: cell("StartOffset")? })
    });
    transactions.collect()
}

/// Runs `e2e end-transactions`.
///
/// # Errors
/// As [`end`].
pub async fn command(stack: &Stack) -> Result<()> {
    print(&end(stack).await?);
    Ok(())
}

/// What was ended, as lines.
pub fn print(ended: &[HangingTransaction]) {
    for HangingTransaction { topic, partition, start_offset } in ended {
        print_line(&format!(
            "  aborted  {topic}, partition {partition}, from offset {start_offset}"
        ));
    }
    print_line(match ended.is_empty() {
        true => "  no transaction hangs (one that does is listed a minute after its last record)",
        false => "Now republish what was decided since the crash: docs/how-to/cdc.md says why.",
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_below_the_headings_is_a_transaction() {
        let table = "Topic          \tPartition\tProducerId\tProducerEpoch\tCoordinatorEpoch\tStartOffset\t\
                     LastTimestamp\tDuration(min)\t\n\
                     connect-offsets\t0        \t6         \t1958         \t38              \t12036      \t\
                     1795871146866\t1            \t\n";
        let expected = HangingTransaction {
            topic: "connect-offsets".into(),
            partition: "0".into(),
            start_offset: "12036".into(),
        };
        assert_eq!(parse(table).unwrap(), [expected]);
        let (headings, _) = table.split_once('\n').unwrap();
        assert_eq!(parse(headings).unwrap(), []);
        assert!(parse("Topic\tPartition\norders.created\t0").is_err());
    }
}
