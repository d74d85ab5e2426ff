//! vCPUs and where their threads run.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};

use super::{Answer, Body, Number, Shared, json};
use crate::affinity::{Entry, parse};
use crate::control::api::{Affinity, Classes, Pins};
use crate::control::problem::Fault;

const CPUS: &str = "send {\"cpus\": \"0-1,3\"} as application/json";
const CLASSES: &str = "send {\"classes\": \"0=fifo:10;1=nice:5\"} as application/json";
const PINS: &str = "send {\"pins\": \"0=0;1=1\"} as application/json";

pub async fn list(State(machine): State<Shared>) -> Response {
    Json(machine.vcpus()).into_response()
}

pub async fn pin_one(State(machine): State<Shared>, index: Number, body: Body<Affinity>) -> Answer {
    let Path(index) = index.map_err(|e| Fault::path("a vCPU's number", &e))?;
    if index as usize >= machine.vcpus.len() {
        let detail = format!("there is no vCPU {index}");
        return Err(Fault::new(StatusCode::NOT_FOUND, detail, "GET /v1/vcpus lists them"));
    }
    let Json(body) = body.map_err(|e| Fault::body(&e, CPUS))?;
    let value = parse::cpus(&body.cpus).map_err(|error| Fault::bad(format!("cpus: {error}"), CPUS))?;
    json(machine.pin(&[Entry { vcpus: Some([index].into_iter().collect()), value }])?)
}

pub async fn pin(State(machine): State<Shared>, body: Body<Pins>) -> Answer {
    let Json(body) = body.map_err(|e| Fault::body(&e, PINS))?;
    let entries = parse::affinity(&body.pins).map_err(|error| Fault::bad(format!("pins: {error}"), PINS))?;
    json(machine.pin(&entries)?)
}

pub async fn set_classes(State(machine): State<Shared>, body: Body<Classes>) -> Answer {
    let Json(body) = body.map_err(|e| Fault::body(&e, CLASSES))?;
    let entries = parse::classes(&body.classes).map_err(|error| Fault::bad(format!("classes: {error}"), CLASSES))?;
    json(machine.set_classes(&entries)?)
}
