//! A connection that ends for a reason of its own: its node is revoked, or its certificate ended long ago.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads and writes until it is cut off; then both fail, also those that wait.
pub struct Cuttable<S> {
    io: S,
    cut: Cut,
}

enum Cut {
    Awaited(Pin<Box<dyn Future<Output = &'static str> + Send>>),
    Came(&'static str),
}

impl<S> Cuttable<S> {
    /// Ends with `cut`, which says why.
    pub(super) fn new(io: S, cut: impl Future<Output = &'static str> + Send + 'static) -> Self {
        Self {
            io,
            cut: Cut::Awaited(Box::pin(cut)),
        }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Cut::Awaited(cut) = &mut self.cut {
            match cut.as_mut().poll(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(why) => self.cut = Cut::Came(why),
            }
        }
        match self.cut {
            Cut::Awaited(_) => Ok(()),
            Cut::Came(why) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Cuttable<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuttable")
            .field("io", &self.io)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cuttable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cuttable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
