//! The header of an age file: the file key, wrapped for each recipient, and a MAC with it over all of that.

use std::io::{self, BufRead, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::{AgeError, Identity, OpenError, Recipient, TAG, broken, random};

const VERSION: &str = "age-encryption.org/v1";
const LABEL: &[u8] = b"age-encryption.org/v1/X25519";
/// Most bytes of a header: many times what the recipients that are allowed here need. `verify.sh` knows it, too.
pub(super) const LONGEST: u64 = 16 << 10;

/// A header for `recipients`.
pub(super) fn write(file_key: &[u8; 16], recipients: &[Recipient]) -> Result<Vec<u8>, AgeError> {
    let mut text = format!("{VERSION}\n");
    for recipient in recipients {
        let ephemeral = StaticSecret::from(*random::<32>()?);
        let share = PublicKey::from(&ephemeral);
        let key = wrapping_key(
            &ephemeral,
            &PublicKey::from(recipient.public),
            &share,
            &recipient.public,
        );
        let key = key.ok_or(AgeError::Cipher("a recipient's public key is none"))?;
        let mut body = file_key.to_vec();
        let sealed = key.seal_in_place_append_tag(zero(), Aad::empty(), &mut body);
        sealed.map_err(|_| AgeError::Cipher("the cipher failed"))?;
        // 32 bytes are less than a full line.
        text.push_str(&format!(
            "-> X25519 {}\n{}\n",
            STANDARD_NO_PAD.encode(share.as_bytes()),
            STANDARD_NO_PAD.encode(&body)
        ));
    }
    text.push_str("---");
    let key = mac_key(file_key).ok_or(AgeError::Cipher("no key came of it"))?;
    let mac = hmac::sign(&key, text.as_bytes());
    text.push_str(&format!(" {}\n", STANDARD_NO_PAD.encode(mac.as_ref())));
    Ok(text.into_bytes())
}

/// A header as it stands in a file.
pub(super) struct Header {
    recipients: Vec<Wrapped>,
    /// What the MAC is over.
    signed: Vec<u8>,
    mac: Vec<u8>,
    /// Bytes of all of it.
    pub(super) length: u64,
}

/// The file key, wrapped for one recipient.
struct Wrapped {
    share: [u8; 32],
    body: [u8; 16 + TAG],
}

/// Reads a header to its end. Only the form that evidence has: recipients of the kind X25519, at least one.
pub(super) fn read(from: &mut impl BufRead) -> io::Result<Header> {
    let mut room = from.take(LONGEST);
    let mut all = Vec::new();
    let mut line = || -> io::Result<(Vec<u8>, usize)> {
        let start = all.len();
        room.read_until(b'\n', &mut all)?;
        let line = all.get(start..).unwrap_or_default();
        let line = line.strip_suffix(b"\n");
        let line = line.ok_or_else(|| broken("its header does not end"))?;
        Ok((line.to_vec(), start))
    };
    if line()?.0 != VERSION.as_bytes() {
        return Err(broken("it does not begin with the version that is known"));
    }
    let mut recipients = Vec::new();
    loop {
        let (text, start) = line()?;
        if let Some(mac) = text.strip_prefix(b"--- ") {
            if recipients.is_empty() {
                return Err(broken("its header names no recipient"));
            }
            let mac = decode(mac)?.to_vec();
            let length = (start + text.len() + 1) as u64;
            all.truncate(start + 3);
            return Ok(Header {
                recipients,
                signed: all,
                mac,
                length,
            });
        }
        let share = text.strip_prefix(b"-> X25519 ");
        let share =
            share.ok_or_else(|| broken("its header has something else than X25519 recipients"))?;
        recipients.push(Wrapped {
            share: decode(share)?,
            body: decode(&line()?.0)?,
        });
    }
}

impl Header {
    /// The file key, unwrapped with the first of `identities` that can.
    pub(super) fn open(&self, identities: &[Identity]) -> Result<Zeroizing<[u8; 16]>, OpenError> {
        let found = self.recipients.iter().find_map(|wrapped| {
            identities
                .iter()
                .find_map(|identity| unwrap(identity, wrapped))
        });
        let file_key = found.ok_or(OpenError::NotForUs)?;
        let key = mac_key(&file_key).ok_or_else(|| broken("no key came of it"))?;
        hmac::verify(&key, &self.signed, &self.mac)
            .map_err(|_| broken("its header was changed"))?;
        Ok(file_key)
    }
}

/// 32 bytes out of a secret.
pub(super) fn derive(secret: &[u8], salt: &[u8], info: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let info = [info];
    let derived = secret.expand(&info, hkdf::HKDF_SHA256).ok()?;
    derived.fill(key.as_mut_slice()).ok()?;
    Some(key)
}

fn unwrap(identity: &Identity, wrapped: &Wrapped) -> Option<Zeroizing<[u8; 16]>> {
    let share = PublicKey::from(wrapped.share);
    let key = wrapping_key(
        &identity.secret,
        &share,
        &share,
        &identity.recipient().public,
    )?;
    let mut body = Zeroizing::new(wrapped.body);
    let opened = key
        .open_in_place(zero(), Aad::empty(), body.as_mut_slice())
        .ok()?;
    Some(Zeroizing::new(<[u8; 16]>::try_from(&*opened).ok()?))
}

/// What wraps the file key, of one's secret and the other's public key. None if the two come to nothing secret.
fn wrapping_key(
    secret: &StaticSecret,
    other: &PublicKey,
    share: &PublicKey,
    recipient: &[u8; 32],
) -> Option<LessSafeKey> {
    let shared = secret.diffie_hellman(other);
    if !shared.was_contributory() {
        return None;
    }
    let salt = [*share.as_bytes(), *recipient].concat();
    let key = derive(shared.as_bytes(), &salt, LABEL)?;
    Some(LessSafeKey::new(
        UnboundKey::new(&CHACHA20_POLY1305, key.as_slice()).ok()?,
    ))
}

fn mac_key(file_key: &[u8; 16]) -> Option<hmac::Key> {
    let key = derive(file_key, &[], b"header")?;
    Some(hmac::Key::new(hmac::HMAC_SHA256, key.as_slice()))
}

/// A wrapping key is used once.
fn zero() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// 32 bytes, of which the share, the wrapped key and the MAC each have as many; only the one spelling of them.
fn decode(text: &[u8]) -> io::Result<[u8; 32]> {
    let bytes = STANDARD_NO_PAD.decode(text).ok();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| broken("its header has something that is not 32 bytes in base64"))
}
