//! What is proved on the native stack, and of the whole workspace.

mod structure;
mod model;
mod launcher;
mod stage;
mod saga;
mod outages;
mod hostile;
mod records;
mod scratch;
mod service;
mod announce;
mod evolution;
mod letters;
mod operator;

// Where the services' files, as compiled into the model, look for their aggregates.
use model::{order, payment, stock};
