//! The promises, as a report names them: each is the name of a property.

pub const NEVER_NEGATIVE: &str = "stock is never negative";
pub const CONSERVED: &str = "stock is conserved";
pub const CHARGED_ONCE: &str = "an order is charged once at most, and refunded no more";
pub const HELD_ONCE: &str = "an order holds its units once at most";
pub const ENDS_ONCE: &str = "an order ends once, and stays ended";
pub const PUBLISHED_ONCE: &str = "nothing is published twice";
pub const NEVER_UNPROCESSABLE: &str = "no event is unprocessable";
pub const IN_AGREEMENT: &str =
    "when every event is delivered, every order has ended and all three agree";
