//! One order is one trace: a tree of spans across the services, and the logs name it.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};

use super::*;
use crate::collector::Collector;
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

/// What the services sent about one trace.
struct Trace {
    spans: BTreeSet<TreeSpan>,
    /// The `service.instance.id` of each process, by service.
    instances: BTreeMap<String, BTreeSet<String>>,
    /// The spans that belong to an order, by the value of their attribute.
    named: BTreeMap<String, BTreeSet<String>>,
    /// All of it, as text.
    text: String,
}

impl Trace {
    fn read(collector: &Collector, trace_id: &str) -> Result<Trace> {
        let mut names = BTreeMap::<Vec<u8>, SpanName>::new();
        let (mut spans, mut instances) = (Vec::new(), BTreeMap::<_, BTreeSet<_>>::new());
        for body in collector.bodies() {
            for of_process in ExportTraceServiceRequest::decode(body)?.resource_spans {
                let resource = of_process.resource.context("spans without a resource")?.attributes;
                let of_process = of_process.scope_spans.into_iter().flat_map(|it| it.spans);
                let own: Vec<Span> =
                    of_process.filter(|span| hex(&span.trace_id) == trace_id).collect();
                if own.is_empty() {
                    continue;
                }
                let service = attribute(&resource, "service.name");
                ensure!(!attribute(&resource, "service.version").is_empty(), "{resource:?}");
                let of_service = instances.entry(service.clone()).or_default();
                of_service.insert(attribute(&resource, "service.instance.id"));
                let name = |span: &Span| (service.clone(), span.name.clone());
                names.extend(own.iter().map(|span| (span.span_id.clone(), name(span))));
                spans.extend(own);
            }
        }
        ensure!(!spans.is_empty(), "no spans");
        let (mut tree, mut named) = (BTreeSet::new(), BTreeMap::<_, BTreeSet<_>>::new());
        for span in &spans {
            let (parent, name) = (names.get(&span.parent_span_id), &names[&span.span_id]);
            let is_root = hex(&span.parent_span_id) == CLIENT_SPAN;
            ensure!(is_root || parent.is_some(), "{span:?} has no parent");
            tree.insert(TreeSpan { parent: parent.cloned(), name: name.clone() });
            for key in ["order_id", "messaging.kafka.message.key"] {
                let of_order = named.entry(attribute(&span.attributes, key)).or_default();
                of_order.insert(name.0.clone());
            }
        }
        Ok(Trace { spans: tree, instances, named, text: format!("{spans:?}") })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The text of an attribute, or nothing.
fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.as_ref()?.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a stack of its own: make faults"]
async fn an_order_is_one_tree_of_spans_and_the_logs_name_its_trace() -> Result<()> {
    on_ephemeral_stack(show_an_order).await
}

async fn show_an_order(stack: &Stack) -> Result<()> {
    let collector = Collector::start().await?;
    for service in SERVICES {
        stack.set_environment(service, "LOG_FORMAT", Some("json"))?;
        stack.set_environment(service, "OTEL_EXPORTER_OTLP_ENDPOINT", Some(&collector.address))?;
    }
    let client = start_and_seed(stack).await?;
    let (trace_id, order) = place_in_trace(stack).await?;
    let order = client.wait_until_ended(order.order_id, TIMEOUT).await?;
    ensure!(order.status == "confirmed", "{order:?}");
    let trace = wait_for_trace(&collector, &trace_id, is_complete).await?;
    assert_instances(&trace)?;
    // As an operator finds the trace of an order: by its id, in each service.
    let found = trace.named.get(&order.order_id.to_string());
    ensure!(found == Some(&SERVICES.map(String::from).into()), "{:?}", trace.named);
    assert_dead_letter_in_trace_and_log(stack, &client, &collector).await
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

async fn wait_for_trace(
    collector: &Collector,
    trace_id: &str,
    is_wanted: impl Fn(&Trace) -> Result<()>,
) -> Result<Trace> {
    eventually("the spans of the trace", EXPORT_TIMEOUT, async || {
        let trace = Trace::read(collector, trace_id)?;
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

/// From the order to its trace, and from there to the line of the log.
async fn assert_dead_letter_in_trace_and_log(
    stack: &Stack,
    client: &Client,
    collector: &Collector,
) -> Result<()> {
    let refused = with_strict_check(stack, REFUSE_PAYMENTS, async || {
        let (trace_id, order) = place_in_trace(stack).await?;
        let id = dead_letter_for(stack, "payment", &order).await?;
        Ok((trace_id, order, id))
    });
    let (trace_id, order, dead_letter) = refused.await?;
    let stored = ("payment".to_string(), "store dead letter of orders.created".to_string());
    let trace = wait_for_trace(collector, &trace_id, |trace| {
        ensure!(trace.spans.iter().any(|span| span.name == stored), "{:?}", trace.spans);
        Ok(())
    });
    let trace = trace.await?.text;
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
