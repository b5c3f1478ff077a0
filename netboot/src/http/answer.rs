//! Bodies in, errors out.
//!
//! Invariant: every error answer is a `protocol::api::ApiError`, whatever layer it comes from, and
//! no body is held beyond its limit or waited for without end.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, HttpBody};
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use futures_lite::future;
use http_body_util::BodyExt;
use protocol::api::ApiError;
use serde::de::DeserializeOwned;
use smol::Timer;

use super::NewIdError;
use crate::jobs::JobError;
use crate::machines::{MachineError, NameError};
use crate::next_boot::NextBootError;
use crate::state::StateError;
use crate::store::restore_points::RestorePointNameError;
use crate::store::{PublishError, StageError, StoreError, chain};

/// How long a client may be silent in the middle of a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// An error answer.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: ApiError,
}

impl Refusal {
    /// The sentence.
    pub(super) fn message(&self) -> &str {
        &self.error.message
    }

    pub(super) fn new(status: StatusCode, code: &str, message: String) -> Self {
        Self {
            status,
            error: ApiError {
                code: code.to_owned(),
                message,
            },
        }
    }

    pub(super) fn bad_request(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", message)
    }

    pub(super) fn not_found(message: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", message)
    }

    pub(super) fn conflict(message: String) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    fn missing_chunk(message: String) -> Self {
        Self::new(StatusCode::CONFLICT, "missing-chunk", message)
    }

    /// Our fault: the details are for the log.
    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        let details = chain(error);
        log::error!("{details}");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(
            status,
            "internal",
            format!("the server failed: {error}; see its log"),
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.error)).into_response()
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Full { .. } => {
                log::error!("{error}");
                Self::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "store-full",
                    error.to_string(),
                )
            }
            StoreError::Record(record) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "damaged-chunk",
                record.to_string(),
            ),
            StoreError::Missing { .. } => Self::missing_chunk(error.to_string()),
            StoreError::Collecting | StoreError::Unreadable { .. } => {
                Self::conflict(error.to_string())
            }
            StoreError::Io { .. }
            | StoreError::InUse { .. }
            | StoreError::NoPack { .. }
            | StoreError::Broken => Self::internal(&error),
        }
    }
}

impl From<NewIdError> for Refusal {
    fn from(error: NewIdError) -> Self {
        match error {
            NewIdError::State(error) => error.into(),
            NewIdError::Exists { .. } => Self::conflict(error.to_string()),
        }
    }
}

impl From<StageError> for Refusal {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Store(error) => error.into(),
            StageError::Gap { .. } | StageError::Differs { .. } => {
                Self::conflict(error.to_string())
            }
            StageError::TooLong { .. } | StageError::TooMany | StageError::Other { .. } => {
                Self::bad_request(error.to_string())
            }
        }
    }
}

impl From<PublishError> for Refusal {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Store(error) => error.into(),
            PublishError::Exists { .. } => Self::conflict(error.to_string()),
            PublishError::ChunkMissing { .. } => Self::missing_chunk(chain(&error)),
            _ => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad-request",
                chain(&error),
            ),
        }
    }
}

impl From<JobError> for Refusal {
    fn from(error: JobError) -> Self {
        let text = error.to_string();
        match error {
            JobError::Unknown { .. } => Self::not_found(text),
            JobError::Ambiguous { .. } => Self::new(StatusCode::CONFLICT, "ambiguous", text),
            JobError::Busy { .. } | JobError::NotRunning { .. } | JobError::OtherKind { .. } => {
                Self::conflict(text)
            }
            JobError::KeyNeeded => Self::new(StatusCode::CONFLICT, "key-needed", text),
            JobError::State(error) => error.into(),
        }
    }
}

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Self {
        Self::internal(&error)
    }
}

impl From<MachineError> for Refusal {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::TooMany => Self::conflict(error.to_string()),
            MachineError::State(error) => error.into(),
        }
    }
}

impl From<NextBootError> for Refusal {
    fn from(error: NextBootError) -> Self {
        match error {
            NextBootError::TooMany => Self::conflict(error.to_string()),
            NextBootError::State(error) => error.into(),
        }
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Unknown { .. } => Self::not_found(error.to_string()),
            NameError::Ambiguous { .. } => {
                Self::new(StatusCode::CONFLICT, "ambiguous", error.to_string())
            }
        }
    }
}

impl From<RestorePointNameError> for Refusal {
    fn from(error: RestorePointNameError) -> Self {
        match error {
            RestorePointNameError::Unknown { .. } | RestorePointNameError::NoneYet { .. } => {
                Self::not_found(error.to_string())
            }
            RestorePointNameError::Ambiguous { .. } => {
                Self::new(StatusCode::CONFLICT, "ambiguous", error.to_string())
            }
        }
    }
}

/// Parts of the path, refused as an [`ApiError`] when they are not what they must be.
pub(super) struct PathParts<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for PathParts<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send,
{
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let refuse = |error: PathRejection| Refusal::bad_request(error.body_text());
        let Path(found) = Path::<T>::from_request_parts(parts, state)
            .await
            .map_err(refuse)?;
        Ok(Self(found))
    }
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_body(body: Body, limit: usize) -> Result<Vec<u8>, Refusal> {
    let too_large = || {
        let message = format!("the body is longer than {limit} bytes, the most that is taken here");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "bad-request", message)
    };
    let mut body = body;
    let announced = HttpBody::size_hint(&body).lower();
    if announced > limit as u64 {
        return Err(too_large());
    }
    // Memory that is not written to is not taken: a length that is only announced costs nothing.
    let mut bytes = Vec::with_capacity(usize::try_from(announced).unwrap_or(0));
    loop {
        let next = async { body.frame().await.map(Ok) };
        let silence = async {
            Timer::after(BODY_TIMEOUT).await;
            Some(Err(()))
        };
        let frame = match future::or(next, silence).await {
            None => return Ok(bytes),
            Some(Ok(Ok(frame))) => frame,
            Some(Ok(Err(error))) => {
                return Err(Refusal::bad_request(format!(
                    "the body was cut short: {error}"
                )));
            }
            Some(Err(())) => {
                let seconds = BODY_TIMEOUT.as_secs();
                return Err(Refusal::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "bad-request",
                    format!("nothing of the body came for {seconds} s"),
                ));
            }
        };
        if let Ok(data) = frame.into_data() {
            if data.len() > limit - bytes.len() {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
    }
}

/// Reads a JSON body of at most `limit` bytes.
pub(super) async fn read_json<T: DeserializeOwned>(body: Body, limit: usize) -> Result<T, Refusal> {
    let bytes = read_body(body, limit).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Refusal::bad_request(format!("the body is not what is asked for: {error}"))
    })
}

/// For paths that are none.
pub(super) async fn no_such_path() -> Refusal {
    Refusal::not_found("there is nothing at this path".to_owned())
}

/// For methods that a path does not have.
pub(super) async fn no_such_method() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "bad-request",
        "this path does not take this method".to_owned(),
    )
}
