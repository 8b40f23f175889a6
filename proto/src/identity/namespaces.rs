//! Where a responder may act: everywhere, or in the namespaces that its certificate names.

use std::fmt;

use super::{IdentityError, printable};

/// Most namespaces that one certificate names. More, and changing ones, are Kubernetes' own business:
/// a token and its bindings.
const MOST: usize = 32;

/// The namespaces that a responder was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Namespaces {
    /// Each, and what belongs to none.
    #[default]
    All,
    /// These.
    Only(Granted),
}

/// 1 to 32 names of namespaces in ascending order, each once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Granted(Vec<String>);

impl Namespaces {
    /// These and no other.
    ///
    /// # Errors
    /// If there are none or too many, or one is no name of a namespace.
    pub fn only<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, IdentityError> {
        let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        names.sort();
        names.dedup();
        let found = || IdentityError::Namespaces {
            found: printable(&names.join(" ")),
        };
        let fits = (1..=MOST).contains(&names.len()) && names.iter().all(|name| is_label(name));
        if !fits {
            return Err(found());
        }
        Ok(Self::Only(Granted(names)))
    }

    /// The part of an identity that names them, as it is written there: one spelling for one grant.
    pub(super) fn parse(names: &[&str]) -> Result<Self, IdentityError> {
        let parsed = Self::only(names.iter().copied())?;
        match &parsed {
            Self::Only(granted) if granted.0 == names => Ok(parsed),
            _ => Err(IdentityError::Namespaces {
                found: printable(&names.join(" ")),
            }),
        }
    }

    /// Whether `namespace` is one of them.
    #[must_use]
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(granted) => granted.0.iter().any(|one| one == namespace),
        }
    }
}

impl Granted {
    /// Their names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

/// As the end of an identity: "" or "/namespaces/a/b".
impl fmt::Display for Namespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Only(granted) => write!(f, "/namespaces/{}", granted.0.join("/")),
        }
    }
}

/// A DNS-1123 label, which the name of every namespace is.
fn is_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&bytes.len())
        && bytes.first().copied().is_some_and(alphanumeric)
        && bytes.last().copied().is_some_and(alphanumeric)
        && bytes
            .iter()
            .all(|byte| alphanumeric(*byte) || *byte == b'-')
}
