//! The files of an installation: `init` writes the ones that are missing and keeps the others.
//!
//! ```text
//! DIR/ca/{controller-ca,agent-ca,responder-ca}.{crt,key}
//! DIR/controller/{tls.crt,tls.key,agent-ca.crt,responder-ca.crt}
//! DIR/agents/<node>/{tls.crt,tls.key,controller-ca.crt}
//! DIR/responders/<name>/{tls.crt,tls.key,controller-ca.crt}
//! DIR/signing/{evidence.key,evidence.pub}
//! ```
//! Directories are 0700, keys 0600, the rest 0644. Nothing is ever overwritten.
//!
//! A certificate is complete as `<name>.crt.pending` before its key gets its name, and gets its own
//! name last: after a crash in between the next run finishes the pair.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use zeroize::Zeroizing;

use super::{CA_LIFE, Ca, Issued, LEAF_LIFE, Validity};
use crate::identity::{Namespaces, NodeName, PeerId, ResponderName, Role};

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// What an installation consists of.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Nodes that run an agent.
    pub nodes: Vec<NodeName>,
    /// People and platforms that call the controller.
    pub responders: Vec<Responder>,
    /// DNS names and IP addresses in the controller's certificate besides
    /// `controller.impound.internal`, for clients that verify the address they connected to.
    pub controller_addresses: Vec<String>,
    /// Life of the certificates below the CAs. `None`: 90 days.
    pub leaf_life: Option<time::Duration>,
}

/// Whom a certificate is issued to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Responder {
    /// Who.
    pub name: ResponderName,
    /// What they may do.
    pub role: Role,
    /// Where.
    pub namespaces: Namespaces,
}

/// One who may act everywhere.
impl From<(ResponderName, Role)> for Responder {
    fn from((name, role): (ResponderName, Role)) -> Self {
        Self {
            name,
            role,
            namespaces: Namespaces::All,
        }
    }
}

/// What happened to one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// Written now or left as it was.
    pub outcome: Outcome,
}

/// Whether a file was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not exist.
    Created,
    /// It existed and was left alone.
    Kept,
}

/// Why the files could not be written. What was written before stays; a second run continues.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or directory could not be read or written.
    #[error("could not {action} {}", path.display())]
    Io {
        /// "read", "write", "create", "remove".
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One file of a pair is there and the other one is not.
    #[error(
        "{} exists but {} does not: restore it, or remove the first one to have both issued anew",
        present.display(), missing.display()
    )]
    HalfPair {
        /// The one that is there.
        present: PathBuf,
        /// The one that is not.
        missing: PathBuf,
    },
    /// A CA's or the signing key's file cannot be used.
    #[error("{} is not usable, or a certificate below it cannot be made from it", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rcgen::Error,
    },
}

/// Writes every file of `plan` below `dir` that does not exist yet. Existing files are kept, also
/// when they differ from what the plan would give (a role, an address): remove them to have them
/// issued anew.
///
/// # Errors
/// See [`PkiError`].
pub fn init(dir: &Path, plan: &Plan) -> Result<Vec<Written>, PkiError> {
    let mut files = Files {
        written: Vec::new(),
    };
    let controller_ca = files.ca(dir, "controller-ca")?;
    let agent_ca = files.ca(dir, "agent-ca")?;
    let responder_ca = files.ca(dir, "responder-ca")?;
    let life = plan.leaf_life.unwrap_or(LEAF_LIFE);

    let controller = dir.join("controller");
    files.leaf(
        &controller,
        &controller_ca,
        &PeerId::Controller,
        &plan.controller_addresses,
        life,
    )?;
    files.write(
        &controller.join("agent-ca.crt"),
        agent_ca.certificate(),
        PUBLIC,
    )?;
    files.write(
        &controller.join("responder-ca.crt"),
        responder_ca.certificate(),
        PUBLIC,
    )?;

    for node in &plan.nodes {
        let agent = dir.join("agents").join(node.as_str());
        files.leaf(
            &agent,
            &agent_ca,
            &PeerId::Agent { node: node.clone() },
            &[],
            life,
        )?;
        files.write(
            &agent.join("controller-ca.crt"),
            controller_ca.certificate(),
            PUBLIC,
        )?;
    }
    for one in &plan.responders {
        let responder = dir.join("responders").join(one.name.as_str());
        let peer = PeerId::Responder {
            name: one.name.clone(),
            role: one.role,
            namespaces: one.namespaces.clone(),
        };
        files.leaf(&responder, &responder_ca, &peer, &[], life)?;
        files.write(
            &responder.join("controller-ca.crt"),
            controller_ca.certificate(),
            PUBLIC,
        )?;
    }
    files.signing_key(&dir.join("signing"))?;
    Ok(files.written)
}

struct Files {
    written: Vec<Written>,
}

impl Files {
    fn ca(&mut self, dir: &Path, name: &str) -> Result<Ca, PkiError> {
        let certificate = dir.join("ca").join(format!("{name}.crt"));
        let key = dir.join("ca").join(format!("{name}.key"));
        let unusable = |source| PkiError::Unusable {
            path: certificate.clone(),
            source,
        };
        if self.pair_exists(&certificate, &key)? {
            return Ca::from_pem(&read(&certificate)?, &read(&key)?).map_err(unusable);
        }
        let ca = Ca::generate(&format!("impound {name}"), Validity::from_now(CA_LIFE))
            .map_err(unusable)?;
        let issued = Issued {
            certificate: ca.certificate().to_owned(),
            key: ca.key(),
        };
        self.write_pair(&certificate, &key, &issued)?;
        Ok(ca)
    }

