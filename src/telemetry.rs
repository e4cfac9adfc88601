//! Owns the log: events go to standard error, as text for people or as JSON for machines, by level and
//! module. Standard output belongs to the commands.

use std::io::{self, IsTerminal};

use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::settings::{Log, LogFormat};

/// Starts logging. Fails when logging was started before.
pub fn start(log: &Log) -> Result<(), TryInitError> {
    let events = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let layer = match log.format {
        LogFormat::Text => events.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => events.json().flatten_event(true).with_current_span(false).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(log.levels.clone())).try_init()
}
