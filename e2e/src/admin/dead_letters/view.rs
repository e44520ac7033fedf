//! The output of the dead letter commands.

use std::io::Write;

use anyhow::Result;
use chrono::{DateTime, SecondsFormat, Utc};
use ops_client::{ConsumerState, DeadLetter, DeadLetterFilter, DiscardImpact, Remedy};

use crate::client::operator::Operator;
use crate::console::printable;

/// Dead letters that are listed of a service.
const LISTED_MAX: usize = 100;

/// A text, as a terminal may show it.
fn text(text: &Option<String>) -> String {
    text.as_deref().map_or("-".into(), printable)
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

pub async fn list(
    operator: &Operator,
    service: Option<&str>,
    out: &mut impl Write,
) -> Result<bool> {
    let services = service.map_or(operator.services().to_vec(), |service| vec![service.into()]);
    let (mut first, mut all) = (None, true);
    for service in &services {
        let ops = operator.ask()?;
        let page = match ops.dead_letters(service, &DeadLetterFilter::default(), LISTED_MAX).await {
            Ok(page) => page,
            Err(error) => {
                writeln!(out, "{service}: {}", printable(&error.to_string()))?;
                all = false;
                continue;
            }
        };
        writeln!(out, "{service}: {} waiting", page.waiting)?;
        for letter in &page.dead_letters {
            let (id, position) = (letter.dead_letter_id, printable(&letter.position()));
            first.get_or_insert_with(|| format!("SERVICE={service} ID={id}"));
            let (kind, since) = (printable(&letter.kind), time(letter.received_at));
            writeln!(out, "  {id:>4}  {since}  {position}  {kind}")?;
            writeln!(out, "        {}", printable(&letter.reason))?;
        }
        if page.next.is_some() {
            writeln!(out, "        and newer ones")?;
        }
        let consumer = ops.consumer(service).await?;
        if consumer.paused_at.is_some() {
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
pub fn describe_pause(service: &str, consumer: &ConsumerState) -> String {
    let pause = printable(&consumer.pause().unwrap_or_default());
    format!("the consumer of {service} has been paused {pause}")
}

pub fn show(service: &str, letter: &DeadLetter, out: &mut impl Write) -> Result<()> {
    let summary = &letter.summary;
    let id = summary.dead_letter_id;
    writeln!(out, "dead letter {id} of {service}: {}", printable(&summary.state))?;
    let mut row = |name: &str, what: String| writeln!(out, "  {name:<13} {}", printable(&what));
    row("why", format!("{}: {}", summary.kind, summary.reason))?;
    row("where", format!("{} in cluster {}", summary.position(), letter.cluster))?;
    row("since", time(summary.received_at))?;
    row("tries", letter.attempts.to_string())?;
    if let Some(at) = summary.settled_at {
        let reason = letter.discard_reason.as_ref();
        let reason = reason.map_or(String::new(), |reason| format!(", because: {reason}"));
        row("settled", format!("{}{reason}", time(at)))?;
    }
    row("event", summary.event_id.map_or("-".to_string(), |id| id.to_string()))?;
    row("key", text(&summary.key))?;
    row("trace", text(&letter.traceparent))?;
    for (nth, (name, value)) in letter.headers.iter().enumerate() {
        let value = value.as_deref().unwrap_or("-");
        row(if nth == 0 { "headers" } else { "" }, format!("{name}: {value}"))?;
    }
    row("record", text(&letter.record))?;
    if let Some(schema) = &letter.read_with {
        row("content", format!("read with {schema}:"))?;
        for line in serde_json::to_string_pretty(&letter.event)?.lines() {
            row("", line.to_string())?;
        }
    }
    if let Some(why) = &letter.unreadable {
        row("unreadable", why.clone())?;
    }
    if let Some(impact) = &letter.discard_impact {
        show_impact(impact, "if discarded", out)?;
        writeln!(out, "once its cause is removed:  make replay SERVICE={service} ID={id}")?;
        writeln!(
            out,
            "to discard it for good:  make discard SERVICE={service} ID={id} REASON=\"…\""
        )?;
    }
    Ok(())
}

pub fn show_impact(impact: &DiscardImpact, title: &str, out: &mut impl Write) -> Result<()> {
    let mut row = |name: &str, what: String| writeln!(out, "  {name:<13} {}", printable(&what));
    row(title, impact.consequence.clone())?;
    for write_off in &impact.write_offs {
        row("written off", format!("{} {}: {}", write_off.amount, write_off.unit, write_off.what))?;
    }
    if let Some(remedy) = &impact.remedy {
        let Remedy { description, service, method, path } = remedy;
        row("remedy", format!("{method} {path} at {service}: {description}"))?;
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
            let impact = json!({
                "consequence": text,
                "write_offs": [{"amount": 1, "unit": text, "what": text}],
                "remedy": {"method": text, "path": text, "service": text, "description": text},
            });
            let (at, none) = ("2026-11-29T12:00:00Z", json!(null));
            let letter = json!({
                "dead_letter_id": 1, "state": text, "kind": text, "reason": text, "topic": text,
                "partition": 0, "offset": 1, "cluster": text, "received_at": at, "attempts": 1,
                "settled_at": at, "discard_reason": text, "event_id": none, "key": text,
                "traceparent": text, "headers": {text: text}, "record": text, "read_with": text,
                "event": {text: [text]}, "unreadable": text, "discard_impact": impact,
                "actor": text,
            });
            let mut out = Vec::new();
            show("stock", &serde_json::from_value(letter).unwrap(), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let hostile = shown(HOSTILE_TEXT);
        assert!(is_harmless(&hostile), "{hostile:?}");
        assert_eq!(hostile.lines().count(), shown("plain").lines().count());
        assert_eq!(hostile.matches("forged").count(), shown("plain").matches("plain").count());
    }
}
