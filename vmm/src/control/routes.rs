//! Which path gives what. Errors are [`Problem`]s that say what, where, and what to do.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{MethodRouter, get, put};

use super::OPENAPI;
use super::api::{Affinity, PROBLEM_JSON, Pins, Problem};
use super::machine::Machine;
use crate::affinity::{Entry, parse};
use crate::config::text::IdSet;

/// Bytes of a request's body at most.
const MAX_BODY: usize = 64 << 10;

type Shared = Arc<Machine>;

/// All paths, as in docs/openapi.json.
fn table() -> [(&'static str, MethodRouter<Shared>); 7] {
    [
        ("/v1/vm", get(async |State(machine): State<Shared>| Json(machine.vm()))),
        ("/v1/vcpus", get(async |State(machine): State<Shared>| Json(machine.vcpus()))),
        ("/v1/vcpus/{index}/affinity", put(pin_one)),
        ("/v1/affinity", put(pin)),
        ("/v1/tasks", get(tasks)),
        ("/v1/tasks/{id}", get(task)),
        ("/v1/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI))),
    ]
}

/// The paths alone.
#[cfg(test)]
pub fn paths() -> impl Iterator<Item = &'static str> {
    table().into_iter().map(|(path, _)| path)
}

/// The whole interface over one machine.
pub fn router(machine: Shared) -> Router {
    let mut router = Router::new();
    for (path, method) in table() {
        router = router.route(path, method);
    }
    router
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(machine)
}

async fn tasks(State(machine): State<Shared>, uri: Uri) -> Response {
    match machine.tasks() {
        Ok(tasks) => Json(tasks).into_response(),
        Err(error) => unavailable(&uri, error.to_string()),
    }
}

async fn task(State(machine): State<Shared>, uri: Uri, id: Result<Path<u32>, PathRejection>) -> Response {
    let Ok(Path(id)) = id else {
        let detail = "a task's number is a decimal number of 32 bits".to_owned();
        return problem(StatusCode::BAD_REQUEST, &uri, detail, "take a number from GET /v1/tasks");
    };
    match machine.tasks() {
        Ok(list) => match list.tasks.into_iter().find(|task| task.id == id) {
            Some(task) => Json(task).into_response(),
            None => {
                let detail = format!("the guest has no task {id}; it may have ended");
                problem(StatusCode::NOT_FOUND, &uri, detail, "GET /v1/tasks lists those that live")
            }
        },
        Err(error) => unavailable(&uri, error.to_string()),
    }
}

async fn pin_one(
    State(machine): State<Shared>,
    uri: Uri,
    index: Result<Path<u32>, PathRejection>,
    body: Result<Json<Affinity>, JsonRejection>,
) -> Response {
    let Ok(Path(index)) = index else {
        let detail = "a vCPU's number is a decimal number of 32 bits".to_owned();
        return problem(StatusCode::BAD_REQUEST, &uri, detail, "take a number from GET /v1/vcpus");
    };
    if index as usize >= machine.vcpus.len() {
        let detail = format!("there is no vCPU {index}");
        return problem(StatusCode::NOT_FOUND, &uri, detail, "GET /v1/vcpus lists them");
    }
    let cpus = body
        .map_err(|error| error.body_text())
        .and_then(|Json(body)| parse::cpus(&body.cpus).map_err(|error| format!("cpus: {error}")));
    match cpus {
        Ok(value) => apply(&machine, &uri, &[Entry { vcpus: Some([index].into_iter().collect()), value }]),
        Err(detail) => problem(StatusCode::BAD_REQUEST, &uri, detail, "send {\"cpus\": \"0-1,3\"} as application/json"),
    }
}

async fn pin(State(machine): State<Shared>, uri: Uri, body: Result<Json<Pins>, JsonRejection>) -> Response {
    let pins = body
        .map_err(|error| error.body_text())
        .and_then(|Json(body)| parse::affinity(&body.pins).map_err(|error| format!("pins: {error}")));
    match pins {
        Ok(entries) => apply(&machine, &uri, &entries),
        Err(detail) => {
            problem(StatusCode::BAD_REQUEST, &uri, detail, "send {\"pins\": \"0=0;1=1\"} as application/json")
        }
    }
}

fn apply(machine: &Machine, uri: &Uri, entries: &[Entry<IdSet>]) -> Response {
    match machine.pin(entries) {
        Ok(pinned) => Json(pinned).into_response(),
        Err(error) => {
            let hint = "GET /v1/vcpus shows where the threads may run now";
            problem(StatusCode::UNPROCESSABLE_ENTITY, uri, error.to_string(), hint)
        }
    }
}

fn unavailable(uri: &Uri, detail: String) -> Response {
    let hint = "try again once the guest kernel has booted; only Taskvisor's own kernel shows its tasks";
    problem(StatusCode::SERVICE_UNAVAILABLE, uri, detail, hint)
}

async fn unknown(uri: Uri) -> Response {
    let detail = format!("there is no {}", uri.path());
    problem(StatusCode::NOT_FOUND, &uri, detail, "GET /v1/openapi.json lists all paths")
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let detail = format!("{} can't be done to {}", method, uri.path());
    problem(StatusCode::METHOD_NOT_ALLOWED, &uri, detail, "GET /v1/openapi.json lists each path's methods")
}

fn problem(status: StatusCode, uri: &Uri, detail: String, hint: &str) -> Response {
    let body = Problem {
        status: status.as_u16(),
        title: status.canonical_reason().unwrap_or("error").to_owned(),
        detail,
        instance: uri.path().to_owned(),
        hint: hint.to_owned(),
    };
    (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], Json(body)).into_response()
}
