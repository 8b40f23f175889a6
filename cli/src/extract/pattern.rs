//! `--path`: which files of a tar are wanted.

use std::str::FromStr;

/// A glob over the bytes of a path. `*` and `?` stay within a name, `**` does not, and what matches a
/// directory takes everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Token>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Some,
    /// `**`
    Any,
    /// `**/`: any number of whole directories.
    Directories,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rest = text.trim_start_matches("./").trim_matches('/').as_bytes();
        if rest.is_empty() {
            return Err("expected a path like etc/nginx or 'tmp/**'".to_owned());
        }
        let mut tokens = Vec::new();
        while let Some((first, after)) = rest.split_first() {
            let (token, after) = match (first, after) {
                (b'*', [b'*', b'/', after @ ..]) => (Token::Directories, after),
                (b'*', [b'*', after @ ..]) => (Token::Any, after),
                (b'*', after) => (Token::Some, after),
                (b'?', after) => (Token::One, after),
                (byte, after) => (Token::Byte(*byte), after),
            };
            tokens.push(token);
            rest = after;
        }
        Ok(Self(tokens))
    }
}

impl Pattern {
    /// Whether it matches `path` or a directory above it. Takes time in proportion to both lengths.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        let mut states = vec![false; self.0.len() + 1];
        self.enter(&mut states, 0);
        for (at, byte) in path.iter().enumerate() {
            if *byte == b'/' && at > 0 && states.last() == Some(&true) {
                return true;
            }
            let mut next = vec![false; states.len()];
            for (state, token) in self.0.iter().enumerate() {
                if states.get(state) != Some(&true) {
                    continue;
                }
                match token {
                    Token::Byte(expected) if expected == byte => self.enter(&mut next, state + 1),
                    Token::One if *byte != b'/' => self.enter(&mut next, state + 1),
                    Token::Some if *byte != b'/' => self.enter(&mut next, state),
                    Token::Any => self.enter(&mut next, state),
                    Token::Directories => {
                        // Stays without being left again, which it may be only after a slash.
                        if let Some(next) = next.get_mut(state) {
                            *next = true;
                        }
                        if *byte == b'/' {
                            self.enter(&mut next, state + 1);
                        }
                    }
                    _ => {}
                }
            }
            states = next;
        }
        states.last() == Some(&true)
    }

    /// Marks a state and those that need no byte after it.
    fn enter(&self, states: &mut [bool], mut state: usize) {
        loop {
            if let Some(mark) = states.get_mut(state) {
                *mark = true;
            }
            match self.0.get(state) {
                Some(Token::Some | Token::Any | Token::Directories) => state += 1,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_as_a_shell_would_and_takes_what_is_below() {
        for (pattern, path, expected) in [
            ("etc/nginx", "etc/nginx", true),
            ("/etc/nginx/", "etc/nginx/sites/default", true),
            ("etc/nginx", "etc/nginx2", false),
            ("etc/*.conf", "etc/a.conf", true),
            ("etc/*.conf", "etc/a/b.conf", false),
            ("etc/**.conf", "etc/a/b.conf", true),
            ("**/b.conf", "etc/a/b.conf", true),
            ("**/b.conf", "b.conf", true),
            ("**/b.conf", "etc/ab.conf", false),
            ("tmp/**", "tmp/.x/y", true),
            ("*", "tmp/x", true),
            ("t?p", "tmp", true),
            ("t?p", "t/p", false),
            ("a**b", "axx/b", true),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(
                pattern.matches(path.as_bytes()),
                expected,
                "{pattern:?} {path}"
            );
        }
        assert!("/".parse::<Pattern>().is_err());
    }

    #[test]
    fn many_stars_take_no_long_time() {
        let pattern: Pattern = "*a".repeat(200).parse().unwrap();
        assert!(!pattern.matches(&[b'a'; 4096].map(|_| b'b')));
        assert!(pattern.matches(&[b'a'; 4096]));
    }
}
