//! HTTP/1.1 connections: accepts them, bounds them, and gives their requests to a router.
//!
//! Invariant: whatever clients do, the number of connections is bounded, and none of them lasts
//! whose client neither sends a header nor takes its answer. What is *not* here: what is answered,
//! and how long a body may take (`answer`).

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_channel::{Receiver, Sender};
use axum::Router;
use axum::body::Body;
use futures_lite::{AsyncRead, AsyncWrite, future};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use smol::lock::Semaphore;
use smol::{Async, Executor, Timer};
use smol_hyper::rt::{FuturesIo, SmolTimer};
use tower_service::Service;

use super::PeerAddress;
use super::send_share::{Member, SendShares};

/// How long a client may take to send a request's header, and be idle between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// The most connections of one listener; more wait in its backlog.
const CONNECTIONS: usize = 4096;
/// What the kernel keeps unsent of an answer, in bytes: enough for a line of 10 Gbit/s until we are
/// woken to write more.
const NOT_SENT: u32 = 256 << 10;
/// How long requests that are being answered may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(3);

/// Stops servers when it is dropped.
pub(crate) struct StopSender {
    _open: Sender<()>,
}

/// Tells servers to stop.
#[derive(Clone)]
pub(crate) struct Stop {
    closed: Receiver<()>,
}

/// Dropping the one stops everything that has a clone of the other.
pub(crate) fn stop_channel() -> (StopSender, Stop) {
    let (open, closed) = async_channel::bounded(1);
    (StopSender { _open: open }, Stop { closed })
}

impl Stop {
    async fn told(&self) {
        // Nothing is ever sent: this ends when the sender is dropped.
        let _ = self.closed.recv().await;
    }
}

/// What connections come from.
pub(crate) trait Accept {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Bounds what the kernel keeps of an answer until the client has it.
    fn bound_send_buffer(_stream: &Self::Stream, _bytes: usize) -> io::Result<()> {
        Ok(())
    }

    /// The next connection.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<PeerAddress>)>> + Send;
}

impl Accept for Async<TcpListener> {
    type Stream = Async<std::net::TcpStream>;

    fn bound_send_buffer(stream: &Self::Stream, bytes: usize) -> io::Result<()> {
        socket2::SockRef::from(stream.get_ref()).set_send_buffer_size(bytes)
    }

    async fn next(&self) -> io::Result<(Self::Stream, Option<PeerAddress>)> {
        let (stream, peer) = self.accept().await?;
        let socket = socket2::SockRef::from(stream.get_ref());
        // Answers are written whole; waiting to fill a packet only delays their end. What is not
        // sent yet waits here rather than in the kernel, where no share can take it back.
        if let Err(error) = socket
            .set_tcp_nodelay(true)
            .and_then(|()| socket.set_tcp_notsent_lowat(NOT_SENT))
        {
            log::debug!("HTTP: {peer}: {error}");
        }
        Ok((stream, Some(PeerAddress(peer))))
    }
}

impl Accept for Async<UnixListener> {
    type Stream = Async<std::os::unix::net::UnixStream>;

    async fn next(&self) -> io::Result<(Self::Stream, Option<PeerAddress>)> {
        let (stream, _) = self.accept().await?;
        Ok((stream, None))
    }
}

/// Serves until it is told to stop, and then until the last answer is given or some seconds are
/// over.
///
/// # Errors
/// None yet: failures to accept are logged and end nothing.
pub(crate) async fn serve<A: Accept>(
    listener: A,
    router: Router,
    executor: Arc<Executor<'static>>,
    stop: Stop,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let shares = Arc::new(SendShares::default());
    let (alive, all_gone) = async_channel::bounded::<()>(1);
    loop {
        let next = async {
            let permit = room.acquire_arc().await;
            Some((permit, listener.next().await))
        };
        let told = async {
            stop.told().await;
            None
        };
        match future::or(told, next).await {
            None => break,
            Some((permit, Ok((stream, peer)))) => {
                let (router, stop, alive) = (router.clone(), stop.clone(), alive.clone());
                let stream = Unstalled {
                    stream,
                    share: shares.join(),
                    bound: A::bound_send_buffer,
                    deadline: None,
                };
                let task = async move {
                    connection(stream, router, peer, stop).await;
                    drop((permit, alive));
                };
                executor.spawn(task).detach();
            }
            Some((_, Err(error))) => pause(&error).await,
        }
    }
    drop(alive);
    let ended = async {
        // Ends when the last connection dropped its sender.
        let _ = all_gone.recv().await;
    };
    let grace = async {
        Timer::after(GRACE).await;
    };
    future::or(ended, grace).await;
    Ok(())
}

/// Out of file descriptors, or a client that left at once: neither ends the server.
async fn pause(error: &io::Error) {
    log::warn!("HTTP: a connection could not be accepted: {error}");
    Timer::after(Duration::from_millis(100)).await;
}

async fn connection<S>(stream: S, router: Router, peer: Option<PeerAddress>, stop: Stop)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        router.clone().call(request.map(Body::new))
    });
    let stream = FuturesIo::new(stream);
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(SmolTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            // Otherwise hyper copies every body into one buffer first: this stream does not say that
            // it takes parts as they are (docs/decisions/0009).
            .writev(true)
            .serve_connection(stream, service)
    );
    let told = async {
        stop.told().await;
        None
    };
    let served = match future::or(async { Some(connection.as_mut().await) }, told).await {
        Some(served) => served,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // Firmware resets connections as a matter of course.
    if let Err(error) = served {
        log::debug!("HTTP: {peer:?}: {error}");
    }
}

/// A stream whose writes fail when the other end takes nothing for [`WRITE_TIMEOUT`], and whose
/// answers wait in the kernel within their share only.
struct Unstalled<S> {
    stream: S,
    share: Member,
    bound: fn(&S, usize) -> io::Result<()>,
    /// Set while a write waits.
    deadline: Option<Timer>,
}

impl<S: Unpin> Unstalled<S> {
    /// To be called before each write: the share changes with the number of connections.
    fn keep_to_share(&mut self) {
        if let Some(bytes) = self.share.changed()
            && let Err(error) = (self.bound)(&self.stream, bytes)
        {
            log::debug!("HTTP: a send buffer of {bytes} bytes: {error}");
        }
    }

    /// Passes a result on; of one that waits, waits no longer than allowed.
    fn bounded<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.deadline = None;
            return result;
        }
        let deadline = self
            .deadline
            .get_or_insert_with(|| Timer::after(WRITE_TIMEOUT));
        match Pin::new(deadline).poll(context) {
            Poll::Ready(_) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.keep_to_share();
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(result, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.keep_to_share();
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.bounded(result, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.bounded(result, context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}
