//! The parts of a DER value, one after the other: what a token is taken apart with.
//!
//! Every level is entered by name and none by recursion, so nothing nests deeper than the format does.

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Decode as _, Reader as _, SliceReader, Tag, TagNumber};

use super::StampError;

/// A value with its tag.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) tag: Tag,
    /// Tag and length included.
    pub(super) whole: &'a [u8],
    pub(super) value: &'a [u8],
}

/// What is left of a constructed value.
pub(super) struct Parts<'a> {
    reader: SliceReader<'a>,
    /// What it is, for errors.
    what: &'static str,
}

/// The tag of a field `[number]` that holds other values.
pub(super) fn field(number: u32) -> Tag {
    Tag::ContextSpecific {
        constructed: true,
        number: TagNumber(number),
    }
}

impl<'a> Part<'a> {
    /// The one value that `bytes` are, of the given tag.
    pub(super) fn only(bytes: &'a [u8], tag: Tag, what: &'static str) -> Result<Self, StampError> {
        let mut parts = Parts::of(bytes, what)?;
        let part = parts.next(tag)?;
        parts.end()?;
        Ok(part)
    }

    /// What is in it.
    pub(super) fn parts(self, what: &'static str) -> Result<Parts<'a>, StampError> {
        Parts::of(self.value, what)
    }
}

impl<'a> Parts<'a> {
    pub(super) fn of(bytes: &'a [u8], what: &'static str) -> Result<Self, StampError> {
        let reader = SliceReader::new(bytes).map_err(|_| StampError::Form(what))?;
        Ok(Self { reader, what })
    }

    /// The next value, whatever it is; none behind the last one.
    pub(super) fn any(&mut self) -> Result<Option<Part<'a>>, StampError> {
        if self.reader.is_finished() {
            return Ok(None);
        }
        let form = |_| StampError::Form(self.what);
        let whole = self.reader.tlv_bytes().map_err(form)?;
        let any = AnyRef::from_der(whole).map_err(form)?;
        Ok(Some(Part {
            tag: any.header().tag(),
            whole,
            value: any.value(),
        }))
    }

    /// The next value, which must have this tag.
    pub(super) fn next(&mut self, tag: Tag) -> Result<Part<'a>, StampError> {
        let part = self.any()?.filter(|part| part.tag == tag);
        part.ok_or(StampError::Form(self.what))
    }

    /// The next value if it has this tag.
    pub(super) fn optional(&mut self, tag: Tag) -> Result<Option<Part<'a>>, StampError> {
        let is_next = Tag::peek(&self.reader).is_ok_and(|next| next == tag);
        is_next.then(|| self.next(tag)).transpose()
    }

    /// The next value, an object identifier.
    pub(super) fn oid(&mut self) -> Result<ObjectIdentifier, StampError> {
        let part = self.next(Tag::ObjectIdentifier)?;
        ObjectIdentifier::from_bytes(part.value).map_err(|_| StampError::Form(self.what))
    }

    /// Fails if there is more.
    pub(super) fn end(self) -> Result<(), StampError> {
        match self.reader.is_finished() {
            true => Ok(()),
            false => Err(StampError::Form(self.what)),
        }
    }
}
