//! A client's socket. It times out if the client does not read, and lingers on close so that the
//! client can read the answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// Maximum time for which a closing connection discards what its client still sends.
const LINGER_TIME: Duration = Duration::from_secs(5);
/// Maximum amount that a closing connection discards, in octets.
const LINGER_OCTETS: usize = 256 * 1024;
/// Size of the buffer for discarded input, in octets.
const LINGER_READ: usize = 4096;

/// A socket with a write timeout and a lingering close.
///
/// Each write must be accepted completely within the timeout, so a client gains nothing by reading
/// an octet at a time.
///
/// Closing a socket with unread input resets the connection, and the client may lose the answer. A
/// request that was refused before its body was read leaves such input, and a proxy may take the
/// reset for a failed replica. Therefore the write side is shut down first. Then input is discarded
/// until the client closes, for at most 5 s and 256 KiB.
#[derive(Debug)]
pub struct ClientStream {
    stream: TcpStream,
    timeout: Duration,
    /// The timeout of a write that the client has not accepted completely. `None` between writes,
    /// so idle connections have no timer.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Set once the write side is shut down.
    lingering: Option<Lingering>,
}

#[derive(Debug)]
struct Lingering {
    deadline: Pin<Box<Sleep>>,
    discarded: usize,
}

impl ClientStream {
    /// Wraps an accepted connection. `timeout` bounds each write.
    #[must_use]
    pub fn new(stream: TcpStream, timeout: Duration) -> Self {
        let _ = stream.set_nodelay(true);
        Self { stream, timeout, stalled: None, lingering: None }
    }

    /// Applies the timeout to one write of `offered` octets.
    fn with_timeout(
        &mut self,
        context: &mut Context<'_>,
        offered: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(accepted)) if accepted == offered) {
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
            deadline: Box::pin(tokio::time::sleep(LINGER_TIME)),
            discarded: 0,
        });
        while lingering.discarded < LINGER_OCTETS && lingering.deadline.as_mut().poll(context).is_pending() {
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
        self.with_timeout(context, octets.len(), written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.with_timeout(context, parts.iter().map(|part| part.len()).sum(), written)
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
