//! Attached programs, and files for the guest.

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json};
use vcpu_sched::requests::message::Output;

use super::{Answer, Number, Shared, json, number};
use crate::control::api::Stored;
use crate::control::hangup::Hangup;
use crate::control::problem::Fault;
use crate::control::programs;

const PROCESS: &str = "a process's number";
const BYTES: &str = "application/octet-stream";

/// Who asks, where there is a connection.
type Client = Option<Extension<Hangup>>;

fn hangup(client: Client) -> Hangup {
    client.map(|Extension(hangup)| hangup).unwrap_or_default()
}

pub async fn show(State(machine): State<Shared>, process: Number) -> Answer {
    json(programs::show(&machine, number(PROCESS, process)?).await?)
}

pub async fn wait(State(machine): State<Shared>, process: Number, client: Client) -> Answer {
    json(programs::wait(&machine, number(PROCESS, process)?, &hangup(client)).await?)
}

pub async fn forget(State(machine): State<Shared>, process: Number) -> Answer {
    programs::forget(&machine, number(PROCESS, process)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub async fn stdout(State(machine): State<Shared>, process: Number, client: Client) -> Answer {
    read(machine, process, Output::Stdout, client).await
}

pub async fn stderr(State(machine): State<Shared>, process: Number, client: Client) -> Answer {
    read(machine, process, Output::Stderr, client).await
}

async fn read(machine: Shared, process: Number, from: Output, client: Client) -> Answer {
    let body = programs::read(machine, number(PROCESS, process)?, from, hangup(client)).await?;
    Ok(([(CONTENT_TYPE, BYTES)], Body::new(body)).into_response())
}

pub async fn stdin(State(machine): State<Shared>, process: Number, client: Client, body: Body) -> Answer {
    programs::write(&machine, number(PROCESS, process)?, body, &hangup(client)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub async fn store(
    State(machine): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    client: Client,
    body: Body,
) -> Answer {
    let Path(name) = name.map_err(|e| Fault::bad(format!("a file's name: {e}"), "send one part of a path"))?;
    let path = programs::store(&machine, &name, body, &hangup(client)).await?;
    Ok((StatusCode::CREATED, Json(Stored { path })).into_response())
}
