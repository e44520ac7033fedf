//! The error of bytes that cannot be decoded.

/// The reason why bytes are no record of a topic. They become a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(pub String);

pub(super) fn undecodable(error: impl std::fmt::Display) -> Undecodable {
    Undecodable(error.to_string())
}
