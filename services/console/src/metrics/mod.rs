//! What the services report about themselves at their probe ports. One poller reads it for all viewers, so a hundred
//! of them load the services no more than one.

pub mod exposition;
pub mod instances;
pub mod snapshot;
pub mod window;
