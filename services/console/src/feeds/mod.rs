//! What the pages show of the services in addition to the metrics. All viewers share each answer: a hundred of them load the
//! services no more than one. A feed takes what it asks with, so it knows no page.

pub mod attention;
pub mod books;
mod feed;
pub mod insights;
pub mod pending;
pub mod recent_orders;
pub mod rendered;
