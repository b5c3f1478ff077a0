//! HTTP to the server: JSON and bytes, with patience.
//!
//! Invariant: a request either got an answer of the server that booted us, or says why not; nothing
//! is read past the caller's limit. What is *not* here: what the bytes mean, digests, TLS.
//!
//! A [`Server`] is cheap to clone and is used from several threads at once; they share connections.
//! As made by [`Server::new`] it tries once. [`Server::until`] makes one that goes on trying while the
//! server is away, so that a restore survives a restart of the server or a pulled cable.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::api::ApiError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, Request, Response};
use ureq::{Body, SendBody};

/// How long the server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection may be silent before it counts as dead: a cable that was pulled, a server
/// that lost its power. More than the server holds a beacon.
const SILENCE: Duration = Duration::from_secs(30);
/// The largest JSON answer that is read, in bytes.
const JSON_LIMIT: u64 = 32 * 1024 * 1024;
/// Idle connections kept for reuse.
const IDLE_CONNECTIONS: usize = 32;
/// Waits between tries while the server is away.
const BACK_OFF_MS: [u64; 5] = [200, 500, 1000, 2000, 3000];
/// How often an outage is spoken of.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Why a request has no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The server answered, with an error. Trying again does not help.
    #[error("the server refused {request}: {error} ({}, HTTP status {status})", .error.code)]
    Refused {
        /// Method and path.
        request: String,
        /// HTTP status.
        status: u16,
        /// What the server says.
        error: ApiError,
    },
    /// No answer came.
    #[error("the server at {server} did not answer {request}: {reason}")]
    Unreachable {
        /// The server's base URL.
        server: String,
        /// Method and path.
        request: String,
        /// What the network said.
        reason: String,
    },
    /// The answer is not what this agent understands.
    #[error("the server's answer to {request} is not understood: {reason}")]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The body to send could not be read here.
    #[error("the body of {request} could not be read")]
    Body {
        /// Method and path.
        request: String,
        /// What the system said.
        source: io::Error,
    },
    /// The operator took the job back while the server was waited for.
    #[error("the job was taken back")]
    Cancelled,
}

impl RequestError {
    /// The word for programs of the server's error answer, if it was one.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { error, .. } => Some(&error.code),
            _ => None,
        }
    }
}

/// A span of time in which the server did not answer.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    said: Option<Instant>,
}

/// The server, as somebody to send requests to.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    base: Arc<str>,
    agent: ureq::Agent,
    outage: Arc<Mutex<Outage>>,
    /// Try again until this is set; `None` tries once.
    until: Option<Arc<AtomicBool>>,
    silence: Duration,
}

