//! The guest's tasks.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json};

use super::{Answer, Body, Number, Shared, json, number, waiting};
use crate::control::api::{SignalRequest, SpawnRequest, TaskChange};
use crate::control::problem::Fault;

const TASK: &str = "a task's number";
const CHANGE: &str =
    "send {\"nice\": 5}, {\"policy\": \"fifo\", \"priority\": 10}, {\"affinity\": \"0-1\"} as application/json";
const SIGNAL: &str = "send {\"signal\": \"TERM\"} as application/json";
const SPAWN: &str = "send {\"path\": \"/bin/prog\", \"args\": [\"-x\"]} as application/json";

pub async fn list(State(machine): State<Shared>) -> Answer {
    json(machine.tasks()?)
}

pub async fn show(State(machine): State<Shared>, id: Number) -> Answer {
    json(machine.task(number(TASK, id)?)?)
}

pub async fn change(State(machine): State<Shared>, id: Number, body: Body<TaskChange>) -> Answer {
    let id = number(TASK, id)?;
    let Json(change) = body.map_err(|e| Fault::body(&e, CHANGE))?;
    if change == TaskChange::default() {
        return Err(Fault::bad("nothing to change", CHANGE));
    }
    json(waiting(machine, move |machine| machine.change(id, &change)).await?)
}

pub async fn suspend(State(machine): State<Shared>, id: Number) -> Answer {
    let id = number(TASK, id)?;
    json(waiting(machine, move |machine| machine.suspend(id, true)).await?)
}

pub async fn resume(State(machine): State<Shared>, id: Number) -> Answer {
    let id = number(TASK, id)?;
    json(waiting(machine, move |machine| machine.suspend(id, false)).await?)
}

pub async fn signal(State(machine): State<Shared>, id: Number, body: Body<SignalRequest>) -> Answer {
    let id = number(TASK, id)?;
    let Json(request) = body.map_err(|e| Fault::body(&e, SIGNAL))?;
    waiting(machine, move |machine| machine.signal(id, &request)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub async fn spawn(State(machine): State<Shared>, body: Body<SpawnRequest>) -> Answer {
    let Json(request) = body.map_err(|e| Fault::body(&e, SPAWN))?;
    let spawned = waiting(machine, move |machine| machine.spawn(request)).await?;
    Ok((StatusCode::CREATED, Json(spawned)).into_response())
}
