//! Owns where pools and backends come from: a cluster or a file. Every source reduces what it sees to
//! `PoolFacts` and hands them to the one `Programmer`.

pub mod admission;
pub mod file;
pub mod kubernetes;
pub mod programmer;
mod schema;
pub mod translate;
