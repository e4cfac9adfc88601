//! Guideway: a Kubernetes-native load balancer. Controller and proxy live in one process.
//!
//! `source` learns which pools and backends there are, `balance` decides who serves which key,
//! `handoff` swaps the decision in one step, and `proxy` carries the traffic by it.
//! ARCHITECTURE.md has the map, the way of the data and the invariants.

pub mod app;
pub mod balance;
pub mod cli;
pub mod crd;
pub mod demo;
pub mod handoff;
pub mod metrics;
pub mod proxy;
pub mod readiness;
pub mod settings;
pub mod source;
pub mod telemetry;
pub mod vitals;
