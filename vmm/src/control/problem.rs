//! Errors of the interface: what a handler says ([`Fault`]), and what the client gets ([`Problem`]), which also says where.

use axum::extract::Request;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Json, Response};
use vcpu_sched::requests::message::Refusal;

use super::api::{PROBLEM_JSON, Problem};
use crate::affinity::live::LiveError as PinError;
use crate::clock::ClockError;
use crate::guestview::GuestViewError;
use crate::requests::RequestError;
use crate::trace::live::LiveError;
use crate::vm::run_control::RunControlError;

/// What went wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// HTTP's word for it.
    pub status: StatusCode,
    /// What exactly.
    pub detail: String,
    /// What to do.
    pub hint: &'static str,
}

impl Fault {
    /// Something of this kind.
    pub fn new(status: StatusCode, detail: impl Into<String>, hint: &'static str) -> Self {
        Self { status, detail: detail.into(), hint }
    }

    /// The client has said something that can't be understood.
    pub fn bad(detail: impl Into<String>, hint: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail, hint)
    }

    /// A part of the path that isn't a number.
    pub fn path(what: &str, rejection: &PathRejection) -> Self {
        Self::bad(format!("{what} is a decimal number of 32 bits: {rejection}"), "GET the list that it is in")
    }

    /// A body that isn't what is expected.
    pub fn body(rejection: &JsonRejection, hint: &'static str) -> Self {
        // A body that is too large, or of another type, has a status of its own.
        let status = match rejection.status() {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            other => other,
        };
        Self::new(status, rejection.body_text(), hint)
    }
}

/// Carries the fault to [`tell`], which knows where it happened.
impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Around all routes: makes a [`Problem`] of a [`Fault`].
pub async fn tell(request: Request, next: Next) -> Response {
    let instance = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let Some(fault) = response.extensions_mut().remove::<Fault>() else { return response };
    let problem = Problem {
        status: fault.status.as_u16(),
        title: fault.status.canonical_reason().unwrap_or("error").to_owned(),
        detail: fault.detail,
        instance,
        hint: fault.hint.to_owned(),
    };
    (fault.status, [(header::CONTENT_TYPE, PROBLEM_JSON)], Json(problem)).into_response()
}

impl From<GuestViewError> for Fault {
    fn from(error: GuestViewError) -> Self {
        let hint = "try again once the guest kernel has booted; only Taskvisor's own kernel shows its tasks";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string(), hint)
    }
}

impl From<PinError> for Fault {
    fn from(error: PinError) -> Self {
        let hint = "GET /v1/vcpus shows where the threads may run now";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string(), hint)
    }
}

impl From<ClockError> for Fault {
    fn from(error: ClockError) -> Self {
        let (status, hint) = match &error {
            ClockError::Run(_) => (StatusCode::CONFLICT, "GET /v1/vm shows the machine's state"),
            _ => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "GET /v1/clock shows the clock as it is; docs/clock.md says what it can do",
            ),
        };
        Self::new(status, error.to_string(), hint)
    }
}

impl From<LiveError> for Fault {
    fn from(error: LiveError) -> Self {
        let (status, hint) = match error {
            LiveError::Request(error) => return error.into(),
            LiveError::Recording => (StatusCode::CONFLICT, "POST /v1/trace/stop first"),
            LiveError::Idle | LiveError::Nothing => (StatusCode::CONFLICT, "POST /v1/trace/start first"),
            LiveError::Records(_) | LiveError::Limit(_) => (StatusCode::UNPROCESSABLE_ENTITY, "leave it out"),
            LiveError::Overwrites => (StatusCode::CONFLICT, "start the guest without trace=ring"),
            LiveError::Ring(..) | LiveError::NoClock => {
                (StatusCode::BAD_GATEWAY, "the guest's kernel doesn't keep to docs/abi.md")
            }
            LiveError::File(_) | LiveError::Trace(_) => {
                (StatusCode::INSUFFICIENT_STORAGE, "the file lies in the VMM's TMPDIR")
            }
        };
        Self::new(status, error.to_string(), hint)
    }
}

impl From<RunControlError> for Fault {
    fn from(error: RunControlError) -> Self {
        Self::new(StatusCode::CONFLICT, error.to_string(), "GET /v1/vm shows the machine's state")
    }
}

impl From<RequestError> for Fault {
    fn from(error: RequestError) -> Self {
        let (status, hint) = match &error {
            RequestError::Refused(refusal) => match refusal {
                Refusal::NoSuchTask | Refusal::Ending => {
                    (StatusCode::NOT_FOUND, "GET /v1/tasks lists the tasks that live")
                }
                Refusal::Unknown | Refusal::Unsupported => {
                    (StatusCode::NOT_IMPLEMENTED, "use the kernel that comes with this taskvisor")
                }
                Refusal::KernelTask => {
                    (StatusCode::UNPROCESSABLE_ENTITY, "take a task of kind user from GET /v1/tasks")
                }
                Refusal::NotAttached => {
                    (StatusCode::NOT_FOUND, "POST /v1/tasks with {\"streams\": \"attached\"} starts such a program")
                }
                Refusal::InputClosed => (StatusCode::CONFLICT, "GET /v1/programs/N tells whether it runs"),
                Refusal::TooManyAttached => {
                    (StatusCode::INSUFFICIENT_STORAGE, "DELETE /v1/programs/N of one that isn't needed any more")
                }
                Refusal::NoMemory => (StatusCode::INSUFFICIENT_STORAGE, "give the guest more memory (--memory)"),
                Refusal::NotFound => {
                    (StatusCode::UNPROCESSABLE_ENTITY, "add the file with --file, or give its full path")
                }
                _ => (StatusCode::UNPROCESSABLE_ENTITY, "docs/control.md tells what each value may be"),
            },
            RequestError::NoGuest(_) => (StatusCode::SERVICE_UNAVAILABLE, "try again once the guest kernel has booted"),
            RequestError::NoMailbox => (StatusCode::NOT_IMPLEMENTED, "use the kernel that comes with this taskvisor"),
            RequestError::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "send fewer or shorter strings"),
            RequestError::Busy(_) | RequestError::Unseen(_) | RequestError::Silent(_) => {
                (StatusCode::GATEWAY_TIMEOUT, "GET /v1/vcpus shows what the guest's CPUs do")
            }
            RequestError::Ended => (StatusCode::GONE, "the guest's end is told where taskvisor run was started"),
            RequestError::Header(_) | RequestError::Broken(_) | RequestError::Interrupt(_) => {
                (StatusCode::BAD_GATEWAY, "the guest's kernel doesn't keep to docs/abi.md")
            }
        };
        Self::new(status, error.to_string(), hint)
    }
}