impl Server {
    /// The server at `base`, for example `http://10.77.0.1:8080`. Each request is tried once.
    pub(crate) fn new(base: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .timeout_per_write(Some(SILENCE))
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .user_agent(concat!("netboot-agent/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            base: base.trim_end_matches('/').into(),
            agent: config.into(),
            outage: Arc::default(),
            until: None,
            silence: SILENCE,
        }
    }

    /// The same server, tried again while it is away, until `cancelled` is set.
    pub(crate) fn until(&self, cancelled: Arc<AtomicBool>) -> Self {
        Self {
            until: Some(cancelled),
            ..self.clone()
        }
    }

    /// The same server, allowed to think for `silence` before its answer begins. For requests that
    /// make it do long work, such as publishing a restore point.
    pub(crate) fn patient(&self, silence: Duration) -> Self {
        Self {
            silence,
            ..self.clone()
        }
    }

    /// The base URL.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// POST of JSON, JSON back.
    ///
    /// # Errors
    /// [`RequestError`].
    pub(crate) fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, RequestError> {
        let request = format!("POST {path}");
        let body = serde_json::to_vec(body).map_err(|error| RequestError::Body {
            request: request.clone(),
            source: error.into(),
        })?;
        let json = "application/json";
        let bytes = self.exchange(&Method::POST, path, json, &body, JSON_LIMIT)?;
        from_json(&request, &bytes)
    }

    /// POST of JSON; the answer's body is not wanted.
    ///
    /// # Errors
    /// [`RequestError`].
    pub(crate) fn send_json(&self, path: &str, body: &impl Serialize) -> Result<(), RequestError> {
        let body = serde_json::to_vec(body).map_err(|error| RequestError::Body {
            request: format!("POST {path}"),
            source: error.into(),
        })?;
        self.exchange(&Method::POST, path, "application/json", &body, JSON_LIMIT)?;
        Ok(())
    }

    /// GET, at most `limit` bytes back.
    ///
    /// # Errors
    /// [`RequestError`].
    pub(crate) fn get_bytes(&self, path: &str, limit: u64) -> Result<Vec<u8>, RequestError> {
        self.exchange(&Method::GET, path, "", &[], limit)
    }

    /// POST of bytes, at most `limit` bytes back.
    ///
    /// # Errors
    /// [`RequestError`].
    pub(crate) fn post_bytes(
        &self,
        path: &str,
        body: &[u8],
        limit: u64,
    ) -> Result<Vec<u8>, RequestError> {
        self.exchange(&Method::POST, path, OCTETS, body, limit)
    }

    /// POST of bytes; at most `limit` bytes of answer take the place of what is in `answer`, whose memory is
    /// used again.
    ///
    /// # Errors
    /// [`RequestError`].
    pub(crate) fn post_for(
        &self,
        path: &str,
        body: &[u8],
        limit: u64,
        answer: &mut Vec<u8>,
    ) -> Result<(), RequestError> {
        self.exchange_into((&Method::POST, path, OCTETS), body, limit, answer)
    }

    /// PUT of bytes; the answer's body is not wanted.
    ///
    /// # Errors
    /// [`RequestError`].
    pub(crate) fn put_bytes(&self, path: &str, body: &[u8]) -> Result<(), RequestError> {
        self.exchange(&Method::PUT, path, OCTETS, body, JSON_LIMIT)?;
        Ok(())
    }

    fn exchange(
        &self,
        method: &Method,
        path: &str,
        kind: &str,
        body: &[u8],
        limit: u64,
    ) -> Result<Vec<u8>, RequestError> {
        let mut answer = Vec::new();
        self.exchange_into((method, path, kind), body, limit, &mut answer)?;
        Ok(answer)
    }

    fn exchange_into(
        &self,
        (method, path, kind): (&Method, &str, &str),
        body: &[u8],
        limit: u64,
        into: &mut Vec<u8>,
    ) -> Result<(), RequestError> {
        let request = format!("{method} {path}");
        let is_whole = self.insist(&request, || {
            let mut answer = self.once(&request, method, path, kind, body)?;
            // Room for all of it at once, but for no more than is wanted, whatever the server says.
            let len = answer.body().content_length().unwrap_or(0).min(limit);
            into.clear();
            into.reserve_exact(usize::try_from(len).unwrap_or(0).saturating_add(1));
            read_all(answer.body_mut().as_reader(), limit, into)
                .map_err(|error| self.unreachable(&request, &error))
        })?;
        if is_whole {
            return Ok(());
        }
        Err(RequestError::Answer {
            reason: format!("it is longer than {limit} bytes"),
            request,
        })
    }

    fn head(&self, method: &Method, path: &str, kind: &str) -> ureq::http::request::Builder {
        let head = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.base));
        if kind.is_empty() {
            head
        } else {
            head.header("content-type", kind)
        }
    }

    fn once(
        &self,
        request: &str,
        method: &Method,
        path: &str,
        kind: &str,
        body: &[u8],
    ) -> Result<Response<Body>, RequestError> {
        let head = self.head(method, path, kind);
        if *method == Method::GET {
            self.send(request, head, SendBody::none())
        } else {
            let mut bytes = body;
            let head = head.header("content-length", body.len());
            self.send(request, head, SendBody::from_reader(&mut bytes))
        }
    }

    /// Sends one request and sorts the answer: an error status becomes an error.
    fn send(
        &self,
        request: &str,
        head: ureq::http::request::Builder,
        body: SendBody,
    ) -> Result<Response<Body>, RequestError> {
        let silence = Some(self.silence);
        let ready = head.body(body).map_err(|error| RequestError::Answer {
            request: request.to_owned(),
            reason: error.to_string(),
        })?;
        let ready = self.agent.configure_request(ready);
        let ready = ready.timeout_per_read(silence).build();
        let mut answer = self
            .agent
            .run(ready)
            .map_err(|error| self.unreachable(request, &error))?;
        let status = answer.status().as_u16();
        match status {
            200..=299 => Ok(answer),
            // Said by proxies and by a server that is starting: it is not there yet.
            408 | 429 | 502 | 503 | 504 => {
                Err(self.unreachable(request, &format!("HTTP status {status}")))
            }
            _ => {
                let mut body = Vec::new();
                let read = read_all(answer.body_mut().as_reader(), 64 * 1024, &mut body);
                let error = read
                    .is_ok_and(|is_whole| is_whole)
                    .then(|| serde_json::from_slice(&body).ok())
                    .flatten()
                    .unwrap_or_else(|| ApiError {
                        code: "unknown".to_owned(),
                        message: "it gave no reason".to_owned(),
                    });
                Err(RequestError::Refused {
                    request: request.to_owned(),
                    status,
                    error,
                })
            }
        }
    }

    fn unreachable(&self, request: &str, reason: &impl std::fmt::Display) -> RequestError {
        RequestError::Unreachable {
            server: self.base.to_string(),
            request: request.to_owned(),
            reason: reason.to_string(),
        }
    }

    /// Tries, and tries again while the server is away and nobody takes the job back.
    fn insist<T>(
        &self,
        request: &str,
        mut attempt: impl FnMut() -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        let mut tries = 0;
        loop {
            if self.is_cancelled() {
                return Err(RequestError::Cancelled);
            }
            let error = match attempt() {
                Err(error @ RequestError::Unreachable { .. }) => error,
                answered => {
                    self.note_answer();
                    return answered;
                }
            };
            self.note_silence(&error);
            if self.until.is_none() {
                return Err(error);
            }
            log::debug!("{request}: {error}");
            let wait = BACK_OFF_MS.get(tries).or(BACK_OFF_MS.last());
            self.sleep(Duration::from_millis(wait.copied().unwrap_or(1000)));
            tries += 1;
        }
    }

    fn is_cancelled(&self) -> bool {
        let flag = self.until.as_ref();
        flag.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Sleeps, but not long past a cancellation.
    fn sleep(&self, wait: Duration) {
        let until = Instant::now() + wait;
        while !self.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    fn note_answer(&self) {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(since), true) = (outage.since.take(), outage.said.take().is_some()) {
            let seconds = since.elapsed().as_secs();
            log::info!("server {} answers again after {seconds} s", self.base);
        }
    }

    fn note_silence(&self, error: &RequestError) {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *outage.since.get_or_insert_with(Instant::now);
        let due = outage.said.is_none_or(|said| said.elapsed() >= SAY_EVERY);
        if due {
            outage.said = Some(Instant::now());
            let reason = match error {
                RequestError::Unreachable { reason, .. } => reason.as_str(),
                _ => "",
            };
            log::warn!(
                "server {} not reachable for {} s, trying again ({reason})",
                self.base,
                since.elapsed().as_secs()
            );
        }
    }
}

