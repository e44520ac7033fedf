//! Refusals of messaging itself, beside those that commands decide. The host maps them to what its clients read.

/// Why a command that was not decided, or whose commit was cut, gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The key was used before, for another request.
    KeyReused,
    /// Nothing was stored, for this reason. The same request may be accepted later.
    Unavailable(&'static str),
    /// It may have been stored or not.
    OutcomeUnknown,
    /// It can never be stored. The reason is in the log.
    Failed,
}

/// What a host answers when a command is refused, by messaging or by its service.
pub trait HostRefusal: From<Refusal> + Send + Sync + 'static {}

impl<P: From<Refusal> + Send + Sync + 'static> HostRefusal for P {}
