//! Panics: how the log shows them, and how callers turn them into errors.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static SILENCE_PANICS: Cell<bool> = const { Cell::new(false) };
}

/// Logs every panic of this process, except those inside `catch_panic_silently`. The panic may end the process at once,
/// so `flush` then writes the log.
pub fn install_hook(flush: impl Fn() + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        if SILENCE_PANICS.get() {
            return;
        }
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic_message(panic.payload());
        tracing::error!("panicked at {place}: {message}");
        flush();
    }));
}

/// Runs a closure and returns the text of its panic, if it panics. The log shows that panic.
pub fn catch_panic<T>(decide: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(decide)).map_err(|panic| panic_message(&*panic).to_owned())
}

/// Runs a closure and returns `None` if it panics. The log does not show that panic.
pub(crate) fn catch_panic_silently<T>(call: impl FnOnce() -> T) -> Option<T> {
    SILENCE_PANICS.set(true);
    let answer = catch_panic(call);
    SILENCE_PANICS.set(false);
    answer.ok()
}

pub fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
