//! A log that a test reads.

use std::io;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use serde_json::Value;
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::log_lines::{json_format, text_format};

/// While a process has a single subscriber, tracing lets the thread that meets a new line decide for all threads whether
/// lines are wanted, and a thread without a subscriber wants none. With two more subscribers it asks them all.
static OTHER_SUBSCRIBERS: LazyLock<[Dispatch; 2]> = LazyLock::new(|| {
    [(); 2].map(|()| Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish()))
});

/// Keeps the lines.
#[derive(Clone, Default)]
pub(crate) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl CapturedLog {
    pub fn text_subscriber(&self, ansi: bool) -> impl Subscriber + Send + Sync + use<> {
        LazyLock::force(&OTHER_SUBSCRIBERS);
        text_format(tracing_subscriber::fmt().with_writer(self.clone()), ansi).finish()
    }

    pub fn json_subscriber(&self) -> impl Subscriber + Send + Sync + use<> {
        LazyLock::force(&OTHER_SUBSCRIBERS);
        json_format(tracing_subscriber::fmt().with_writer(self.clone())).finish()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }

    pub fn json_lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for CapturedLog {
    type Writer = CapturedLog;

    fn make_writer(&self) -> CapturedLog {
        self.clone()
    }
}
