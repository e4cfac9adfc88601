//! The proxy as its two neighbours see it: scripted clients and backends speak to it over loopback,
//! byte by byte, so that what passes and what does not is written down here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod approach;
mod authority;
mod stage;
mod streams;

mod access_log;
mod bodies;
mod body_limit;
mod drain;
mod exchange;
mod floods;
mod forwarding;
mod framing;
mod grpc;
mod http2;
mod interim;
mod introduction;
mod limits;
mod links;
mod meters;
mod origin;
mod overload;
mod pieces;
mod ports;
mod retries;
mod routing;
mod tcp;
mod tls;
mod tls_http2;
mod tls_upstream;
mod trailers;
mod udp;
mod upgrade;
