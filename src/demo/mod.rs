//! Owns what stands around a proxy when there is nothing real to balance: demo backends that say who
//! answered, and a load generator that notices when a key changes its backend or a request is lost.
//! `guideway demo` runs both on loopback, the testbed runs them in pods.

pub mod backend;
pub mod handshakes;
pub mod load;
pub mod moves;
pub mod orders;
pub mod report;
pub mod screen;
pub mod show;
pub mod stage;
pub mod switchboard;
