//! Owns the tests of the cluster as a source: objects go in, facts for the programmer come out.

mod api_server;
mod edits;
mod faults;
mod fixtures;
mod holder;
mod index;
mod lease;
mod manifests;
mod protocols;
mod replica;
mod secrets;
mod status;
