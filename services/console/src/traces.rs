//! Links from the pages to a store of traces, which shows an order as one tree across the services.

use crate::order::DECIDER;

/// The tag of a span that names the key of its record. The key of an event of an order is the order's id.
const KEY_TAG: &str = "messaging.kafka.message.key";

/// Where traces are shown.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TraceLinks {
    /// The address of Jaeger, as a browser reaches it: the pages then link to traces there.
    #[arg(long, env)]
    jaeger_url: Option<String>,
    /// In another store, the page of a trace, with `{trace_id}` in the place of its id.
    #[arg(long, env)]
    trace_url: Option<String>,
    /// In another store, the page that finds the trace of an order, with `{order_id}` in the place of its id.
    #[arg(long, env)]
    trace_search_url: Option<String>,
}

impl TraceLinks {
    /// The page of the trace that a record belongs to, if traces are shown and the record has one.
    pub fn of_record(&self, traceparent: &str) -> Option<String> {
        let trace_id = traceparent.split('-').nth(1).filter(|id| id.len() == 32)?;
        let is_hexadecimal = trace_id.bytes().all(|c| c.is_ascii_hexdigit());
        let page = self.page(&self.trace_url, "/trace/{trace_id}")?;
        is_hexadecimal.then(|| page.replace("{trace_id}", trace_id))
    }

    /// The page that finds the trace of an order. No service keeps the id of a trace once its event is published, so
    /// the store is searched for the spans that sent the order's events.
    pub fn of_order(&self, order_id: &str) -> Option<String> {
        let tags = format!("%7B%22{KEY_TAG}%22%3A%22{{order_id}}%22%7D");
        let search = format!("/search?service={DECIDER}&lookback=2d&limit=20&tags={tags}");
        Some(self.page(&self.trace_search_url, &search)?.replace("{order_id}", order_id))
    }

    /// The page of another store, or that of Jaeger.
    fn page(&self, other: &Option<String>, path: &str) -> Option<String> {
        let jaeger = self.jaeger_url.as_ref();
        let in_jaeger = || Some(format!("{}{path}", jaeger?.trim_end_matches('/')));
        other.clone().or_else(in_jaeger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn only_the_id_of_a_trace_enters_a_link() {
        let trace_url = Some("http://localhost:1/t?id={trace_id}".to_string());
        let links = TraceLinks { trace_url, ..TraceLinks::default() };
        let link = links.of_record(&format!("00-{TRACE_ID}-b7ad6b7169203331-01"));
        assert_eq!(link.unwrap(), format!("http://localhost:1/t?id={TRACE_ID}"));
        for other in ["", "00-short-b7-01", "00-\"><script>0000000000000000000000-b7-01"] {
            assert_eq!(links.of_record(other), None, "{other}");
        }
    }

    #[test]
    fn an_order_is_searched_in_jaeger_or_in_another_store() {
        let traceparent = format!("00-{TRACE_ID}-b7ad6b7169203331-01");
        let mut links = TraceLinks::default();
        assert_eq!((links.of_order("7"), links.of_record(&traceparent)), (None, None));
        links.jaeger_url = Some("http://localhost:16686/".to_string());
        let search = "http://localhost:16686/search?service=order&lookback=2d&limit=20\
                      &tags=%7B%22messaging.kafka.message.key%22%3A%227%22%7D";
        assert_eq!(links.of_order("7").unwrap(), search);
        let trace = format!("http://localhost:16686/trace/{TRACE_ID}");
        assert_eq!(links.of_record(&traceparent).unwrap(), trace);
        links.trace_search_url = Some("https://traces.example.com/?q={order_id}".to_string());
        assert_eq!(links.of_order("7").unwrap(), "https://traces.example.com/?q=7");
    }
}
