//! `evidence-keys.json`: every public key that evidence was ever signed with, and when each was in use,
//! so that a key can be replaced and what it signed is still checked years later.
//!
//! ```text
//! {
//!   "keys": [
//!     {
//!       "key_id": "<SHA-256 of the SPKI DER>",
//!       "public_key": "-----BEGIN PUBLIC KEY-----\n…",
//!       "valid_from": "2026-01-31T03:04:05.678901Z",
//!       "valid_until": "2027-01-31T03:04:05.678901Z"
//!     }
//!   ]
//! }
//! ```
//! The list itself is trusted as a public key is: it comes from who runs the controller.

use serde::{Deserialize, Serialize};

use crate::digest::Sha256;
use crate::sign::{KeyError, VerifyingKey};
use crate::timestamp::Timestamp;

/// Longest list that is read, in bytes: some thousand keys.
pub const KEYRING_LIMIT: u64 = 1 << 20;

/// The keys in the order in which they were in use.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyring {
    keys: Vec<Listed>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    key_id: Sha256,
    public_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    valid_from: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    valid_until: Option<Timestamp>,
}

impl Keyring {
    /// From the bytes of the file.
    pub fn from_json(bytes: &[u8]) -> Result<Self, KeyError> {
        let ring: Self =
            serde_json::from_slice(bytes).map_err(|error| KeyError::Ring(error.to_string()))?;
        ring.keys()?;
        Ok(ring)
    }

    /// The bytes of the file.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Serialising to memory fails only for maps with keys that are no strings; there are none.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// The keys, each with the time that it was in use.
    pub fn keys(&self) -> Result<Vec<VerifyingKey>, KeyError> {
        self.keys.iter().map(Listed::key).collect()
    }

    /// Whether the key is listed.
    #[must_use]
    pub fn has(&self, key: &VerifyingKey) -> bool {
        self.keys.iter().any(|listed| listed.key_id == key.key_id())
    }

    /// Adds the key that is in use from `from` on. None: since before there was a list. The one before
    /// is out of use only when the next but one comes: until the controller is started anew, and for
    /// what it began to seal before, it signs with that.
    pub fn turn_to(&mut self, key: &VerifyingKey, from: Option<Timestamp>) -> Result<(), KeyError> {
        let former = self.keys.len().saturating_sub(1);
        for listed in self.keys.iter_mut().take(former) {
            listed.valid_until = listed.valid_until.or(from);
        }
        self.keys.push(Listed {
            key_id: key.key_id(),
            public_key: key.to_pem()?,
            valid_from: from,
            valid_until: None,
        });
        Ok(())
    }
}

impl Listed {
    fn key(&self) -> Result<VerifyingKey, KeyError> {
        let key = VerifyingKey::from_pem(&self.public_key)?;
        if key.key_id() != self.key_id {
            let why = format!("key {} is listed as {}", key.key_id(), self.key_id);
            return Err(KeyError::Ring(why));
        }
        Ok(key.valid(self.valid_from, self.valid_until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::SigningKey;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_is_in_use_until_the_next_but_one_comes() {
        let mut ring = Keyring::default();
        for from in [
            None,
            Some("2027-01-01T00:00:00.000000Z"),
            Some("2028-01-01T00:00:00.000000Z"),
        ] {
            let key = SigningKey::generate().unwrap();
            ring.turn_to(key.verifying_key(), from.map(at)).unwrap();
        }
        let read = Keyring::from_json(&ring.to_json()).unwrap();
        let keys = read.keys().unwrap();
        let good = |time| -> Vec<bool> {
            keys.iter()
                .map(|key| key.objection(at(time)).is_none())
                .collect()
        };
        assert_eq!(good("2026-06-01T00:00:00.000000Z"), [true, false, false]);
        assert_eq!(good("2027-06-01T00:00:00.000000Z"), [true, true, false]);
        assert_eq!(good("2028-06-01T00:00:00.000000Z"), [false, true, true]);
    }

    #[test]
    fn a_key_under_another_keys_name_is_refused() {
        let mut ring = Keyring::default();
        let key = SigningKey::generate().unwrap();
        ring.turn_to(key.verifying_key(), None).unwrap();
        ring.keys[0].key_id = Sha256::of(b"other");
        let refused = Keyring::from_json(&ring.to_json()).unwrap_err().to_string();
        assert!(refused.contains("is listed as"), "{refused}");
    }
}
