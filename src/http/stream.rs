//! A client's socket that ends when its other end does not read, and lingers so that its other end can.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How long a closing connection discards what its client still sends, at most.
const LINGER_TIME: Duration = Duration::from_secs(5);
/// How much of it, in octets.
const LINGER_OCTETS: usize = 256 * 1024;
/// How much of it at once, in octets.
const LINGER_READ: usize = 4096;

/// What is offered to it has to be taken within a time, as a whole: a client that takes an octet now and then gains none.
///
/// A socket that is closed with unread input resets the connection, and the client may lose the answer. After an early
/// refusal there is such input: a proxy that is still sending takes the reset for a failed replica. So the write side
/// ends first, and the rest is read and discarded until the client closes, for at most 5 s and 256 KiB.
#[derive(Debug)]
pub struct ClientStream {
    stream: TcpStream,
    timeout: Duration,
    /// Runs while the client has not taken what it was offered; none costs an idle connection nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs once the write side is shut down.
    lingering: Option<Lingering>,
}

#[derive(Debug)]
struct Lingering {
    over: Pin<Box<Sleep>>,
    discarded: usize,
}

impl ClientStream {
    /// Of an accepted connection.
    #[must_use]
    pub fn new(stream: TcpStream, timeout: Duration) -> Self {
        let _ = stream.set_nodelay(true);
        Self { stream, timeout, stalled: None, lingering: None }
    }

    /// Times one write of `offered` octets.
    fn timed(
        &mut self,
        context: &mut Context<'_>,
        offered: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(taken)) if taken == offered) {
            self.stalled = None;
            return written;
        }
        let timeout = self.timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => written,
        }
    }

    /// Discards what the client still sends, until it closes or a bound is reached.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let lingering = self.lingering.get_or_insert_with(|| Lingering {
            over: Box::pin(tokio::time::sleep(LINGER_TIME)),
            discarded: 0,
        });
        while lingering.discarded < LINGER_OCTETS && lingering.over.as_mut().poll(context).is_pending() {
            let mut scratch = [0; LINGER_READ];
            let mut buffer = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            match buffer.filled().len() {
                0 => break,
                octets => lingering.discarded += octets,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, octets);
        self.timed(context, octets.len(), written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.timed(context, parts.iter().map(|part| part.len()).sum(), written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        self.poll_linger(context)
    }
}
