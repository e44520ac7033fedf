//! The environment of a program: variables, limits, and the proxies of the machine.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::stack_description::SERVICES;
use faults::file_limit;
use faults::keep_alive_clients::KeepAliveClients;
use launcher::directories::programs_directory;
use launcher::eventually;
use tokio::time::{Instant, sleep, timeout};

use crate::fixture::*;

/// The environment that a service, and `contracts apply`, need to start; nothing listens at these
/// addresses.
pub const REQUIRED: [(&str, &str); 3] = [
    ("DATABASE_URL", "postgres://order@127.0.0.1:1/order"),
    ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"),
    ("SCHEMA_REGISTRY_URL", "http://127.0.0.1:1"),
];

pub const BAD_CONFIGURATION: i32 = 64;

/// Runs one of our programs with only these variables. A program that runs for 10 s is killed.
fn run_program(program: &str, command: &str, variables: &[(&str, &OsStr)]) -> Result<Output> {
    let program = programs_directory()?.join(program);
    Command::new("timeout")
        .args(["-s", "KILL", "10"])
        .arg(program)
        .arg(command)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(REQUIRED)
        .envs(variables.iter().copied())
        .output()
        .context("`timeout` cannot be started")
}

fn assert_refused(program: &str, command: &str, name: &str, value: &OsStr) -> Result<()> {
    let output = run_program(program, command, &[(name, value)])?;
    let output_text =
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let what = format!("{program} {command}, {name}={value:?}: {:?}: {output_text}", output.status);
    ensure!(output.status.code() == Some(BAD_CONFIGURATION), "{what}");
    ensure!(output_text.contains(name) && !output_text.contains("panicked"), "{what}");
    Ok(())
}

/// R2, and every other setting: the program refuses a bad value when it starts, before it can cause an
/// outage.
#[test]
fn a_setting_that_can_never_work_ends_each_program_with_64_and_the_name_of_the_variable()
-> Result<()> {
    let of_all = [
        ("SCHEMA_REGISTRY_URL", "registry:8081"),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka://kafka:9092"),
        ("KAFKA_SECURITY_PROTOCOL", "tls"),
        ("KAFKA_SASL_USERNAME", "without-sasl"),
        ("KAFKA_SSL_CA_LOCATION", "/nowhere/ca.pem"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
    ];
    for (name, value) in of_all {
        assert_refused("contracts", "apply", name, value.as_ref())?;
        for command in ["serve", "migrate", "health"] {
            assert_refused("order", command, name, value.as_ref())?;
        }
    }
    for (name, value) in [
        ("DATABASE_URL", "postgres://order@127.0.0.1"),
        ("DATABASE_URL", "postgres://order@127.0.0.1/order?sslmode=require&sslrootcert=/nowhere"),
        ("PGOPTIONS", "-c search_path=elsewhere"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("PROBE_ADDR", "0.0.0.0:8080"),
        ("TOKIO_WORKER_THREADS", "0"),
        ("RUST_LOG", "info,,="),
    ] {
        assert_refused("order", "serve", name, value.as_ref())?;
        if name != "RUST_LOG" {
            assert_refused("order", "health", name, value.as_ref())?;
        }
    }
    // An address that does not belong to this machine.
    assert_refused("order", "serve", "HTTP_ADDR", "192.0.2.1:8080".as_ref())?;
    assert_refused("contracts", "apply", "STACK_NAME", "two words".as_ref())?;
    assert_refused("contracts", "apply", "SCHEMA_REGISTRY_USERNAME", OsStr::from_bytes(b"u\xff"))?;
    let mut limited = Command::new("sh");
    let script =
        format!("ulimit -n 100; exec {} serve", programs_directory()?.join("order").display());
    let output = limited.args(["-c", &script]).envs(REQUIRED).output()?;
    let output_text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(BAD_CONFIGURATION), "{output_text}");
    ensure!(output_text.contains("RLIMIT_NOFILE is 100"), "{output_text}");
    Ok(())
}

/// A developer's shell has such variables for `psql`, and a base image may have them.
#[tokio::test(flavor = "multi_thread")]
async fn variables_of_postgres_own_clients_change_nothing_of_what_a_url_means() -> Result<()> {
    with_shared_fixture(async |Fixture { stack, .. }| {
        let url = stack.database_url("order")?;
        let output = run_program(
            "order",
            "migrate",
            &[
                ("DATABASE_URL", url.as_ref()),
                ("PGHOST", "192.0.2.1".as_ref()),
                ("PGPORT", "1".as_ref()),
                ("PGUSER", "stranger".as_ref()),
                ("PGDATABASE", "nothing".as_ref()),
                ("PGPASSWORD", "wrong".as_ref()),
                ("PGSSLMODE", "verify-full".as_ref()),
            ],
        )?;
        let output_text =
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "{:?}: {output_text}", output.status);
        Ok(())
    })
    .await
}

