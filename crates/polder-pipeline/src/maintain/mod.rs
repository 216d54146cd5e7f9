//! What is done to tables between runs.

mod repartition;

pub use repartition::{RepartitionReport, RepartitionRequest, repartition};
