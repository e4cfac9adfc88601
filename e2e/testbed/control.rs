//! Owns the control port of what runs in a pod: the test reads the report while it is made.

use std::net::SocketAddr;

use anyhow::Context;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use guideway::demo::handshakes::Handshakes;
use guideway::demo::load::Load;
use guideway::demo::report::LoadReport;
use tokio_util::sync::CancellationToken;

/// Serves until `stop`, also when the load has ended, so that its last report can be fetched.
pub(crate) async fn serve(address: SocketAddr, load: Load, stop: CancellationToken) -> anyhow::Result<()> {
    let routes = Router::new()
        .route("/report", get(report))
        .route("/trails", get(trails))
        .route("/stop", post(end))
        .with_state(load);
    serve_routes(address, routes, stop).await
}

/// Serves until `stop`.
pub(crate) async fn serve_sightings(
    address: SocketAddr,
    watch: Handshakes,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let sightings = async |State(watch): State<Handshakes>| Json(watch.sightings());
    serve_routes(address, Router::new().route("/sightings", get(sightings)).with_state(watch), stop).await
}

async fn serve_routes(address: SocketAddr, routes: Router, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot serve control on {address}"))?;
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await.context("control port")
}

async fn report(State(load): State<Load>) -> Json<LoadReport> {
    Json(load.report(false))
}

/// The report with the backends of every key, which is much longer.
async fn trails(State(load): State<Load>) -> Json<LoadReport> {
    Json(load.report(true))
}

/// Answers with the final report once the requests in flight are done.
async fn end(State(load): State<Load>) -> Json<LoadReport> {
    load.stop();
    load.ended().await;
    Json(load.report(true))
}
