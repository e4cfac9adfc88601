//! Owns the wire types of the API `guideway.dev/v1alpha1`: what users write and what they read back.
//! Nothing is interpreted here; `source::translate` turns a resource into a checked pool.

pub mod backend;
pub mod conditions;
pub mod duration;
pub mod listener;
pub mod manifest;
pub mod pool;
pub mod port;
pub mod rules;
pub mod seats;
pub mod status;
pub mod tls;

pub use pool::{LoadBalancerPool, LoadBalancerPoolSpec};
pub use status::LoadBalancerPoolStatus;
