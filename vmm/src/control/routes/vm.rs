//! The machine as a whole.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};

use super::{Answer, Shared, json, waiting};

pub async fn show(State(machine): State<Shared>) -> Response {
    Json(machine.vm()).into_response()
}

pub async fn stats(State(machine): State<Shared>) -> Answer {
    // Counting touched memory takes a system call for each of its pieces.
    json(waiting(machine, |machine| Ok(machine.stats())).await?)
}

pub async fn pause(State(machine): State<Shared>) -> Answer {
    json(waiting(machine, |machine| machine.pause()).await?)
}

pub async fn resume(State(machine): State<Shared>) -> Answer {
    json(waiting(machine, |machine| Ok(machine.resume())).await?)
}

pub async fn shutdown(State(machine): State<Shared>) -> Answer {
    Ok((StatusCode::ACCEPTED, Json(waiting(machine, |machine| machine.shutdown()).await?)).into_response())
}

pub async fn kill(State(machine): State<Shared>) -> Answer {
    Ok((StatusCode::ACCEPTED, Json(machine.kill()?)).into_response())
}
