//! Who is at the other end: [`PeerId`], read from a certificate's single URI name.
//!
//! Every decision about a peer (may it call, whom do we log, who asked for evidence) is made on this
//! type and on nothing else of the certificate. A certificate that a private CA signed but that
//! carries no name, two names or a malformed one has no identity and is refused.

mod namespaces;

use std::fmt;
use std::str::FromStr;

use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use namespaces::{Granted, Namespaces};

/// Trust domain of every identity.
const PREFIX: &str = "spiffe://impound.dev/";

/// Longest node name: `<node>.agent.impound.internal` must fit in the 253 bytes of a DNS name.
const MAX_NODE: usize = 253 - AGENT_DNS_SUFFIX.len();

const AGENT_DNS_SUFFIX: &str = ".agent.impound.internal";
const CONTROLLER_DNS: &str = "controller.impound.internal";

/// Longest name of a responder, as long as a DNS name or an e-mail address gets.
const MAX_RESPONDER: usize = 253;

/// The identity of a peer, proven by its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerId {
    /// The controller (every replica has the same identity).
    Controller,
    /// The agent of one node.
    Agent {
        /// Name of the Kubernetes Node object.
        node: NodeName,
    },
    /// A person or platform that calls the controller.
    Responder {
        /// Who, as recorded in the custody log.
        name: ResponderName,
        /// What they may do.
        role: Role,
        /// Where they may do it.
        namespaces: Namespaces,
    },
}

/// What a responder may do; each role may also do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads state, no evidence and no changes.
    Viewer,
    /// Contains, collects, releases.
    Responder,
    /// Reads evidence.
    Custodian,
}

/// Name of a Kubernetes Node: a DNS-1123 subdomain of at most 230 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// Name of a responder: 1 to 253 characters of `[A-Za-z0-9@._-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResponderName(String);

impl PeerId {
    /// The identity of the agent on `node`.
    ///
    /// # Errors
    /// If `node` is not a name that a Node object can have.
    pub fn agent(node: &str) -> Result<Self, IdentityError> {
        Ok(Self::Agent {
            node: node.parse()?,
        })
    }

    /// The identity of a responder who may act everywhere.
    ///
    /// # Errors
    /// If `name` is empty, too long or has other characters than `[A-Za-z0-9@._-]`.
    pub fn responder(name: &str, role: Role) -> Result<Self, IdentityError> {
        Self::responder_in(name, role, Namespaces::All)
    }

    /// The identity of a responder who may act in `namespaces`.
    ///
    /// # Errors
    /// As [`PeerId::responder`].
    pub fn responder_in(
        name: &str,
        role: Role,
        namespaces: Namespaces,
    ) -> Result<Self, IdentityError> {
        Ok(Self::Responder {
            name: name.parse()?,
            role,
            namespaces,
        })
    }

    /// Reads the identity out of a DER certificate. Says nothing about who signed it.
    ///
    /// # Errors
    /// If the certificate cannot be parsed, or does not have exactly one URI name, or that name is no
    /// identity of ours.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        if !rest.is_empty() {
            return Err(IdentityError::Certificate(format!(
                "{} bytes after its end",
                rest.len()
            )));
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris.as_slice() {
            [uri] => uri.parse(),
            others => Err(IdentityError::NotOneUri {
                found: others.len(),
            }),
        }
    }

    /// The uid of the Node object that an agent's certificate was issued for: its subject's serial number.
    /// `None` in a certificate of a static installation, which is issued before there is a node.
    ///
    /// # Errors
    /// If the certificate cannot be parsed.
    pub fn node_uid(der: &[u8]) -> Result<Option<String>, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let uid = certificate
            .subject()
            .iter_by_oid(&OID_X509_SERIALNUMBER)
            .find_map(|attribute| attribute.as_str().ok().map(str::to_owned));
        Ok(uid)
    }

    /// The DNS name in this peer's certificate, which a client verifies. A responder has none: it
    /// is never connected to.
    #[must_use]
    pub fn dns_name(&self) -> Option<String> {
        match self {
            Self::Controller => Some(CONTROLLER_DNS.to_owned()),
            Self::Agent { node } => Some(format!("{node}{AGENT_DNS_SUFFIX}")),
            Self::Responder { .. } => None,
        }
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => write!(f, "{PREFIX}controller"),
            Self::Agent { node } => write!(f, "{PREFIX}agent/{node}"),
            Self::Responder {
                name,
                role,
                namespaces,
            } => write!(f, "{PREFIX}responder/{role}/{name}{namespaces}"),
        }
    }
}

