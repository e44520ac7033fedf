//! Labels: what a request or a record is about, such as the id of its order. The lines of the log that are written
//! meanwhile have them, and the span of a request does.
//!
//! Promise: the id of a person is in no line of the log and in no span. A label with such an id breaks that promise.

use std::fmt::Display;
use std::sync::Arc;

use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context as TraceContext, KeyValue};
use parking_lot::Mutex;

/// A client that can write to a topic chooses the keys of its records, so a longer value is cut.
const LABEL_CHARS_MAX: usize = 128;

/// The labels of a request or a record. A clone has the same labels.
#[derive(Clone, Debug, Default)]
pub struct Labels(Arc<Mutex<Vec<(&'static str, String)>>>);

impl Labels {
    /// Sets a label, in place of an earlier one with this name.
    pub fn set(&self, name: &'static str, value: &str) {
        let value = value.chars().take(LABEL_CHARS_MAX).collect();
        let mut labels = self.0.lock();
        labels.retain(|(known, _)| *known != name);
        labels.push((name, value));
    }

    pub fn all(&self) -> Vec<(&'static str, String)> {
        self.0.lock().clone()
    }
}

/// Labels the current request: its span, and each line that is logged for it from now on. `name` is that of the
/// value in the API, such as `order_id`. Never label a request with the id of a person, because logs and traces
/// are kept elsewhere and for long.
pub fn label_request(name: &'static str, value: impl Display) {
    let value = value.to_string();
    TraceContext::map_current(|cx| {
        if let Some(labels) = cx.get::<Labels>() {
            labels.set(name, &value);
        }
        cx.span().set_attribute(KeyValue::new(name, value));
    });
}
