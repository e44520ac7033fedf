//! What is proved on the native stack, and of the whole workspace.

mod launcher;
mod model;

// Where the services' files, as compiled into the model, look for their aggregates.
use model::{order, payment, stock};