impl FromStr for PeerId {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let unknown = || IdentityError::NotOurs {
            uri: printable(uri),
        };
        let segments: Vec<&str> = uri
            .strip_prefix(PREFIX)
            .ok_or_else(unknown)?
            .split('/')
            .collect();
        match segments.as_slice() {
            ["controller"] => Ok(Self::Controller),
            ["agent", node] => Self::agent(node),
            ["responder", role, name] => Self::responder(name, role.parse()?),
            ["responder", role, name, "namespaces", names @ ..] => {
                Self::responder_in(name, role.parse()?, Namespaces::parse(names)?)
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Responder => "responder",
            Self::Custodian => "custodian",
        })
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "responder" => Ok(Self::Responder),
            "custodian" => Ok(Self::Custodian),
            _ => Err(IdentityError::Role {
                found: printable(text),
            }),
        }
    }
}

impl FromStr for NodeName {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let label = |label: &str| {
            let bytes = label.as_bytes();
            // 63: the longest label of a DNS name.
            bytes.len() <= 63
                && bytes.first().copied().is_some_and(alphanumeric)
                && bytes.last().copied().is_some_and(alphanumeric)
                && bytes
                    .iter()
                    .all(|byte| alphanumeric(*byte) || *byte == b'-')
        };
        if text.len() <= MAX_NODE && text.split('.').all(label) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdentityError::Node {
                found: printable(text),
            })
        }
    }
}

impl FromStr for ResponderName {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"@._-".contains(&byte);
        // "." and ".." would be other directories where a name becomes a path.
        let dots = text.bytes().all(|byte| byte == b'.');
        if (1..=MAX_RESPONDER).contains(&text.len()) && !dots && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdentityError::Responder {
                found: printable(text),
            })
        }
    }
}

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ResponderName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ResponderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a certificate or a text is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("the certificate cannot be parsed: {0}")]
    Certificate(String),
    /// None or several URI names.
    #[error("expected exactly one URI subject alternative name in the certificate, found {found}")]
    NotOneUri {
        /// How many there are.
        found: usize,
    },
    /// A URI of another trust domain or shape.
    #[error(
        "expected the identity spiffe://impound.dev/controller, …/agent/<node> or \
         …/responder/<role>/<name>[/namespaces/<namespace>…], found {uri:?}"
    )]
    NotOurs {
        /// The URI, cut to a length fit for a log.
        uri: String,
    },
    /// Not a Node name.
    #[error(
        "expected a node name (a DNS-1123 subdomain of at most {MAX_NODE} characters, labels of at \
         most 63), found {found:?}"
    )]
    Node {
        /// What came.
        found: String,
    },
    /// Not a responder's name.
    #[error(
        "expected a responder name of 1 to {MAX_RESPONDER} characters A-Z a-z 0-9 @ . _ -, found {found:?}"
    )]
    Responder {
        /// What came.
        found: String,
    },
    /// Not a list of namespaces.
    #[error(
        "expected 1 to 32 names of namespaces (DNS-1123 labels), in an identity in ascending order and each \
         once, found {found:?}"
    )]
    Namespaces {
        /// What came.
        found: String,
    },
    /// Not a role.
    #[error("expected the role viewer, responder or custodian, found {found:?}")]
    Role {
        /// What came.
        found: String,
    },
}

