//! Which path gives what. One table, which docs/openapi.json must match; the handlers lie in modules by resource.

mod clock;
mod programs;
mod tasks;
mod trace;
mod vcpus;
mod vm;

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{MethodRouter, get, post, put};
use serde::Serialize;

use super::machine::Machine;
use super::problem::{Fault, tell};
use super::{OPENAPI, metrics};

/// Bytes of a request's body at most.
const MAX_BODY: usize = 64 << 10;

type Shared = Arc<Machine>;
/// What a handler gives.
type Answer = Result<Response, Fault>;
/// A number in the path.
type Number = Result<Path<u32>, PathRejection>;
/// A body.
type Body<T> = Result<Json<T>, JsonRejection>;

/// All paths and their methods, as in docs/openapi.json.
fn table() -> Vec<(&'static str, &'static [&'static str], MethodRouter<Shared>)> {
    vec![
        ("/v1/vm", &["get"], get(vm::show)),
        ("/v1/vm/stats", &["get"], get(vm::stats)),
        ("/v1/vm/pause", &["post"], post(vm::pause)),
        ("/v1/vm/resume", &["post"], post(vm::resume)),
        ("/v1/vm/shutdown", &["post"], post(vm::shutdown)),
        ("/v1/vm/kill", &["post"], post(vm::kill)),
        ("/v1/vcpus", &["get"], get(vcpus::list)),
        ("/v1/vcpus/{index}/affinity", &["put"], put(vcpus::pin_one)),
        ("/v1/affinity", &["put"], put(vcpus::pin)),
        ("/v1/vcpu-sched", &["put"], put(vcpus::set_classes)),
        ("/v1/tasks", &["get", "post"], get(tasks::list).post(tasks::spawn)),
        ("/v1/tasks/{id}", &["get", "patch"], get(tasks::show).patch(tasks::change)),
        ("/v1/tasks/{id}/suspend", &["post"], post(tasks::suspend)),
        ("/v1/tasks/{id}/resume", &["post"], post(tasks::resume)),
        ("/v1/tasks/{id}/signal", &["post"], post(tasks::signal)),
        ("/v1/programs/{process}", &["get", "delete"], get(programs::show).delete(programs::forget)),
        ("/v1/programs/{process}/wait", &["get"], get(programs::wait)),
        ("/v1/programs/{process}/stdin", &["put"], put(programs::stdin)),
        ("/v1/programs/{process}/stdout", &["get"], get(programs::stdout)),
        ("/v1/programs/{process}/stderr", &["get"], get(programs::stderr)),
        ("/v1/files/{name}", &["put"], put(programs::store)),
        ("/v1/clock", &["get", "patch"], get(clock::show).patch(clock::change)),
        ("/v1/trace", &["get"], get(trace::show)),
        ("/v1/trace/start", &["post"], post(trace::start)),
        ("/v1/trace/stop", &["post"], post(trace::stop)),
        ("/v1/trace/file.pftrace", &["get"], get(trace::pftrace)),
        ("/v1/trace/file.jsonl", &["get"], get(trace::jsonl)),
        ("/v1/metrics", &["get"], get(metrics)),
        ("/v1/openapi.json", &["get"], get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI))),
    ]
}

/// The paths and methods alone.
#[cfg(test)]
pub fn paths() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    table().into_iter().map(|(path, methods, _)| (path, methods))
}

/// The whole interface over one machine.
pub fn router(machine: Shared) -> Router {
    let mut router = Router::new();
    for (path, _, method) in table() {
        router = router.route(path, method);
    }
    router
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(tell))
        .with_state(machine)
}

/// Does what may wait for the guest, on a thread that may. A client that goes away meanwhile changes nothing.
pub(super) async fn waiting<T, F>(machine: Shared, act: F) -> Result<T, Fault>
where
    T: Send + 'static,
    F: FnOnce(&Machine) -> Result<T, Fault> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(move || act(&machine)).await;
    done.unwrap_or_else(|_| {
        let detail = "the request broke off in the VMM, which is a defect of it";
        Err(Fault::new(StatusCode::INTERNAL_SERVER_ERROR, detail, "its standard error says more"))
    })
}

fn number(what: &str, number: Number) -> Result<u32, Fault> {
    let Path(number) = number.map_err(|e| Fault::path(what, &e))?;
    Ok(number)
}

fn json<T: Serialize>(value: T) -> Answer {
    Ok(Json(value).into_response())
}

async fn metrics(State(machine): State<Shared>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&machine)).into_response()
}

async fn unknown(uri: Uri) -> Fault {
    Fault::new(StatusCode::NOT_FOUND, format!("there is no {}", uri.path()), "GET /v1/openapi.json lists all paths")
}

async fn wrong_method(method: Method, uri: Uri) -> Fault {
    let detail = format!("{method} can't be done to {}", uri.path());
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, detail, "GET /v1/openapi.json lists each path's methods")
}
