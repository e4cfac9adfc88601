//! Owns the decision which backend serves a key. Pure: no IO, clock, randomness, tokio, hyper or
//! Kubernetes type, because every replica must reach the same decision from the same facts.

pub mod assembly;
pub mod assignment;
pub mod backend;
mod cast;
pub mod hash;
pub mod key;
pub mod path;
pub mod plan;
pub mod pool;
pub mod routes;
pub mod seats;
pub mod snapshot;
pub mod table;
pub mod tls;
