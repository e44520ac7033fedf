//! The answer to a command, as it is sent and stored.

/// The answer to an accepted command.
#[derive(Debug)]
pub struct Reply {
    /// 200, or 201 with a location.
    pub status: u16,
    /// The location of what was created.
    pub location: Option<String>,
    /// JSON.
    pub body: Vec<u8>,
}
