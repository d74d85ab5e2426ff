//! The guest's clock.

use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};

use super::{Answer, Body, Shared, json, waiting};
use crate::control::api::ClockChange;
use crate::control::problem::Fault;

const CHANGE: &str = "send {\"rate\": \"0.5\"}, {\"step_forward_ns\": 1000} or {\"offset\": {\"vcpu\": 1, \"ns\": 500}} as application/json";

pub async fn show(State(machine): State<Shared>) -> Response {
    Json(machine.clock.status()).into_response()
}

pub async fn change(State(machine): State<Shared>, body: Body<ClockChange>) -> Answer {
    let Json(change) = body.map_err(|e| Fault::body(&e, CHANGE))?;
    if change == ClockChange::default() {
        return Err(Fault::bad("nothing to change", CHANGE));
    }
    json(waiting(machine, move |machine| machine.change_clock(&change)).await?)
}
