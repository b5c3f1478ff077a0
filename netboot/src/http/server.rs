//! HTTP/1.1 connections: accepts them and gives their requests to a router.
//!
//! Not here: what is answered.

use std::{io, net::TcpListener, os::unix::net::UnixListener, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use futures_lite::{AsyncRead, AsyncWrite};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use smol::{Async, Executor, Timer};
use smol_hyper::rt::{FuturesIo, SmolTimer};
use tower_service::Service;

use super::PeerAddress;

/// How long a client may take to send a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves machines for ever.
pub(crate) async fn serve_tcp(
    listener: Async<TcpListener>,
    router: Router,
    executor: Arc<Executor<'static>>,
) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are written whole; waiting to fill a packet only delays their end.
                if let Err(error) = stream.get_ref().set_nodelay(true) {
                    log::debug!("HTTP: {peer}: {error}");
                }
                let router = router.clone();
                executor
                    .spawn(connection(stream, router, Some(PeerAddress(peer))))
                    .detach();
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Serves operators' commands for ever.
pub(crate) async fn serve_unix(
    listener: Async<UnixListener>,
    router: Router,
    executor: Arc<Executor<'static>>,
) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                executor
                    .spawn(connection(stream, router.clone(), None))
                    .detach();
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Out of file descriptors, or a client that left at once: neither ends the server.
async fn pause(error: &io::Error) {
    log::warn!("HTTP: a connection could not be accepted: {error}");
    Timer::after(Duration::from_millis(100)).await;
}

async fn connection<S>(stream: S, router: Router, peer: Option<PeerAddress>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        router.clone().call(request.map(Body::new))
    });
    let served = http1::Builder::new()
        .timer(SmolTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(FuturesIo::new(stream), service)
        .await;
    // Firmware resets connections as a matter of course.
    if let Err(error) = served {
        log::debug!("HTTP: {peer:?}: {error}");
    }
}
