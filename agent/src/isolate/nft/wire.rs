//! Netlink's byte format: messages of a header and attributes, built and taken apart.
//!
//! Lengths and types are in the machine's byte order, nftables' numbers in network order. What is
//! taken apart came from the kernel but describes what anybody inside the pod may have set: every
//! length is checked, nothing is assumed to be there.

/// nftables' number among the netfilter subsystems (`NFNL_SUBSYS_NFTABLES`).
pub(super) const NFTABLES: u16 = 10;

/// `NFPROTO_INET`: tables that see IPv4 and IPv6.
pub(super) const INET: u8 = 1;

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP`, `NLM_F_CREATE`, `NLM_F_APPEND`.
pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

/// `NLM_F_DUMP_INTR`: the rules changed while they were listed.
pub(super) const INTERRUPTED: u16 = 0x10;

/// `NLMSG_ERROR` (also an acknowledgement), `NLMSG_DONE`, `NLMSG_OVERRUN`.
pub(super) const ERROR: u16 = 2;
pub(super) const DONE: u16 = 3;
pub(super) const OVERRUN: u16 = 4;

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`: what is between takes effect together or not at all.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `NLA_F_NESTED`, and the bits of an attribute's type that are flags.
const NESTED: u16 = 0x8000;
const ATTRIBUTE_FLAGS: u16 = 0xc000;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

/// One or more messages, ready to be sent in one piece.
pub(super) struct Messages {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Messages {
    /// A single request about nftables in the family inet.
    pub(super) fn one(operation: u8, flags: u16, attributes: Attributes) -> Self {
        let mut messages = Self {
            bytes: Vec::new(),
            sequence: 0,
        };
        messages.nftables(operation, flags, attributes);
        messages
    }

    /// Operations on nftables in the family inet (number, flags, attributes) that take effect together
    /// or not at all. The last one is to be acknowledged: by then the kernel has answered every error.
    pub(super) fn transaction(operations: Vec<(u8, u16, Attributes)>) -> Self {
        let mut messages = Self {
            bytes: Vec::new(),
            sequence: 0,
        };
        messages.append(BATCH_BEGIN, REQUEST, 0, NFTABLES, Attributes::default());
        let mut waiting = operations.into_iter().peekable();
        while let Some((operation, flags, attributes)) = waiting.next() {
            let ask = if waiting.peek().is_none() { ACK } else { 0 };
            messages.nftables(operation, flags | ask, attributes);
        }
        let last = messages.sequence;
        messages.append(BATCH_END, REQUEST, 0, NFTABLES, Attributes::default());
        messages.sequence = last;
        messages
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The number of the message that is acknowledged; the first one's is 1.
    pub(super) fn sequence(&self) -> u32 {
        self.sequence
    }

    fn nftables(&mut self, operation: u8, flags: u16, attributes: Attributes) {
        let kind = (NFTABLES << 8) | u16::from(operation);
        self.append(kind, REQUEST | flags, INET, 0, attributes);
    }

    fn append(&mut self, kind: u16, flags: u16, family: u8, resource: u16, data: Attributes) {
        self.sequence += 1;
        // The netfilter header: family, version 0, subsystem of a batch.
        let length = HEADER + 4 + data.0.len();
        // What is sent is bounded far below: 64 rules are some 100 KiB.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        // The sender's address; the kernel fills it in.
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(data.0);
    }
}

/// Attributes of a message or of another attribute.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Longest here: the expressions of one rule, below 1 KiB. The kernel refuses a length that
        // is not true, so even a wrong one could set no wrong rule.
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Text with the zero byte that the kernel wants at its end.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    #[cfg(test)]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Something that is not what the format says.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a whole {what}, found {found} bytes")]
pub(crate) struct Cut {
    what: &'static str,
    found: usize,
}

/// A received message.
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// Takes the first message off `bytes`.
    pub(super) fn next(bytes: &mut &'a [u8]) -> Result<Self, Cut> {
        let cut = Cut {
            what: "netlink message",
            found: bytes.len(),
        };
        let mut rest = *bytes;
        let header = (|| {
            let length = u32::from_ne_bytes(take(&mut rest)?);
            let kind = u16::from_ne_bytes(take(&mut rest)?);
            let flags = u16::from_ne_bytes(take(&mut rest)?);
            let sequence = u32::from_ne_bytes(take(&mut rest)?);
            let _sender: [u8; 4] = take(&mut rest)?;
            let length = usize::try_from(length).ok()?;
            Some((length, kind, flags, sequence))
        })();
        let Some((length, kind, flags, sequence)) = header else {
            return Err(cut);
        };
        let payload = length
            .checked_sub(HEADER)
            .and_then(|length| rest.get(..length))
            .ok_or(cut)?;
        *bytes = after(bytes, length);
        Ok(Self {
            kind,
            flags,
            sequence,
            payload,
        })
    }

