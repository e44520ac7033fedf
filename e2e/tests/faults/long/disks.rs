//! A disk that is full.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::client::order::Order;
use e2e::client::outcome::Outcome;
use e2e::stack_description::stack_description;
use launcher::Stack;
use tokio::time::Instant;
use uuid::Uuid;

use crate::fixture::*;

/// A disk of a few megabytes, unmounted when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` if this user has no right to mount.
    fn mount(path: &Path, megabytes: u32) -> Result<Option<SmallDisk>> {
        launcher::directories::create_public_directory(path)?;
        let size = format!("size={megabytes}m,mode=755");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        let mounted = mounted.is_ok_and(|mounted| mounted.status.success());
        Ok(mounted.then(|| SmallDisk(path.to_path_buf())))
    }

    /// Fills the disk to the last byte.
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

/// F36, for one component's disk.
async fn with_full_disk(component: &str, megabytes: u32, refuses: bool) -> Result<()> {
    without_fixture(async || {
        let stack = Stack::ephemeral(&stack_description())?;
        let Some(disk) = SmallDisk::mount(&stack.directory().join(component), megabytes)? else {
            return skip_or_fail(&format!(
                "a disk of {megabytes} MB for {component} takes root and mount"
            ));
        };
        // Only the component with the full disk may exit because of it.
        with_expected_exits(&stack, &[component], place_orders_while_full(&stack, &disk, refuses))
            .await?;
        stack.down().await?;
        drop(disk);
        Ok(())
    })
    .await
}

async fn place_orders_while_full(stack: &Stack, disk: &SmallDisk, refuses: bool) -> Result<()> {
    let client = start_and_seed(stack).await?;
    let mut orders = place_orders(&client, 20).await?;
    wait_until_confirmed(&client, &orders).await?;
    disk.fill()?;
    let (began, mut refused) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(15) {
        let key = Uuid::now_v7().to_string();
        match client.place_order(rich_customer(), &basket(), &key).await {
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
        // The last orders wait for the component with the full disk, so it was full.
        let last: Order = client.get_order(orders[orders.len() - 1].order_id).await?;
        ensure!(last.status == "pending", "the full disk delayed nothing: {last:?}");
    }
    disk.free()?;
    // A component that exited is started again, as a supervisor would do.
    stack.up().await?;
    orders.push(client.place_until_accepted(rich_customer(), &basket()).await?);
    wait_until_confirmed(&client, &orders).await?;
    assert_verified(&client).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes three minutes: make faults"]
async fn while_a_disk_is_full_orders_are_refused_or_end_afterwards_and_nothing_is_lost()
-> Result<()> {
    let mut failures = Vec::new();
    for (component, megabytes, refuses) in
        [("order-db", 160, true), ("payment-db", 160, false), ("kafka", 64, false)]
    {
        let full = with_full_disk(component, megabytes, refuses).await;
        failures.extend(full.err().map(|error| format!("{component}: {error:#}")));
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