    fn leaf(
        &mut self,
        dir: &Path,
        ca: &Ca,
        peer: &PeerId,
        addresses: &[String],
        life: time::Duration,
    ) -> Result<(), PkiError> {
        let certificate = dir.join("tls.crt");
        let key = dir.join("tls.key");
        if self.pair_exists(&certificate, &key)? {
            return Ok(());
        }
        let issued = ca
            .issue(peer, addresses, Validity::from_now(life))
            .map_err(|source| PkiError::Unusable {
                path: certificate.clone(),
                source,
            })?;
        self.write_pair(&certificate, &key, &issued)
    }

    /// A public key that is missing beside its private key is derived from it.
    fn signing_key(&mut self, dir: &Path) -> Result<(), PkiError> {
        let private = dir.join("evidence.key");
        let public = dir.join("evidence.pub");
        let unusable = |source| PkiError::Unusable {
            path: private.clone(),
            source,
        };
        let key = if exists(&private)? {
            KeyPair::from_pem(&read(&private)?).map_err(unusable)?
        } else if exists(&public)? {
            return Err(PkiError::HalfPair {
                present: public,
                missing: private,
            });
        } else {
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?
        };
        self.write(&private, &Zeroizing::new(key.serialize_pem()), PRIVATE)?;
        self.write(&public, &key.public_key_pem(), PUBLIC)
    }

    fn pair_exists(&mut self, certificate: &Path, key: &Path) -> Result<bool, PkiError> {
        let half = |present: &Path, missing: &Path| PkiError::HalfPair {
            present: present.to_owned(),
            missing: missing.to_owned(),
        };
        match (exists(certificate)?, exists(key)?) {
            (true, true) => {
                self.note(certificate, Outcome::Kept);
                self.note(key, Outcome::Kept);
                Ok(true)
            }
            (false, false) => Ok(false),
            (true, false) => Err(half(certificate, key)),
            (false, true) if self.finish_pair(certificate, key)? => Ok(true),
            (false, true) => Err(half(key, certificate)),
        }
    }

    fn write_pair(
        &mut self,
        certificate: &Path,
        key: &Path,
        issued: &Issued,
    ) -> Result<(), PkiError> {
        let pending = pending(certificate);
        // Of a run that ended before its key had a name.
        remove(&pending)?;
        self.create(&pending, &issued.certificate, PUBLIC)?;
        self.create(key, &issued.key, PRIVATE)?;
        self.note(key, Outcome::Created);
        self.install(&pending, certificate)
    }

    /// Goes on where a run ended between a key and its certificate. Whether it did: only with a
    /// certificate of this very key.
    fn finish_pair(&mut self, certificate: &Path, key: &Path) -> Result<bool, PkiError> {
        let pending = pending(certificate);
        if !exists(&pending)? || !belong(&read(&pending)?, &read(key)?) {
            return Ok(false);
        }
        self.note(key, Outcome::Kept);
        self.install(&pending, certificate)?;
        Ok(true)
    }

    fn install(&mut self, pending: &Path, certificate: &Path) -> Result<(), PkiError> {
        fs::hard_link(pending, certificate).map_err(|source| PkiError::Io {
            action: "write",
            path: certificate.to_owned(),
            source,
        })?;
        self.note(certificate, Outcome::Created);
        remove(pending)
    }

    /// Writes a file that does not exist yet: under a temporary name, then linked to its own, so
    /// that a crash leaves no half file and an existing one is never replaced.
    fn write(&mut self, path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
        if exists(path)? {
            self.note(path, Outcome::Kept);
            return Ok(());
        }
        self.create(path, text, mode)?;
        self.note(path, Outcome::Created);
        Ok(())
    }

    fn create(&self, path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|source| PkiError::Io {
                    action: "create",
                    path: parent.to_owned(),
                    source,
                })?;
        }
        let failed = |source| PkiError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        };
        let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
        // A crashed run may have had the same process id, in a container above all.
        remove(&temporary)?;
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::hard_link(&temporary, path));
        let removed = fs::remove_file(&temporary);
        written.and(removed).map_err(failed)
    }

    fn note(&mut self, path: &Path, outcome: Outcome) {
        self.written.push(Written {
            path: path.to_owned(),
            outcome,
        });
    }
}

fn pending(certificate: &Path) -> PathBuf {
    certificate.with_extension("crt.pending")
}

/// Whether the certificate is one of the key, both PEM.
fn belong(certificate: &str, key: &str) -> bool {
    let Ok(key) = KeyPair::from_pem(key) else {
        return false;
    };
    x509_parser::pem::parse_x509_pem(certificate.as_bytes()).is_ok_and(|(_, pem)| {
        pem.parse_x509()
            .is_ok_and(|parsed| parsed.public_key().raw == key.subject_public_key_info())
    })
}

/// Removes a file of ours, if it is there.
fn remove(path: &Path) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PkiError::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, PkiError> {
    fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|source| PkiError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })
}

fn exists(path: &Path) -> Result<bool, PkiError> {
    path.try_exists().map_err(|source| PkiError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })
}
