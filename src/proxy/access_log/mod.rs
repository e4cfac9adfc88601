//! Owns the access log: a worker writes a line for a request into memory of its own and hands it on in batches to
//! one thread, which writes them out. Nobody waits for that thread; what it cannot take is dropped and counted.

mod line;
mod recorder;
mod writer;

use std::path::PathBuf;

pub(super) use line::{Entry, Line};
pub(super) use recorder::{Recorder, Sink};
pub(super) use writer::AccessLog;

/// Where the access log goes, and what its lines look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessLogOptions {
    /// Where it goes.
    pub target: LogTarget,
    /// What its lines look like.
    pub form: LineForm,
}

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    #[default]
    Stdout,
    /// A file, which is appended to.
    File(PathBuf),
}

/// What a line of the access log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineForm {
    /// For people.
    #[default]
    Text,
    /// A JSON object.
    Json,
}
