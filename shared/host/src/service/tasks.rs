//! The tasks of a process. None of them may end while the others continue: a service whose relay has died still
//! answers its clients, and the fault would stay unnoticed until the outbox is full.

use anyhow::{Error, anyhow};
use messaging::telemetry::panics::panic_message;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::JoinMap;

#[derive(Default)]
pub struct Tasks(JoinMap<&'static str, anyhow::Result<()>>);

impl Tasks {
    /// Starts a task. A panic in it becomes its error.
    ///
    /// # Panics
    /// If a task of this name runs: the map would abort it.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        assert!(!self.0.contains_key(name), "two tasks are named {name}");
        self.0.spawn(name, task);
    }

    /// Waits until one ends, which none should: even a task that ends without an error is an error here.
    pub async fn join_first(&mut self) -> Error {
        match self.join_next().await {
            Some((name, Ok(()))) => anyhow!("the {name} ended although no stop was requested"),
            Some((_, Err(error))) => error,
            None => anyhow!("nothing runs"),
        }
    }

    /// Waits until the named tasks have ended, and returns the first failure among all that ended meanwhile. Tasks
    /// that have not ended by the deadline are still in [`Tasks::running`].
    pub async fn join(&mut self, names: &[&'static str], deadline: Instant) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        while names.iter().any(|name| self.0.contains_key(name)) {
            match timeout_at(deadline, self.join_next()).await {
                Ok(Some((_, ended))) => outcome = outcome.and(ended),
                Ok(None) | Err(_) => break,
            }
        }
        outcome
    }

    /// The names of the tasks that have not ended, in alphabetical order.
    pub fn running(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.0.keys().copied().collect();
        names.sort_unstable();
        names
    }

    async fn join_next(&mut self) -> Option<(&'static str, anyhow::Result<()>)> {
        let (name, joined) = self.0.join_next().await?;
        let ended = joined.unwrap_or_else(|ended| {
            // Only a drop of the whole map aborts a task.
            let panic = ended.into_panic();
            Err(anyhow!("panicked: {}", panic_message(&*panic)))
        });
        Some((name, ended.map_err(|error| error.context(format!("the {name} failed")))))
    }
}

/// Ends when SIGTERM or SIGINT arrives.
pub(super) fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use super::*;

    fn short_deadline() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[tokio::test]
    async fn the_first_task_to_end_is_reported_with_its_reason() {
        let mut tasks = Tasks::default();
        tasks.spawn("consumer", pending());
        tasks.spawn("relay", async { panic!("on {}", "purpose") });
        assert_eq!(
            format!("{:#}", tasks.join_first().await),
            "the relay failed: panicked: on purpose"
        );
        tasks.spawn("sweeper", async { Ok(()) });
        assert_eq!(
            format!("{:#}", tasks.join_first().await),
            "the sweeper ended although no stop was requested"
        );
        assert_eq!(tasks.running(), ["consumer"]);
    }

    #[tokio::test]
    async fn a_join_waits_for_the_named_ones_only_and_not_for_ever() {
        let mut tasks = Tasks::default();
        tasks.spawn("API", async { Ok(()) });
        tasks.spawn("relay", pending());
        let long = Instant::now() + Duration::from_secs(60);
        tasks.join(&["API"], long).await.unwrap();
        tasks.join(&["relay"], short_deadline()).await.unwrap();
        assert_eq!(tasks.running(), ["relay"]);
    }

    #[tokio::test]
    async fn a_join_returns_the_first_failure_among_all_that_end_meanwhile() {
        let mut tasks = Tasks::default();
        tasks.spawn("relay", async { anyhow::bail!("no lock") });
        tasks.spawn("API", async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(())
        });
        let failure = tasks.join(&["API"], Instant::now() + Duration::from_secs(60)).await;
        assert_eq!(format!("{:#}", failure.unwrap_err()), "the relay failed: no lock");
    }
}
