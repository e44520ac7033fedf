//! The logs of a stack's components, for users.

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::stack::Stack;

impl Stack {
    /// Prints the last 200 lines of a component's log to standard output. With `follow`, goes on to
    /// print new lines until this process ends.
    ///
    /// # Errors
    /// If the component has no log.
    pub async fn print_log(&self, name: &str, follow: bool) -> Result<()> {
        if let Some(compose) = &self.compose {
            return compose.logs(name, follow).await;
        }
        let mut tail = Command::new("tail");
        tail.args(["-n", "200"]).args(follow.then_some("-F")).arg(self.log_file(name)?);
        let printed = tail.status().await.context("tail cannot be run")?;
        ensure!(printed.success(), "the log of {name} cannot be printed");
        Ok(())
    }
}
