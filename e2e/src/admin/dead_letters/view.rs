//! The output of the dead letter commands.

use std::io::Write;

use anyhow::Result;
use launcher::Stack;
use serde_json::Value;

use crate::admin::dead_letters::client::AdminClient;
use crate::console::printable;
use crate::stack_description::SERVICES;

/// The text of a value, as a terminal may show it.
pub fn text(value: &Value) -> String {
    value.as_str().map_or("-".into(), printable)
}

pub fn position(dead_letter: &Value) -> String {
    format!(
        "{}[{}]@{}",
        text(&dead_letter["topic"]),
        dead_letter["partition"],
        dead_letter["offset"]
    )
}

pub async fn list(stack: &Stack, service: Option<&str>, out: &mut impl Write) -> Result<bool> {
    let services = service.map_or(SERVICES.to_vec(), |service| vec![service]);
    let (mut first, mut all) = (None, true);
    for service in services {
        let admin = match AdminClient::connect(stack, service).await {
            Ok(admin) => admin,
            Err(error) => {
                writeln!(out, "{service}: {error:#}")?;
                all = false;
                continue;
            }
        };
        let page = admin.get("/dead-letters").await?;
        writeln!(out, "{service}: {} waiting", page["waiting"])?;
        for dead_letter in page["dead_letters"].as_array().into_iter().flatten() {
            let id = &dead_letter["dead_letter_id"];
            first.get_or_insert_with(|| format!("SERVICE={service} ID={id}"));
            let (kind, since) = (text(&dead_letter["kind"]), text(&dead_letter["received_at"]));
            writeln!(out, "  {id:>4}  {since}  {}  {kind}", position(dead_letter))?;
            writeln!(out, "        {}", text(&dead_letter["reason"]))?;
        }
        if page["next"].is_i64() {
            writeln!(out, "        and newer ones")?;
        }
        let consumer = admin.get("/consumer").await?;
        if consumer["paused_at"].is_string() {
            writeln!(out, "  {}", describe_pause(service, &consumer))?;
            writeln!(out, "  when the cause is removed: make resume SERVICE={service}")?;
        }
    }
    if let Some(first) = first {
        writeln!(out, "read one: make dead-letter {first}")?;
    }
    Ok(all)
}

/// Since when a consumer is paused, by whom and why.
pub fn describe_pause(service: &str, consumer: &Value) -> String {
    let (since, reason) = (text(&consumer["paused_at"]), text(&consumer["reason"]));
    let by = match (consumer["cause"].as_str(), &consumer["actor"]) {
        (Some("operator"), Value::Null) => "an operator".to_string(),
        (Some("operator"), actor) => text(actor),
        _ => "its circuit breaker".to_string(),
    };
    format!("the consumer of {service} has been paused by {by} since {since}: {reason}")
}

pub fn show(service: &str, dead_letter: &Value, out: &mut impl Write) -> Result<()> {
    let (id, state) = (&dead_letter["dead_letter_id"], text(&dead_letter["state"]));
    writeln!(out, "dead letter {id} of {service}: {state}")?;
    let mut row = |name: &str, what: String| writeln!(out, "  {name:<13} {what}");
    row("why", format!("{}: {}", text(&dead_letter["kind"]), text(&dead_letter["reason"])))?;
    row(
        "where",
        format!("{} in cluster {}", position(dead_letter), text(&dead_letter["cluster"])),
    )?;
    row("since", text(&dead_letter["received_at"]))?;
    row("tries", dead_letter["attempts"].to_string())?;
    if dead_letter["settled_at"].is_string() {
        let reason = match &dead_letter["discard_reason"] {
            Value::Null => String::new(),
            reason => format!(", because: {}", text(reason)),
        };
        row("settled", format!("{}{reason}", text(&dead_letter["settled_at"])))?;
    }
    row("event", text(&dead_letter["event_id"]))?;
    row("key", text(&dead_letter["key"]))?;
    row("trace", text(&dead_letter["traceparent"]))?;
    for (nth, (name, value)) in dead_letter["headers"].as_object().into_iter().flatten().enumerate()
    {
        row(
            if nth == 0 { "headers" } else { "" },
            format!("{}: {}", printable(name), text(value)),
        )?;
    }
    row("record", text(&dead_letter["record"]))?;
    if dead_letter["read_with"].is_string() {
        row("content", format!("read with {}:", text(&dead_letter["read_with"])))?;
        for line in serde_json::to_string_pretty(&dead_letter["event"])?.lines() {
            row("", printable(line))?;
        }
    }
    if dead_letter["unreadable"].is_string() {
        row("unreadable", text(&dead_letter["unreadable"]))?;
    }
    if state == "waiting" {
        show_impact(&dead_letter["discard_impact"], "if discarded", out)?;
        writeln!(out, "once its cause is removed:  make replay SERVICE={service} ID={id}")?;
        writeln!(
            out,
            "to discard it for good:  make discard SERVICE={service} ID={id} REASON=\"…\""
        )?;
    }
    Ok(())
}

pub fn show_impact(impact: &Value, title: &str, out: &mut impl Write) -> Result<()> {
    writeln!(out, "  {title:<13} {}", text(&impact["consequence"]))?;
    for write_off in impact["write_offs"].as_array().into_iter().flatten() {
        let (unit, what) = (text(&write_off["unit"]), text(&write_off["what"]));
        writeln!(out, "  {:<13} {} {unit}: {what}", "written off", write_off["amount"])?;
    }
    let remedy = &impact["remedy"];
    if remedy.is_object() {
        let (method, path) = (text(&remedy["method"]), text(&remedy["path"]));
        let (service, does) = (text(&remedy["service"]), text(&remedy["description"]));
        writeln!(out, "  {:<13} {method} {path} at {service}: {does}", "remedy")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::console::tests::{HOSTILE_TEXT, is_harmless};

    #[test]
    fn text_from_a_record_adds_no_line_and_no_character_that_a_terminal_acts_on() {
        let shown = |text: &str| {
            let dead_letter = json!({
                "dead_letter_id": 1, "state": text, "kind": text, "reason": text, "topic": text,
                "partition": 0, "offset": 1, "cluster": text, "received_at": text, "attempts": 1,
                "settled_at": text, "discard_reason": text, "event_id": text, "key": text,
                "traceparent": text, "headers": {text: text}, "record": text, "read_with": text,
                "event": {text: [text]}, "unreadable": text,
            });
            let impact = json!({
                "consequence": text,
                "write_offs": [{"amount": 1, "unit": text, "what": text}],
                "remedy": {"method": text, "path": text, "service": text, "description": text},
            });
            let mut out = Vec::new();
            show("stock", &dead_letter, &mut out).unwrap();
            show_impact(&impact, "if discarded", &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let hostile = shown(HOSTILE_TEXT);
        assert!(is_harmless(&hostile), "{hostile:?}");
        assert_eq!(hostile.lines().count(), shown("plain").lines().count());
        assert_eq!(hostile.matches("forged").count(), shown("plain").matches("plain").count());
    }
}
