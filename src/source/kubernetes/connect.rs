//! Owns the connection to the API server. The client's own connector never notices a peer that vanished without a
//! word, and its retries would hide failures from our own, so we put the same parts together with other settings.

use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

/// An idle connection is probed after this time, ...
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// ... then as often as this, ...
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// ... and is dead when this many probes, or this much time with data unacknowledged, brought no answer.
const PROBES: u32 = 3;
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// Longest wait for a connection. Its first packet is repeated after 1, 2, 4 s; a new attempt is not later than the first
/// repetition and not as late as the others.
const CONNECT: Duration = Duration::from_secs(1);

/// A client for the API server that `config` names.
pub fn connect(config: Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(PROBE_AFTER));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}
