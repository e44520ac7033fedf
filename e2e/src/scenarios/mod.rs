//! Scenarios are runs that inject faults under load, heal them and end with the checker. Each prints
//! its steps and a verdict. Together they prove that no fault loses an order, duplicates an effect or
//! leaves an order pending. A scenario that exercises too little reports *inconclusive*, not success.

pub mod alerts;
pub mod poison;
pub mod proof;
pub mod redelivery;
pub mod reporting;
pub mod streams;
pub mod demo;
pub mod order_faults;
pub mod outage;
pub mod long_outage;
pub mod hostile;
pub mod crash_points;
pub mod chaos;
