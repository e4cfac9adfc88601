//! Owns the load generator's control port: the test reads the report while the load runs.

use std::net::SocketAddr;

use anyhow::Context;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use guideway::demo::load::Load;
use guideway::demo::report::LoadReport;
use tokio_util::sync::CancellationToken;

/// Serves until `stop`, also when the load has ended, so that its last report can be fetched.
pub(crate) async fn serve(address: SocketAddr, load: Load, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot serve control on {address}"))?;
    let routes = Router::new()
        .route("/report", get(report))
        .route("/trails", get(trails))
        .route("/stop", post(end))
        .with_state(load);
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
