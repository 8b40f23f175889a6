//! `manifest.sigstore.json`: a Sigstore bundle v0.3 with the signature over the manifest.
//!
//! The bundle holds a DSSE envelope whose payload is the manifest's bytes, so it can be checked by
//! itself. It names the key by hint only (the SHA-256 of its SPKI DER): who checks must bring the key.
//! `cosign verify-blob-attestation --key evidence.pub --bundle manifest.sigstore.json` reads it.
//!
//! By hand, with nothing of ours:
//!
//! ```text
//! jq -r .dsseEnvelope.payload manifest.sigstore.json | base64 -d > payload
//! cmp payload manifest.json
//! jq -r '.dsseEnvelope.signatures[0].sig' manifest.sigstore.json | base64 -d > sig
//! { printf 'DSSEv1 28 application/vnd.in-toto+json %s ' "$(wc -c < payload)"; cat payload; } > signed
//! openssl dgst -sha256 -verify evidence.pub -signature sig signed
//! ```
//!
//! That the hint is the key's and that the signature's s is low, which leaves one good bundle of a
//! manifest and a key, `verify.sh` checks besides.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::manifest::MANIFEST_LIMIT;
use crate::sign::{KeyError, Signer, VerifyingKey};

/// Media type of a Sigstore bundle v0.3.
pub const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// DSSE payload type of an in-toto Statement.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// Longest bundle that is read, in bytes: base64 takes four thirds of the manifest, and the frame
/// around it well under 64 KiB.
pub const BUNDLE_LIMIT: u64 = MANIFEST_LIMIT / 3 * 4 + (64 << 10);

/// The bytes of `manifest.sigstore.json` for the manifest in `manifest_bytes`; by another key, those of
/// `signatures/<key id>.sigstore.json`.
pub fn sign_manifest(manifest_bytes: &[u8], key: &dyn Signer) -> Result<Vec<u8>, KeyError> {
    let signature = key.sign(&pre_authentication(PAYLOAD_TYPE, manifest_bytes))?;
    Ok(encode(&Bundle {
        media_type: BUNDLE_TYPE.to_owned(),
        verification_material: Material {
            public_key: PublicKey {
                hint: key.verifying_key().key_id().to_string(),
            },
        },
        dsse_envelope: Envelope {
            payload: STANDARD.encode(manifest_bytes),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![Signature {
                sig: STANDARD.encode(signature),
            }],
        },
    }))
}

/// What a bundle holds, before anybody should believe it.
pub struct OpenBundle {
    /// The manifest's bytes, as far as the bundle says.
    pub payload: Vec<u8>,
    hint: String,
    signature: Vec<u8>,
}

impl OpenBundle {
    /// Reads the bundle in `bytes`; only the exact form that [`sign_manifest`] writes is taken.
    pub fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        if bytes.len() as u64 > BUNDLE_LIMIT {
            return Err(BundleError::TooLong(bytes.len() as u64));
        }
        let bundle: Bundle =
            serde_json::from_slice(bytes).map_err(|error| BundleError::Form(error.to_string()))?;
        let expect = |field, expected, got: &str| match got == expected {
            true => Ok(()),
            false => Err(BundleError::Type {
                field,
                expected,
                got: got.chars().take(200).collect(),
            }),
        };
        expect("mediaType", BUNDLE_TYPE, &bundle.media_type)?;
        expect(
            "payloadType",
            PAYLOAD_TYPE,
            &bundle.dsse_envelope.payload_type,
        )?;
        let [signature] = bundle.dsse_envelope.signatures.as_slice() else {
            return Err(BundleError::Signatures(
                bundle.dsse_envelope.signatures.len(),
            ));
        };
        let base64 = |field, text: &str| {
            STANDARD
                .decode(text)
                .map_err(|error| BundleError::Base64 { field, error })
        };
        let open = Self {
            payload: base64("payload", &bundle.dsse_envelope.payload)?,
            signature: base64("sig", &signature.sig)?,
            hint: bundle
                .verification_material
                .public_key
                .hint
                .chars()
                .take(128)
                .collect(),
        };
        if encode(&bundle) != bytes {
            return Err(BundleError::NotCanonical);
        }
        Ok(open)
    }

    /// The id of the key that it says it is signed with.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// The key of `keys` that the hint names, if it signed the payload.
    pub fn verify<'k>(&self, keys: &'k [VerifyingKey]) -> Result<&'k VerifyingKey, BundleError> {
        if let Some(key) = keys
            .iter()
            .find(|key| key.key_id().to_string() == self.hint)
        {
            let signed = pre_authentication(PAYLOAD_TYPE, &self.payload);
            return match key.verifies(&signed, &self.signature) {
                true => Ok(key),
                false => Err(BundleError::Signature(self.hint.clone())),
            };
        }
        let given: Vec<String> = keys.iter().map(|key| key.key_id().to_string()).collect();
        Err(BundleError::Key {
            hint: self.hint.clone(),
            given: given.join(", "),
        })
    }
}

#[cfg(test)]
impl OpenBundle {
    pub(crate) fn signature(&self) -> &[u8] {
        &self.signature
    }
}

/// A bundle that is none, or is not signed as it should be.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Too long to be read.
    #[error("expected a bundle of at most {BUNDLE_LIMIT} bytes, got {0}")]
    TooLong(u64),
    /// No JSON of the expected form; says line, column and what was expected.
    #[error("expected a Sigstore bundle with a public key's hint and a DSSE envelope: {0}")]
    Form(String),
    /// Another type.
    #[error("expected {field} {expected:?}, got {got:?}")]
    Type {
        /// The field.
        field: &'static str,
        /// Our type.
        expected: &'static str,
        /// What stands there.
        got: String,
    },
    /// Not one signature.
    #[error("expected one signature, got {0}")]
    Signatures(usize),
    /// A field that is no base64.
    #[error("{field}: expected base64 with padding: {error}")]
    Base64 {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        error: base64::DecodeError,
    },
    /// Readable, but not as we would write it.
    #[error(
        "its bytes are not the canonical encoding of what they say; the bundle was edited or re-formatted"
    )]
    NotCanonical,
    /// The named key is there, but did not make this signature over this payload.
    #[error(
        "the signature does not fit: key {0} did not sign this manifest; the manifest in the bundle, the signature or the hint was changed"
    )]
    Signature(String),
    /// Signed by somebody else.
    #[error(
        "signed with key {hint}, expected one of the given keys: {given}; get the right public key from who runs the controller, not from where the evidence came from"
    )]
    Key {
        /// The key that the bundle names.
        hint: String,
        /// The keys that were given.
        given: String,
    },
}

/// DSSE's pre-authentication encoding: what is really signed, so that a payload of one type can't
/// be passed off as another.
fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

fn encode(bundle: &Bundle) -> Vec<u8> {
    // Serialising to memory fails only for maps with keys that are no strings; there are none.
    let mut bytes = serde_json::to_vec_pretty(bundle).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Material {
    public_key: PublicKey,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicKey {
    hint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    sig: String,
}

#[cfg(test)]
mod tests;
