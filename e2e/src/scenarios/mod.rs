//! Scenarios are runs that inject faults under load, heal them and end with the checker. Each prints
//! its steps and a verdict. Together they prove that no fault loses an order, duplicates an effect or
//! leaves an order pending. A scenario that exercises too little reports *inconclusive*, not success.
//! `runner.rs` has what all of them share.

pub mod runner;
pub mod shipping;
pub mod order_faults;
pub mod poison;
pub mod redelivery;
pub mod demo;
pub mod outage;
pub mod crash_points;
pub mod chaos;
pub mod alerts;
pub mod hostile;
pub mod streams;
pub mod reporting;
