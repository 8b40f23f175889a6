//! A new object whose bytes are stored in another form than they come in: encoded between whoever writes and a
//! store's own writer, with both sides hashed. What the store reads back must be what came out here.

use async_trait::async_trait;
use bytes::Bytes;
use impound_evidence::age::AgeError;
use impound_evidence::{Encoded, Encoder};

use super::{Content, ObjectWriter, Receipt, StoreError, Unfinished};

/// Bytes from which on encoding is no work for a thread that others wait for: some 50 µs.
const LARGE: usize = 64 << 10;
/// Most bytes that a writer takes at once.
const WRITE: usize = 1 << 20;

/// Encodes what is written. Memory: what is written, once more, while it is encoded.
pub struct EncodedWriter {
    at: String,
    inner: Box<dyn ObjectWriter>,
    state: State,
}

enum State {
    Encoding(Box<Encoder>),
    Ended(Encoded),
    /// A failure, or a write that was given up, has left it undecided what was encoded.
    Lost,
}

impl EncodedWriter {
    /// Writes to `inner` what `encoder` makes. `at`: the object, for messages.
    #[must_use]
    pub fn new(at: String, inner: Box<dyn ObjectWriter>, encoder: Encoder) -> Self {
        Self {
            at,
            inner,
            state: State::Encoding(Box::new(encoder)),
        }
    }

    async fn put(&mut self, bytes: Vec<u8>) -> Result<(), StoreError> {
        let mut bytes = Bytes::from(bytes);
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(WRITE));
            self.inner.write(piece).await?;
        }
        Ok(())
    }

    fn lost(&self, why: impl Into<String>) -> StoreError {
        StoreError::Encoding {
            at: self.at.clone(),
            why: why.into(),
        }
    }

    fn failed(&self, error: &AgeError) -> StoreError {
        self.lost(error.to_string())
    }
}

#[async_trait]
impl ObjectWriter for EncodedWriter {
    async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        let State::Encoding(mut encoder) = std::mem::replace(&mut self.state, State::Lost) else {
            return Err(self.lost("bytes came after its end, or after a failure"));
        };
        let large = data.len() >= LARGE;
        let encode = move || {
            let out = encoder.update(&data);
            (encoder, out)
        };
        let (encoder, out) = match large {
            true => tokio::task::spawn_blocking(encode)
                .await
                .map_err(|_| self.lost("its thread failed"))?,
            false => encode(),
        };
        let out = out.map_err(|error| self.failed(&error))?;
        self.put(out).await?;
        self.state = State::Encoding(encoder);
        Ok(())
    }

    async fn end(&mut self) -> Result<Option<Encoded>, StoreError> {
        let encoder = match std::mem::replace(&mut self.state, State::Lost) {
            State::Encoding(encoder) => encoder,
            State::Ended(encoded) => {
                self.state = State::Ended(encoded.clone());
                return Ok(Some(encoded));
            }
            State::Lost => return Err(self.lost("it failed before its end")),
        };
        let (rest, encoded) = encoder.finish().map_err(|error| self.failed(&error))?;
        self.put(rest).await?;
        self.state = State::Ended(encoded.clone());
        Ok(Some(encoded))
    }

    async fn finish(mut self: Box<Self>, expected: Content) -> Result<Receipt, StoreError> {
        let Some(encoded) = self.end().await? else {
            return Err(self.lost("it has no end"));
        };
        let (plain, stored) = both(&encoded);
        if plain != expected {
            return Err(StoreError::Mismatch {
                at: self.at.clone(),
                expected: expected.into(),
                found: plain.into(),
            });
        }
        self.inner.finish(stored).await
    }

    async fn keep(self: Box<Self>) -> Result<Box<dyn Unfinished>, StoreError> {
        self.inner.keep().await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        self.inner.abort().await
    }
}

/// What went in, and what came out.
#[must_use]
pub fn both(encoded: &Encoded) -> (Content, Content) {
    let content = |(size, sha256)| Content { size, sha256 };
    (content(encoded.plain), content(encoded.stored))
}
