//! The events of the stock service.

use chassis::Event;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use unicode_normalization::{is_nfc, is_nfkc};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
use uuid::Uuid;

/// Every line of an order was reserved.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "stock.reserved", publisher = "stock", key = "order_id")]
pub struct StockReserved {
    /// The order.
    pub order_id: Uuid,
    /// The reserved items, ordered by SKU.
    pub lines: Vec<ReservedLine>,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// One reserved item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservedLine {
    /// The item.
    pub sku: String,
    /// The quantity.
    pub quantity: i32,
}

/// At least one line cannot be supplied, so nothing was reserved.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "stock.rejected", publisher = "stock", key = "order_id")]
pub struct StockRejected {
    /// The order.
    pub order_id: Uuid,
    /// The reason.
    pub reason: RejectReason,
    /// The first item, in order of SKU, of which stock has too few.
    pub sku: String,
    /// The ordered quantity.
    pub requested: i32,
    /// The available quantity.
    pub available: i64,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// The reason why nothing was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// Fewer units are available than ordered.
    OutOfStock,
    /// Stock does not have the item.
    NoSuchItem,
    /// A reason newer than this reader.
    Unknown,
}

/// Stock has undone its part of a cancelled order.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "stock.released", publisher = "stock", key = "order_id")]
pub struct StockReleased {
    /// The order.
    pub order_id: Uuid,
    /// The released items; empty if nothing had been reserved.
    pub lines: Vec<ReleasedLine>,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// One released item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedLine {
    /// The item.
    pub sku: String,
    /// The quantity.
    pub quantity: i32,
}

/// The largest number of characters of a SKU.
pub const SKU_CHARS_MAX: usize = 64;

/// The largest number of characters of an item's name.
pub const NAME_CHARS_MAX: usize = 200;

/// The rule of a SKU, as the text of a refusal.
pub const SKU_RULE: &str = "must have 1 to 64 characters, in Unicode's normalization form NFKC, without control \
     characters, invisible characters and blanks other than the space, which is neither first nor last";

/// The rule of an item's name.
pub const NAME_RULE: &str = "must have 1 to 200 characters, in Unicode's normalization form NFC, without control \
     characters and format characters other than joiners, and with no blank first or last";

/// Whether a text can be stored as a SKU or a name: not empty, not too long, and without control
/// characters, since Postgres cannot store NUL and a URL cannot contain the others.
pub fn is_text(text: &str, chars_max: usize) -> bool {
    (1..=chars_max).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// Whether a text may be a SKU, see [`SKU_RULE`]. Two texts that people cannot distinguish would be
/// two items, and an order could name the wrong one.
pub fn is_sku(text: &str) -> bool {
    is_text(text, SKU_CHARS_MAX)
        && is_trimmed(text)
        && text.chars().all(|char| char == ' ' || !(char.is_whitespace() || is_invisible(char)))
        && is_nfkc(text)
}

/// Whether a text may be an item's name, see [`NAME_RULE`]. A name is read and not compared, so it
/// may contain what scripts and symbols need: joiners, and forms that NFKC would replace.
pub fn is_name(text: &str) -> bool {
    const JOINERS: [char; 2] = ['\u{200c}', '\u{200d}'];
    is_text(text, NAME_CHARS_MAX)
        && is_trimmed(text)
        && text.chars().all(|char| JOINERS.contains(&char) || !is_format(char))
        && is_nfc(text)
}

fn is_trimmed(text: &str) -> bool {
    text.trim().len() == text.len()
}

fn is_format(char: char) -> bool {
    char.general_category() == GeneralCategory::Format
}

/// Format characters, and the others of Unicode's `Default_Ignorable_Code_Point`: grapheme joiners,
/// fillers and variation selectors.
fn is_invisible(char: char) -> bool {
    is_format(char)
        || matches!(char,
            '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{2065}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// An item in its current state: the newest record of a SKU replaces all earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "stock.items", publisher = "stock", key = "sku", compacted)]
pub struct StockItem {
    /// The item.
    pub sku: String,
    /// The name.
    pub name: String,
    /// The unit price.
    pub price_cents: i64,
    /// ISO 4217.
    pub currency: String,
    /// The number of changes of this item, from 1.
    pub version: i64,
    /// Database time of the change.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}