/// Runs with variables set for every service; they are removed afterwards.
pub async fn with_environment(
    fixture: &Fixture,
    variables: &[(&str, String)],
    test: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    let set = |is_set: bool| -> Result<()> {
        for service in SERVICES {
            for (name, value) in variables {
                let value = is_set.then_some(value.as_str());
                fixture.stack.set_environment(service, name, value)?;
            }
        }
        Ok(())
    };
    set(true)?;
    let tested = async {
        restart_all(&fixture.stack).await?;
        test().await
    };
    let tested = tested.await;
    set(false)?;
    restart_all(&fixture.stack).await?;
    tested
}

/// Places one order, which must be confirmed soon.
async fn assert_order_confirmed(fixture: &Fixture, seconds: u64) -> Result<()> {
    let order = place_orders(&fixture.client, 1).await?;
    wait_until_confirmed_within(&fixture.client, &order, Duration::from_secs(seconds)).await
}

/// R1. Docker puts the proxy of its client's configuration into the variables of every container.
#[tokio::test(flavor = "multi_thread")]
async fn proxy_variables_of_the_environment_leave_the_calls_to_the_registry_alone() -> Result<()> {
    const NOWHERE: &str = "http://127.0.0.1:9";
    let variables = [
        ("HTTP_PROXY", NOWHERE),
        ("http_proxy", NOWHERE),
        ("HTTPS_PROXY", NOWHERE),
        ("https_proxy", NOWHERE),
        ("ALL_PROXY", NOWHERE),
        ("all_proxy", NOWHERE),
        ("NO_PROXY", ""),
        ("no_proxy", ""),
    ]
    .map(|(name, value)| (name, value.to_string()));
    with_exclusive_fixture(async |fixture| {
        let mut contracts = tokio::process::Command::new(programs_directory()?.join("contracts"));
        contracts
            .arg("apply")
            .envs(variables.iter().map(|(name, value)| (*name, value)))
            .env("KAFKA_BOOTSTRAP_SERVERS", fixture.stack.kafka_bootstrap()?)
            .env("SCHEMA_REGISTRY_URL", fixture.stack.registry_url()?)
            .env("STACK_NAME", fixture.stack.name()?)
            .kill_on_drop(true);
        let applied = timeout(Duration::from_secs(30), contracts.output());
        let applied = applied.await.context("contracts apply did not end within 30 s")??;
        ensure!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        let ordered = async || assert_order_confirmed(fixture, 10).await;
        with_environment(fixture, &variables, ordered).await
    })
    .await
}

/// R5, with the limits of a container: clients keep more connections open than the process may open
/// files.
pub async fn assert_served_despite_connections(soft: u64, hard: u64) -> Result<()> {
    const CLIENTS: usize = 1_020;
    const REQUEST_INTERVAL: Duration = Duration::from_secs(4);
    /// On two cores, beside a compiler.
    const END_TIMEOUT: Duration = Duration::from_secs(60);
    let _permits = all_stack_permits().await?;
    with_exclusive_fixture(async |fixture| {
        let Fixture { stack, client } = fixture;
        file_limit::set(stack, "order", "order", soft, hard)?;
        restart(stack, "order").await?;
        let tested = async {
            let address = stack.url("order")?.replace("http://", "");
            let kept =
                KeepAliveClients::start(&address, "/items?limit=1", CLIENTS, REQUEST_INTERVAL);
            let served = async |responses: u64| {
                eventually("the clients to be served", Duration::from_secs(20), async || {
                    let count = kept.response_count();
                    ensure!(count > responses, "{count} answers, and not {responses}");
                    Ok(())
                })
                .await
            };
            served(2 * CLIENTS as u64).await?;
            stack.kill("order-db").await?;
            sleep(Duration::from_secs(1)).await;
            stack.start("order-db").await?;
            let database_started = Instant::now();
            let order = client.place_until_accepted(rich_customer(), &basket()).await?;
            let ended = client.wait_until_ended(order.order_id, END_TIMEOUT).await?;
            ensure!(ended.status == "confirmed", "{ended:?}");
            let took = database_started.elapsed();
            ensure!(took < END_TIMEOUT, "the order ended after {took:?}");
            for path in ["/readyz", "/metrics", "/livez"] {
                let url = format!("{}{path}", stack.probe_url("order")?);
                // One answer within 1 s is enough: the requests that waited for the database keep a small machine
                // busy for some seconds.
                eventually(path, Duration::from_secs(20), async || {
                    let answer = reqwest::Client::builder().no_proxy().build()?.get(&url).send();
                    let answer = timeout(Duration::from_secs(1), answer).await;
                    let status = answer.with_context(|| format!("{path} within 1 s"))??.status();
                    ensure!(status.is_success(), "{path}: {status}");
                    Ok(())
                })
                .await?;
            }
            served(kept.response_count() + CLIENTS as u64).await
        };
        let tested = tested.await;
        file_limit::reset(stack, "order")?;
        restart(stack, "order").await?;
        tested
    })
    .await
}
