//! One order is one trace: Jaeger shows it as a tree across the services, and the logs name it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use e2e::stack_description::with_console;
use serde_json::{Value, json};

use super::*;
use crate::dead_letters::{
    REFUSE_PAYMENTS, dead_letter_for, replay, run_successfully, with_strict_check,
};

/// The id of the client's own span, which no service exports.
const CLIENT_SPAN: &str = "00f067aa0ba902b7";

/// Long enough for the batches of the exporters, which are sent every five seconds.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(20);

/// A span, by its service and its name.
type SpanName = (String, String);

/// A span of a trace, with the name of its parent. A span of the client has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TreeSpan {
    parent: Option<SpanName>,
    name: SpanName,
}

/// What Jaeger knows of a trace.
struct Trace {
    spans: BTreeSet<TreeSpan>,
    /// The `service.instance.id` of each process, by service.
    instances: BTreeMap<String, BTreeSet<String>>,
    json: Value,
}

impl Trace {
    fn from_json(json: &Value) -> Result<Trace> {
        let trace = &json["data"][0];
        let service = |span: &Value| {
            let process = span["processID"].as_str().unwrap_or_default();
            text(&trace["processes"][process]["serviceName"])
        };
        let spans = trace["spans"].as_array().context("no spans")?;
        let names: BTreeMap<String, SpanName> = spans
            .iter()
            .map(|span| (text(&span["spanID"]), (service(span), text(&span["operationName"]))))
            .collect();
        let mut tree = BTreeSet::new();
        for span in spans {
            let parent = text(&span["references"][0]["spanID"]);
            let is_root = parent == CLIENT_SPAN;
            ensure!(is_root || names.contains_key(&parent), "{span} has no parent in {trace}");
            let name = names[&text(&span["spanID"])].clone();
            tree.insert(TreeSpan { parent: names.get(&parent).cloned(), name });
        }
        let mut instances = BTreeMap::<_, BTreeSet<_>>::new();
        for process in trace["processes"].as_object().into_iter().flat_map(|it| it.values()) {
            let tag = |key: &str| tag(&process["tags"], key);
            ensure!(!tag("service.version").is_empty(), "{process} has no version");
            let of_service = instances.entry(text(&process["serviceName"])).or_default();
            of_service.insert(tag("service.instance.id"));
        }
        Ok(Trace { spans: tree, instances, json: trace.clone() })
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn tag(tags: &Value, key: &str) -> String {
    let found = tags.as_array().into_iter().flatten().find(|tag| tag["key"] == key);
    found.map(|tag| text(&tag["value"])).unwrap_or_default()
}

/// The span of a service below another one, or below the client's.
fn span(parent: Option<(&str, &str)>, service: &str, name: &str) -> TreeSpan {
    let parent = parent.map(|(service, name)| (service.to_string(), name.to_string()));
    TreeSpan { parent, name: (service.to_string(), name.to_string()) }
}

/// The tree of a confirmed order, but for `orders.confirmed`: the second answer decides.
fn tree_of_an_order() -> BTreeSet<TreeSpan> {
    let post = ("order", "POST /orders");
    let payment = ("payment", "process orders.created");
    let stock = ("stock", "process orders.created");
    BTreeSet::from([
        span(None, post.0, post.1),
        span(Some(post), "order", "send orders.created"),
        span(Some(post), payment.0, payment.1),
        span(Some(post), stock.0, stock.1),
        span(Some(payment), "payment", "send payments.verified"),
        span(Some(payment), "order", "process payments.verified"),
        span(Some(stock), "stock", "send stock.reserved"),
        span(Some(stock), "order", "process stock.reserved"),
    ])
}

fn skip_without_go() -> Result<bool> {
    let is_there = Command::new("go").arg("version").output().is_ok_and(|go| go.status.success());
    if !is_there {
        skip_or_fail("there is no Go, which compiles Jaeger")?;
    }
    Ok(!is_there)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "compiles Jaeger: make faults"]
async fn an_order_is_one_tree_in_the_trace_store_and_the_logs_name_its_trace() -> Result<()> {
    if skip_without_go()? {
        return Ok(());
    }
    without_fixture(async || {
        let stack = Stack::ephemeral(&with_console())?;
        without_unexpected_exits(&stack, show_an_order(&stack)).await
    })
    .await
}

async fn show_an_order(stack: &Stack) -> Result<()> {
    stack.observe()?;
    for service in SERVICES {
        stack.set_environment(service, "LOG_FORMAT", Some("json"))?;
    }
    let client = start_and_seed(stack).await?;
    let (trace_id, order) = place_in_trace(stack).await?;
    let order = client.wait_until_ended(order.order_id, TIMEOUT).await?;
    ensure!(order.status == "confirmed", "{order:?}");
    let trace = wait_for_trace(stack, &trace_id, is_complete).await?;
    assert_instances(&trace)?;
    assert_found_by_key(stack, &trace_id, &order).await?;
    assert_linked_from_its_page(stack, &trace_id, &order).await?;
    assert_dead_letter_in_trace_and_log(stack, &client).await
}

/// Places an order as a client that has begun a trace.
async fn place_in_trace(stack: &Stack) -> Result<(String, Order)> {
    let trace_id = format!("{:032x}", rand::random::<u128>());
    let order = json!({ "customer_id": rich_customer(), "lines": basket() });
    let request = reqwest::Client::builder().no_proxy().build()?;
    let request = request.post(format!("{}/orders", stack.url("order")?)).json(&order);
    let request = request.header("traceparent", format!("00-{trace_id}-{CLIENT_SPAN}-01"));
    let order = request.send().await?.error_for_status()?.json().await?;
    Ok((trace_id, order))
}

async fn ask_jaeger(stack: &Stack, path: &str) -> Result<Value> {
    let url = stack.traces_url()?.context("the stack has a trace store")?;
    let request = reqwest::Client::builder().no_proxy().build()?.get(format!("{url}{path}"));
    Ok(request.send().await?.error_for_status()?.json().await?)
}

async fn wait_for_trace(
    stack: &Stack,
    trace_id: &str,
    is_wanted: impl Fn(&Trace) -> Result<()>,
) -> Result<Trace> {
    eventually("the spans of the trace", EXPORT_TIMEOUT, async || {
        let trace = ask_jaeger(stack, &format!("/api/traces/{trace_id}")).await?;
        let trace = Trace::from_json(&trace)?;
        is_wanted(&trace)?;
        Ok(trace)
    })
    .await
}

fn is_complete(trace: &Trace) -> Result<()> {
    let mut found = trace.spans.clone();
    let confirmed = ("order".to_string(), "send orders.confirmed".to_string());
    let deciding: Vec<_> = found.extract_if(.., |span| span.name == confirmed).collect();
    ensure!(found == tree_of_an_order(), "{found:#?}");
    let [TreeSpan { parent: Some((service, name)), .. }] = &deciding[..] else {
        anyhow::bail!("{deciding:?}");
    };
    let answers = ["process payments.verified", "process stock.reserved"];
    ensure!(service == "order" && answers.contains(&name.as_str()), "{deciding:?}");
    Ok(())
}

fn assert_instances(trace: &Trace) -> Result<()> {
    let mut ids = BTreeSet::new();
    for service in SERVICES {
        let of_service = trace.instances.get(service).into_iter().flatten();
        let of_service: Vec<Uuid> = of_service.map(|id| id.parse()).collect::<Result<_, _>>()?;
        ensure!(of_service.len() == 1, "{service}: {:?}", trace.instances);
        ids.extend(of_service);
    }
    ensure!(ids.len() == SERVICES.len(), "each process has an id of its own: {ids:?}");
    Ok(())
}

/// As an operator finds the trace of an order.
async fn assert_found_by_key(stack: &Stack, trace_id: &str, order: &Order) -> Result<()> {
    for (service, tag) in [("payment", "messaging.kafka.message.key"), ("order", "order_id")] {
        let tags = json!({ tag: order.order_id }).to_string();
        let tags: String = tags.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let query = format!("/api/traces?service={service}&lookback=1h&limit=20&tags={tags}");
        let found = ask_jaeger(stack, &query).await?;
        let traces = found["data"].as_array().into_iter().flatten();
        let is_found = traces.into_iter().any(|trace| trace["traceID"] == *trace_id);
        // The client asked for the order too, in traces of its own.
        ensure!(is_found, "{service}, {tag}: {found}");
    }
    Ok(())
}

/// The link on the order's page of the control room leads to a page of Jaeger, and what that page asks for is the trace.
async fn assert_linked_from_its_page(stack: &Stack, trace_id: &str, order: &Order) -> Result<()> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let read = async |url: String| {
        anyhow::Ok(http.get(url).send().await?.error_for_status()?.text().await?)
    };
    let page = read(format!("{}/orders/{}", stack.console_url()?, order.order_id)).await?;
    let jaeger = stack.traces_url()?.context("the stack has a trace store")?;
    let link = page.split('"').find(|part| part.starts_with(&format!("{jaeger}/search?")));
    let link = link.with_context(|| format!("no link in {page}"))?.replace("&amp;", "&");
    let target = read(link.clone()).await?;
    ensure!(target.contains("Jaeger"), "{target}");
    let query = link.split_once('?').map(|(_, query)| query).unwrap_or_default();
    let found = ask_jaeger(stack, &format!("/api/traces?{query}")).await?;
    let ids: Vec<_> =
        found["data"].as_array().into_iter().flatten().map(|it| &it["traceID"]).collect();
    ensure!(ids == [trace_id], "{link}: {ids:?}");
    Ok(())
}

/// From the order to its trace, and from there to the line of the log.
async fn assert_dead_letter_in_trace_and_log(stack: &Stack, client: &Client) -> Result<()> {
    let refused = with_strict_check(stack, REFUSE_PAYMENTS, async || {
        let (trace_id, order) = place_in_trace(stack).await?;
        let id = dead_letter_for(client, "payment", &order).await?;
        Ok((trace_id, order, id))
    });
    let (trace_id, order, dead_letter) = refused.await?;
    let stored = ("payment".to_string(), "store dead letter of orders.created".to_string());
    let trace = wait_for_trace(stack, &trace_id, |trace| {
        ensure!(trace.spans.iter().any(|span| span.name == stored), "{:?}", trace.spans);
        Ok(())
    });
    let trace = trace.await?.json.to_string();
    ensure!(trace.contains("too_strict"), "the reason is in {trace}");

    let log = std::fs::read_to_string(stack.log_file("payment")?)?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut lines = lines.filter(|line| text(&line["message"]).contains("is a dead letter"));
    let line = lines.next().context("no line about a dead letter")?;
    ensure!(line["trace_id"] == *trace_id, "{line}");
    ensure!(line["key"] == *order.order_id.to_string(), "{line}");

    run_successfully(stack, replay("payment", dead_letter)).await?;
    let ended = client.wait_until_ended(order.order_id, TIMEOUT).await?;
    ensure!(ended.status == "confirmed", "{ended:?}");
    Ok(())
}