    /// The operation, if it is about nftables, and its attributes.
    pub(super) fn nftables(&self) -> Option<(u8, &'a [u8])> {
        let [subsystem, operation] = self.kind.to_be_bytes();
        let attributes = self.payload.get(4..)?;
        (u16::from(subsystem) == NFTABLES).then_some((operation, attributes))
    }

    /// The error number of `ERROR` and `DONE`: 0 for none, otherwise positive.
    pub(super) fn errno(&self) -> Result<i32, Cut> {
        let mut rest = self.payload;
        match take(&mut rest) {
            Some(bytes) => Ok(i32::from_ne_bytes(bytes).saturating_neg()),
            None => Err(Cut {
                what: "error number",
                found: self.payload.len(),
            }),
        }
    }
}

/// The attributes in `bytes`: type without its flags, and value.
pub(super) fn attributes(bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, Cut> {
    let mut rest = bytes;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let cut = Cut {
            what: "netlink attribute",
            found: rest.len(),
        };
        let mut inner = rest;
        let header = take(&mut inner).zip(take(&mut inner));
        let Some((length, kind)) = header else {
            return Err(cut);
        };
        let length = usize::from(u16::from_ne_bytes(length));
        let value = length
            .checked_sub(ATTRIBUTE_HEADER)
            .and_then(|length| inner.get(..length))
            .ok_or(cut)?;
        found.push((u16::from_ne_bytes(kind) & !ATTRIBUTE_FLAGS, value));
        rest = after(rest, length);
    }
    Ok(found)
}

/// The first attribute of this type.
pub(super) fn find<'a>(attributes: &[(u16, &'a [u8])], kind: u16) -> Option<&'a [u8]> {
    attributes
        .iter()
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| *value)
}

/// A 32-bit number in network order, if it is one.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A 64-bit number in network order, if it is one.
pub(super) fn long_number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

/// Text up to its zero byte; bytes that are no UTF-8 are replaced.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    let text = value.get(..end.unwrap_or(value.len())).unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

/// What comes after `length` bytes and their padding; the last one's padding may be missing.
fn after(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(length.next_multiple_of(4)..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_found_again() {
        let inner = Attributes::default().number(1, 7).text(2, "abc");
        let data = Attributes::default().text(1, "x").nested(4, inner);
        let messages = Messages::transaction(vec![(0, CREATE, data)]);
        let mut bytes = messages.bytes();
        let begin = Received::next(&mut bytes).unwrap();
        assert_eq!((begin.kind, begin.sequence), (0x10, 1));
        assert_eq!(begin.payload, [0, 0, 0, 10]);
        let table = Received::next(&mut bytes).unwrap();
        assert_eq!((table.kind, table.flags), (0x0a00, REQUEST | CREATE | ACK));
        let (operation, rest) = table.nftables().unwrap();
        assert_eq!(operation, 0);
        let found = attributes(rest).unwrap();
        assert_eq!(text(find(&found, 1).unwrap()), "x");
        let inner = attributes(find(&found, 4).unwrap()).unwrap();
        assert_eq!(number(find(&inner, 1).unwrap()), Some(7));
        assert_eq!(text(find(&inner, 2).unwrap()), "abc");
        assert_eq!(table.sequence, messages.sequence());
        assert_eq!(Received::next(&mut bytes).unwrap().kind, 0x11);
        assert!(bytes.is_empty());
    }

    #[test]
    fn no_cut_or_lying_input_is_read_beyond_its_end() {
        let messages = Messages::one(1, ACK, Attributes::default().text(1, "impound"));
        let whole = messages.bytes();
        for end in 0..whole.len() {
            let mut cut = &whole[..end];
            assert!(Received::next(&mut cut).is_err(), "{end}");
        }
        for length in [0_u16, 1, 3, 9, u16::MAX] {
            let mut lying = length.to_ne_bytes().to_vec();
            lying.extend([1, 0, 0, 0, 0, 0]);
            assert!(attributes(&lying).is_err(), "{length}");
        }
        let mut endless = whole.to_vec();
        endless[..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert!(Received::next(&mut endless.as_slice()).is_err());
        assert_eq!(
            attributes(&[1, 2]),
            Err(Cut {
                what: "netlink attribute",
                found: 2
            })
        );
        assert_eq!((number(&[1]), long_number(&[1; 4])), (None, None));
    }
}
