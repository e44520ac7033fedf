//! A broker that lost its disk: the services' rows are all there is, and they are enough.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Result, ensure};
use e2e::admin::republish::{self, RepublishOptions};
use e2e::client::order::Order;
use e2e::stack_description::SERVICES;
use launcher::directories::programs_directory;

use crate::fixture::*;

const PENDING_ORDERS: usize = 150;

/// Stock has read orders from the old cluster that it handles when the new one exists: their
/// offsets mean nothing in the new cluster.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_broker_lost_its_disk_republishing_ends_every_order() -> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let Fixture { stack, client } = fixture;
        confirm_orders(client, 20).await?;
        stack.kill("stock-db").await?;
        let orders = place_orders(client, PENDING_ORDERS).await?;
        let is_paid = |it: &Order| it.leg("payment") == "verified" && it.status == "pending";
        wait_until_each(client, &orders, "every payment to be verified", is_paid).await?;
        republish::lose_disk(stack).await?;
        stack.start("stock-db").await?;

        let republished = republish::run(stack, &RepublishOptions::default()).await?;
        ensure!(republished.iter().all(|(_, count)| *count > 0), "{republished:?}");
        wait_until_confirmed(client, &orders).await?;
        let verdict = fixture.verify().await?;
        let requested: u64 = republished.iter().map(|(_, count)| count).sum();
        // At least as many: the next relay sends again what the previous one sent before it
        // detected the new cluster.
        ensure!(verdict.republished >= requested, "{} of {requested}", verdict.republished);
        Ok(())
    })
    .await
}

/// Orders are placed while there is no broker, a service is restarted, and the command runs twice:
/// events that are already in their topics are duplicates.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_lost_disk_is_survived_by_restarted_services_and_republishing_twice_is_harmless()
-> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        stack.kill("payment").await?;
        let mut orders = place_orders(client, 30).await?;
        republish::lose_disk(stack).await?;
        orders.extend(place_orders(client, 30).await?);
        tokio::try_join!(stack.start("payment"), stack.kill("order"))?;
        stack.start("order").await?;
        republish::run(stack, &RepublishOptions::default()).await?;
        republish::run(stack, &RepublishOptions::default()).await?;
        wait_until_confirmed(client, &orders).await?;
        let key = orders[0].order_id.to_string();
        let of_key = |key: &str| RepublishOptions { key: Some(key.into()), ..Default::default() };
        let republished = republish::run(stack, &of_key(&key)).await?;
        let counts = republished.iter().map(|(service, count)| (service.as_str(), *count));
        ensure!(counts.eq([("order", 2), ("payment", 1), ("stock", 1)]), "{republished:?}");
        ensure!(republish::run(stack, &of_key("unknown")).await.is_err());
        Ok(())
    })
    .await
}

/// A fake `docker` that reports every container as running and records its arguments.
const FAKE_DOCKER: &str = r#"#!/bin/sh
echo "$*" >>"$0.calls"
case "$*" in
  *" ps "*) echo it ;;
  inspect*) echo '[{"Id": "it", "RestartCount": 0, "State": {"Running": true, "Paused": false, "Pid": 1, "ExitCode": 0, "StartedAt": "2026-01-01T00:00:00Z"}}]' ;;
esac
"#;

/// The fixture's services, as `make republish STACK=…` finds them if another tool manages them. For
/// compose the contracts are applied by their container, and for Kubernetes by kubectl.
#[tokio::test(flavor = "multi_thread")]
async fn services_republish_where_docker_or_kubectl_manages_them() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let order = &place_orders(client, 1).await?[0];
        wait_until_confirmed(client, std::slice::from_ref(order)).await?;
        let scratch = stack.directory().join("republished-elsewhere");
        std::fs::create_dir_all(&scratch)?;
        let docker = scratch.join("docker");
        std::fs::write(&docker, FAKE_DOCKER)?;
        std::fs::set_permissions(&docker, Permissions::from_mode(0o755))?;
        let path = format!("{}:{}", scratch.display(), std::env::var("PATH")?);
        let port = |address: String| -> String {
            let after_host = address.rsplit(':').next().unwrap_or_default();
            after_host.chars().take_while(char::is_ascii_digit).collect()
        };
        for elsewhere in ["compose", "k8s"] {
            let mut republish = Command::new(programs_directory()?.join("e2e"));
            republish.args(["republish", "--key", &order.order_id.to_string()]);
            republish.env("STACK", elsewhere).env("PATH", &path).env("HOLDFAST_STATE", &scratch);
            republish.env("KAFKA_PORT", port(stack.kafka_bootstrap()?.to_string()));
            republish.env("REGISTRY_PORT", port(stack.registry_url()?));
            for service in SERVICES {
                let variable = format!("{}_ADMIN_PORT", service.to_uppercase());
                republish.env(variable, port(stack.admin_url(service)?));
            }
            let done = republish.output()?;
            let output = String::from_utf8([done.stdout, done.stderr].concat())?;
            ensure!(done.status.success(), "{elsewhere}: {output}");
            ensure!(output.contains("2 events republished"), "{elsewhere}: {output}");
            let docker_calls =
                std::fs::read_to_string(docker.with_extension("calls")).unwrap_or_default();
            let applied = docker_calls.lines().any(|line| line.ends_with(" -T contracts"));
            ensure!(applied == (elsewhere == "compose"), "{elsewhere}: {docker_calls}");
            let _ = std::fs::remove_file(docker.with_extension("calls"));
            ensure!(!scratch.join("stack").exists(), "{elsewhere}: no native stack may be created");
        }
        Ok(())
    })
    .await
}