/// At most 300 characters of something that a stranger wrote, for an error message. Control
/// characters are escaped where it is printed, by `{:?}`.
fn printable(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_being_written_and_read() {
        for uri in [
            "spiffe://impound.dev/controller",
            "spiffe://impound.dev/agent/k8s-worker2",
            "spiffe://impound.dev/agent/ip-10-0-0-1.eu-west-1.compute.internal",
            "spiffe://impound.dev/responder/custodian/alice@example.org",
            "spiffe://impound.dev/responder/responder/bob/namespaces/payments/shop",
        ] {
            assert_eq!(uri.parse::<PeerId>().unwrap().to_string(), uri);
        }
    }

    #[test]
    fn anything_but_the_three_shapes_is_no_identity() {
        for uri in [
            "",
            "spiffe://impound.dev/",
            "spiffe://impound.dev/controller/",
            "spiffe://impound.dev/Controller",
            "SPIFFE://impound.dev/controller",
            "spiffe://impound.dev.example.org/controller",
            "spiffe://impound.dev/agent/",
            "spiffe://impound.dev/agent/a/b",
            "spiffe://impound.dev/agent/UPPER",
            "spiffe://impound.dev/agent/a..b",
            "spiffe://impound.dev/agent/-a",
            "spiffe://impound.dev/responder/admin/alice",
            "spiffe://impound.dev/responder/viewer/",
            "spiffe://impound.dev/responder/viewer/..",
            "spiffe://impound.dev/responder/viewer/a b",
            "spiffe://impound.dev/responder/viewer/a/b",
            "spiffe://impound.dev/responder/viewer/a/namespaces",
            "spiffe://impound.dev/responder/viewer/a/namespaces/",
            "spiffe://impound.dev/responder/viewer/a/namespaces/*",
            "spiffe://impound.dev/responder/viewer/a/namespaces/b/a",
            "spiffe://impound.dev/responder/viewer/a/namespaces/a/a",
            "spiffe://impound.dev/responder/viewer/a/namespaces/a.b",
            "spiffe://impound.dev/controller?x=1",
            "https://impound.dev/controller",
        ] {
            assert!(uri.parse::<PeerId>().is_err(), "{uri} was accepted");
        }
    }

    #[test]
    fn a_node_name_always_fits_the_dns_name_of_its_agent() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(MAX_NODE - 3 * 64));
        assert_eq!(
            PeerId::agent(&longest).unwrap().dns_name().unwrap().len(),
            253
        );
        assert!(PeerId::agent(&format!("{longest}a")).is_err());
        assert!(PeerId::agent(&"a".repeat(64)).is_err());
    }

    #[test]
    fn roles_are_ordered_by_what_they_may_do() {
        assert!(Role::Viewer < Role::Responder && Role::Responder < Role::Custodian);
    }

    #[test]
    fn a_grant_of_namespaces_is_for_these_and_no_other() {
        let granted = Namespaces::only(["shop", "payments", "shop"]).unwrap();
        assert_eq!(granted.to_string(), "/namespaces/payments/shop");
        assert!(granted.contains("shop") && !granted.contains("sho") && !granted.contains(""));
        assert!(Namespaces::All.contains("shop"));
        assert!(Namespaces::only([]).is_err());
    }

    #[test]
    fn fuzz_identity_what_is_taken_is_one_of_three_shapes() {
        let seeds = [
            "spiffe://impound.dev/controller",
            "spiffe://impound.dev/agent/ip-10-0-0-1.eu-west-1.compute.internal",
            "spiffe://impound.dev/responder/custodian/alice@example.org",
            "spiffe://impound.dev/responder/responder/bob/namespaces/payments/shop",
        ];
        let seeds = seeds.map(|uri| uri.as_bytes().to_vec());
        impound_fuzz::run("identity", &seeds, |_, bytes| {
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(peer) = text.parse::<PeerId>() {
                assert_eq!(peer.to_string(), text, "two spellings of one identity");
            }
        });
    }
}
