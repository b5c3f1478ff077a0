//! The operators' side of the control socket.
//!
//! One connection for each request: commands are short, and a server that was restarted in between
//! is found again. What is *not* here: what is asked and how it is shown (`commands`).

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use protocol::api::ApiError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smol::Async;
use smol_hyper::rt::FuturesIo;
use tower_service::Service;

/// The most bytes of an answer that are read: lists of very many jobs.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// A request that was not answered with what was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens.
    #[error(
        "no netboot server runs on the data directory {}: start one with `netboot serve`, or name its data directory with --data-dir",
        .0.display()
    )]
    NotRunning(PathBuf),
    /// The socket is somebody else's.
    #[error(
        "no right to use the control socket {}: run this as the user that runs the server",
        .0.display()
    )]
    NoRights(PathBuf),
    /// The connection failed.
    #[error("the control socket {} cannot be used", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the server ended the connection without an answer")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server said no.
    #[error(transparent)]
    Refused(ApiError),
    /// The answer is not what this program understands.
    #[error(
        "the server's answer to {path} is not understood; is it of another version than this command?"
    )]
    Answer {
        /// What was asked.
        path: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// Asks the server of one data directory.
pub(crate) struct ControlClient {
    server: WhichServer,
}

/// Who answers.
enum WhichServer {
    /// The server of this data directory, over its socket.
    Of(PathBuf),
    /// This process itself.
    Here(axum::Router),
}

impl ControlClient {
    /// For the server of this data directory.
    pub(crate) fn new(data_directory: &Path) -> Self {
        Self {
            server: WhichServer::Of(data_directory.to_owned()),
        }
    }

    /// Served by this process, which holds the lock of the data directory.
    pub(crate) const fn here(router: axum::Router) -> Self {
        Self {
            server: WhichServer::Here(router),
        }
    }

    /// GETs a value.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        smol::block_on(self.ask(Method::GET, path, Body::empty()))
    }

    /// POSTs a value and gets one back.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        value: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(value).map_err(|source| ClientError::Answer {
            path: path.to_owned(),
            source,
        })?;
        smol::block_on(self.ask(Method::POST, path, Body::from(body)))
    }

    /// DELETEs something and gets what it was, or is now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        smol::block_on(self.ask(Method::DELETE, path, Body::empty()))
    }

    /// Sends bytes and gets bytes back; none for an answer without content.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) fn send(
        &self,
        method: Method,
        path: &str,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, ClientError> {
        let answer = smol::block_on(self.ask_bytes(method, path, Body::from(bytes)))?;
        Ok(answer.into())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<T, ClientError> {
        let bytes = self.ask_bytes(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Answer {
            path: path.to_owned(),
            source,
        })
    }

    async fn ask_bytes(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Bytes, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "netboot")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| ClientError::Broken(error.into()))?;
        let (status, bytes) = match &self.server {
            WhichServer::Of(data_directory) => over_socket(data_directory, request).await?,
            WhichServer::Here(router) => {
                let answer = router.clone().call(request).await;
                let answer = answer.map_err(|never| match never {})?;
                (answer.status(), collected(answer.into_body()).await?)
            }
        };
        if status.is_success() {
            return Ok(bytes);
        }
        let refusal = serde_json::from_slice(&bytes);
        let refusal = refusal.map_err(|source| ClientError::Answer {
            path: path.to_owned(),
            source,
        })?;
        Err(ClientError::Refused(refusal))
    }
}

fn connect(data_directory: &Path) -> Result<Async<UnixStream>, ClientError> {
    let path = data_directory.join("control.sock");
    UnixStream::connect(&path)
        .and_then(Async::new)
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(data_directory.to_owned())
            }
            io::ErrorKind::PermissionDenied => ClientError::NoRights(path),
            _ => ClientError::Connect { path, source },
        })
}

async fn collected<B>(body: B) -> Result<Bytes, ClientError>
where
    B: axum::body::HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    Ok(body.map_err(ClientError::Broken)?.to_bytes())
}

async fn over_socket(
    data_directory: &Path,
    request: Request<Body>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let broken = |error: hyper::Error| ClientError::Broken(error.into());
    let stream = FuturesIo::new(connect(data_directory)?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        Ok((answer.status(), collected(answer.into_body()).await?))
    };
    // The connection moves the bytes and ends no sooner than the exchange needs it.
    let driven = async {
        let end = connection.await;
        match end {
            Ok(()) => std::future::pending().await,
            Err(error) => Err(broken(error)),
        }
    };
    futures_lite::future::or(exchange, driven).await
}
