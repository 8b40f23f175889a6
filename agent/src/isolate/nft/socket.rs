//! The netlink socket: one request, all of its answer, within a time and a size.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, sendto,
    socket_with,
};

use super::NftError;
use super::wire::{DONE, ERROR, INTERRUPTED, Messages, OVERRUN, Received};

/// How long the kernel may take. It answers at once, except when it loads a module first.
const PATIENCE: Duration = Duration::from_secs(20);

/// Largest datagram of a list: the kernel fills at most 32 KiB at a time, errors carry the request.
const DATAGRAM: usize = 256 << 10;

/// Largest answer. Ours is below 200 KiB; a pod that may set rules could have made it endless.
const ANSWER: usize = 16 << 20;

/// How often a list is asked for again when the rules changed meanwhile.
pub(in crate::isolate) const ATTEMPTS: usize = 5;

/// Messages of others that are passed over.
const FOREIGN: usize = 1024;

/// The kernel.
const KERNEL: u32 = 0;

/// Operation and attributes of each message about nftables.
pub(super) type Answer = Vec<(u8, Vec<u8>)>;

/// A netlink socket of one network namespace.
pub(in crate::isolate) struct Socket {
    socket: OwnedFd,
}

impl Socket {
    /// Opens it in the network namespace of the calling thread.
    pub(in crate::isolate) fn open() -> Result<Self, NftError> {
        let protocol = Some(netlink::NETFILTER);
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(failed("opening it"))?;
        bind(&socket, &SocketAddrNetlink::new(0, 0)).map_err(failed("binding it"))?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(PATIENCE))
                .map_err(failed("setting its timeout"))?;
        }
        Ok(Self { socket })
    }

    /// Sends `request` and gives every nftables message of the answer: operation and attributes. A
    /// list that changed while it was read is read again.
    pub(super) fn exchange(
        &mut self,
        request: &Messages,
        what: &'static str,
    ) -> Result<Answer, NftError> {
        for _ in 0..ATTEMPTS {
            let kernel = SocketAddrNetlink::new(KERNEL, 0);
            let sent = sendto(&self.socket, request.bytes(), SendFlags::empty(), &kernel)
                .map_err(failed("sending"))?;
            if sent != request.bytes().len() {
                return Err(NftError::Unexpected {
                    what: format!("of {} bytes it took {sent}", request.bytes().len()),
                });
            }
            if let Some(answer) = self.answer(request.sequence(), what)? {
                return Ok(answer);
            }
        }
        Err(NftError::Interrupted)
    }

    /// `None`: the rules changed meanwhile.
    fn answer(&mut self, last: u32, what: &'static str) -> Result<Option<Answer>, NftError> {
        let mut buffer = vec![0; DATAGRAM];
        let mut collected = Answer::new();
        let mut size = 0;
        let mut whole = true;
        loop {
            let datagram = self.receive(&mut buffer)?;
            size += datagram.len();
            if size > ANSWER {
                return Err(NftError::TooMany {
                    what: "bytes of rules",
                    limit: ANSWER,
                });
            }
            let mut rest = datagram;
            while !rest.is_empty() {
                let message = Received::next(&mut rest)?;
                whole &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    ERROR | DONE => match message.errno()? {
                        0 if message.kind == DONE || message.sequence == last => {
                            return Ok(whole.then_some(collected));
                        }
                        0 => {}
                        errno => return Err(NftError::Kernel { what, errno }),
                    },
                    OVERRUN => {
                        return Err(NftError::Unexpected {
                            what: "the kernel says that messages were lost".to_owned(),
                        });
                    }
                    _ => {
                        if let Some((operation, attributes)) = message.nftables() {
                            collected.push((operation, attributes.to_vec()));
                        }
                    }
                }
            }
        }
    }

    /// The kernel's next datagram. A process of the pod that may set rules could send one as well.
    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], NftError> {
        for _ in 0..FOREIGN {
            let (read, length, sender) = recvfrom(&self.socket, &mut *buffer, RecvFlags::TRUNC)
                .map_err(failed("waiting for the kernel's answer"))?;
            let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
            if sender.is_none_or(|sender| sender.pid() != KERNEL) {
                tracing::warn!(
                    bytes = length,
                    "a netlink message that is not the kernel's was ignored"
                );
                continue;
            }
            if length > read {
                return Err(NftError::Unexpected {
                    what: format!("a datagram of {length} bytes, expected at most {DATAGRAM}"),
                });
            }
            return Ok(buffer.get(..read).unwrap_or_default());
        }
        Err(NftError::Unexpected {
            what: format!("{FOREIGN} messages in a row were not the kernel's"),
        })
    }
}

fn failed(step: &'static str) -> impl Fn(rustix::io::Errno) -> NftError {
    move |errno| NftError::Socket {
        step,
        source: io::Error::from(errno),
    }
}
