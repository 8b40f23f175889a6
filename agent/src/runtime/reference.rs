//! Names of images that the agent makes, saves and removes.
//!
//! They go into paths of the runtime's API, so only what Docker's own grammar allows gets through,
//! without a registry host and without a digest.

use std::fmt;
use std::str::FromStr;

/// "repository:tag".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageReference {
    repository: String,
    tag: String,
}

impl ImageReference {
    /// From repository and tag; an empty tag means "latest".
    ///
    /// # Errors
    /// If either is not what Docker's grammar allows.
    pub fn new(repository: &str, tag: &str) -> Result<Self, ReferenceError> {
        let tag = if tag.is_empty() { "latest" } else { tag };
        if !is_repository(repository) {
            return Err(ReferenceError::Repository {
                found: cut(repository),
            });
        }
        if !is_tag(tag) {
            return Err(ReferenceError::Tag { found: cut(tag) });
        }
        Ok(Self {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// The part before the colon.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The part after the colon.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (repository, tag) = text.rsplit_once(':').unwrap_or((text, ""));
        Self::new(repository, tag)
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

/// Not a name for an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The repository.
    #[error(
        "expected an image repository (lower-case letters and digits, parts separated by . _ __ - or /, \
         at most 255 characters), found {found:?}"
    )]
    Repository {
        /// What came.
        found: String,
    },
    /// The tag.
    #[error(
        "expected an image tag (1 to 128 of A-Z a-z 0-9 _ . -, first not . or -), found {found:?}"
    )]
    Tag {
        /// What came.
        found: String,
    },
}

/// Components of `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, joined by "/".
fn is_repository(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.split('/').all(is_component)
}

fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edge = |byte: Option<u8>| byte.is_some_and(alphanumeric);
    let separators = text.split(|character: char| u8::try_from(character).is_ok_and(alphanumeric));
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && separators
            .into_iter()
            .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text
            .bytes()
            .all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// Fit for an error message.
fn cut(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_survives_being_written_and_read() {
        let reference: ImageReference = "compromised-nginx-0123456789ab".parse().unwrap();
        assert_eq!(
            reference.to_string(),
            "compromised-nginx-0123456789ab:latest"
        );
        assert_eq!(reference.to_string().parse(), Ok(reference));
        for text in ["a:1", "a/b--c/d__e:v1.0_x-y", "a.b:T"] {
            assert_eq!(text.parse::<ImageReference>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nothing_that_could_leave_its_place_in_a_path_is_a_reference() {
        for text in [
            "",
            ":",
            "a:",
            "A:1",
            "a b:1",
            "../x:1",
            "a/../b:1",
            "a//b:1",
            "/a:1",
            "a/:1",
            "a?x=1:1",
            "a#:1",
            "a%2e:1",
            "-a:1",
            "a-:1",
            "a..b:1",
            "a___b:1",
            "a._b:1",
            "a:.",
            "a:-1",
            "a:b/c",
            "a:b c",
            "é:1",
            "host:5000/a:1",
            "a@sha256:0",
        ] {
            // "a:" names the default tag and is the only one of these that is fine.
            assert_eq!(
                text.parse::<ImageReference>().is_ok(),
                text == "a:",
                "{text:?}"
            );
        }
        assert!(ImageReference::new(&"a".repeat(256), "").is_err());
        assert!(ImageReference::new("a", &"a".repeat(129)).is_err());
    }

    #[test]
    fn fuzz_reference_what_is_taken_stays_in_its_place_in_a_path() {
        let seeds = [
            "compromised-nginx-0123456789ab:web-1",
            "a/b--c/d__e:v1.0_x-y",
            "a.b:T",
        ];
        let seeds = seeds.map(|text| text.as_bytes().to_vec());
        impound_fuzz::run("reference", &seeds, |_, bytes| {
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(reference) = text.parse::<ImageReference>() {
                let text = reference.to_string();
                assert_eq!(text.parse(), Ok(reference));
                let is_step = |part: &str| matches!(part, "" | "." | "..");
                assert!(!text.split('/').any(is_step), "{text}");
                assert!(
                    text.bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte))
                );
            }
        });
    }
}
