//! A broker that lost its disk: what the services remember is all there is, and it is enough.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Result, ensure};
use e2e::announce::{self, Announce};
use e2e::stack::programs;
use e2e::topology::SERVICES;
use e2e::wait::eventually;

use crate::stage::{SOON, Stage, all_end, alone, place_all};

const PENDING: usize = 150;

/// Stock has orders in memory that it read from the old cluster, and handles them when the new one
/// is there: their places mean nothing in it.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_broker_lost_its_disk_one_command_ends_every_order() -> Result<()> {
    alone(async |stage| {
        let Stage { stack, client } = stage;
        all_end(client, &place_all(client, 20).await?).await?;
        stack.kill("stock-db").await?;
        let orders = place_all(client, PENDING).await?;
        eventually("every payment to be verified", SOON, async || {
            for order in &orders {
                let order = client.order(order.order_id).await?;
                ensure!(order.payment == "verified" && order.status == "pending", "{order:?}");
            }
            Ok(())
        })
        .await?;
        announce::lose_the_disk(stack).await?;
        stack.start("stock-db").await?;

        let announced = announce::run(stack, &Announce::default()).await?;
        ensure!(announced.iter().all(|(_, count)| *count > 0), "{announced:?}");
        all_end(client, &orders).await?;
        let verdict = stage.verify().await?;
        let asked: u64 = announced.iter().map(|(_, count)| count).sum();
        // Not just as many: what a relay sent before it heard that the cluster was made anew, the
        // next sends again.
        ensure!(verdict.announced >= asked, "{} of {asked}", verdict.announced);
        Ok(())
    })
    .await
}

/// Orders are placed while there is no broker, a service is started anew, and the command is given
/// twice: events that are in their topics already are repeats.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_survived_by_services_that_start_anew_and_by_a_second_announcement()
-> Result<()> {
    alone(async |Stage { stack, client }| {
        stack.kill("payment").await?;
        let mut orders = place_all(client, 30).await?;
        announce::lose_the_disk(stack).await?;
        orders.extend(place_all(client, 30).await?);
        tokio::try_join!(stack.start("payment"), stack.kill("order"))?;
        stack.start("order").await?;
        announce::run(stack, &Announce::default()).await?;
        announce::run(stack, &Announce::default()).await?;
        all_end(client, &orders).await?;
        let key = orders[0].order_id.to_string();
        let one = Announce { key: Some(key), ..Announce::default() };
        let announced = announce::run(stack, &one).await?;
        ensure!(announced == [("order", 2), ("payment", 1), ("stock", 1)], "{announced:?}");
        let nobody = Announce { key: Some("nobody".into()), ..Announce::default() };
        ensure!(announce::run(stack, &nobody).await.is_err());
        Ok(())
    })
    .await
}

/// What `docker` says of a container that runs, whichever is asked for; what it is told is written down.
const DOCKER: &str = r#"#!/bin/sh
echo "$*" >>"$0.told"
case "$*" in
  *" ps "*) echo it ;;
  inspect*) echo '[{"Id": "it", "RestartCount": 0, "State": {"Running": true, "Paused": false, "Pid": 1, "ExitCode": 0, "StartedAt": "2026-01-01T00:00:00Z"}}]' ;;
esac
"#;

/// The stage's services, as `make announce STACK=…` finds them where something else manages them. Docker
/// is told to apply the contracts by their container, and kubectl is left to do it.
#[tokio::test(flavor = "multi_thread")]
async fn services_announce_where_docker_or_kubectl_manages_them() -> Result<()> {
    alone(async |Stage { stack, client }| {
        let order = &place_all(client, 1).await?[0];
        all_end(client, std::slice::from_ref(order)).await?;
        let scratch = stack.directory().join("announced-elsewhere");
        std::fs::create_dir_all(&scratch)?;
        let docker = scratch.join("docker");
        std::fs::write(&docker, DOCKER)?;
        std::fs::set_permissions(&docker, Permissions::from_mode(0o755))?;
        let path = format!("{}:{}", scratch.display(), std::env::var("PATH")?);
        let port = |address: String| -> String {
            let after_host = address.rsplit(':').next().unwrap_or_default();
            after_host.chars().take_while(char::is_ascii_digit).collect()
        };
        for elsewhere in ["compose", "k8s"] {
            let mut announce = Command::new(programs()?.join("e2e"));
            announce.args(["announce", "--key", &order.order_id.to_string()]);
            announce.env("STACK", elsewhere).env("PATH", &path).env("HOLDFAST_STATE", &scratch);
            announce.env("KAFKA_PORT", port(stack.kafka_bootstrap()?.to_string()));
            announce.env("REGISTRY_PORT", port(stack.registry_url()?));
            for service in SERVICES {
                let variable = format!("{}_OPERATOR_PORT", service.to_uppercase());
                announce.env(variable, port(stack.operator_url(service)?));
            }
            let done = announce.output()?;
            let said = String::from_utf8([done.stdout, done.stderr].concat())?;
            ensure!(done.status.success(), "{elsewhere}: {said}");
            ensure!(said.contains("2 events announced again"), "{elsewhere}: {said}");
            let told = std::fs::read_to_string(docker.with_extension("told")).unwrap_or_default();
            let applied = told.lines().any(|line| line.ends_with(" -T contracts"));
            ensure!(applied == (elsewhere == "compose"), "{elsewhere}: {told}");
            let _ = std::fs::remove_file(docker.with_extension("told"));
            ensure!(!scratch.join("stack").exists(), "{elsewhere}: nothing is native of it");
        }
        Ok(())
    })
    .await
}