const OCTETS: &str = "application/octet-stream";

/// Everything up to `limit` bytes, in place of what is in `bytes`; false when there is more.
fn read_all(reader: impl Read, limit: u64, bytes: &mut Vec<u8>) -> io::Result<bool> {
    bytes.clear();
    reader.take(limit.saturating_add(1)).read_to_end(bytes)?;
    Ok(bytes.len() as u64 <= limit)
}

fn from_json<T: DeserializeOwned>(request: &str, bytes: &[u8]) -> Result<T, RequestError> {
    serde_json::from_slice(bytes).map_err(|error| RequestError::Answer {
        request: request.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A server that gives one answer a connection, and returns what it was asked.
    pub(crate) fn serve(answers: Vec<String>) -> (Server, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server::new(&format!("http://{}/", listener.local_addr().unwrap()));
        let asked = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream);
                let (mut head, mut len) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        len = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                    head.push_str(&line);
                }
                let mut body = vec![0; len];
                reader.read_exact(&mut body).unwrap();
                let first = head.lines().next().unwrap_or_default();
                asked.push(format!("{first} {}", String::from_utf8_lossy(&body)));
                // An empty answer is a connection that breaks.
                reader.into_inner().write_all(answer.as_bytes()).unwrap();
            }
            asked
        });
        (server, asked)
    }

    /// An answer for [`serve`].
    pub(crate) fn answer(status: &str, body: &str) -> String {
        let len = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {len}\r\nconnection: close\r\n\r\n{body}")
    }

    fn never() -> Arc<AtomicBool> {
        Arc::new(AtomicBool::new(false))
    }

    #[test]
    fn json_goes_out_and_comes_back() {
        let (server, asked) = serve(vec![answer("200 OK", "[1,2]")]);
        let back: Vec<u8> = server.post_json("/x", &"hello").unwrap();
        assert_eq!(back, [1, 2]);
        assert_eq!(asked.join().unwrap(), ["POST /x HTTP/1.1 \"hello\""]);
    }

    #[test]
    fn a_refusal_is_told_with_its_reason_and_not_tried_again() {
        let body = r#"{"code":"not-found","message":"no such job"}"#;
        let (server, asked) = serve(vec![answer("404 Not Found", body)]);
        let error = server.until(never()).get_bytes("/x", 10).unwrap_err();
        assert_eq!(error.code(), Some("not-found"));
        assert!(error.to_string().contains("no such job"), "{error}");
        assert_eq!(asked.join().unwrap().len(), 1);
    }

    #[test]
    fn a_server_that_is_away_is_asked_again_with_the_whole_body() {
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345".to_owned();
        let answers = vec![
            String::new(),
            answer("503 Service Unavailable", ""),
            half,
            answer("200 OK", "1234567890"),
        ];
        let (server, asked) = serve(answers);
        let back = server.until(never()).post_bytes("/x", b"body", 10).unwrap();
        assert_eq!(back, b"1234567890");
        let asked = asked.join().unwrap();
        assert_eq!(asked, ["POST /x HTTP/1.1 body"; 4]);
    }

    #[test]
    fn one_try_is_one_try() {
        let (server, asked) = serve(vec![String::new()]);
        let error = server.get_bytes("/x", 10).unwrap_err();
        assert!(matches!(error, RequestError::Unreachable { .. }), "{error}");
        assert_eq!(asked.join().unwrap().len(), 1);
    }

    #[test]
    fn an_answer_past_the_limit_is_refused() {
        let (server, _asked) = serve(vec![answer("200 OK", "12345678901")]);
        let error = server.get_bytes("/x", 10).unwrap_err();
        assert!(matches!(error, RequestError::Answer { .. }), "{error}");
    }

    #[test]
    fn a_job_that_was_taken_back_waits_for_no_server() {
        let cancelled = Arc::new(AtomicBool::new(true));
        let server = Server::new("http://127.0.0.1:1").until(cancelled);
        let error = server.get_bytes("/x", 10).unwrap_err();
        assert!(matches!(error, RequestError::Cancelled), "{error}");
    }
}
