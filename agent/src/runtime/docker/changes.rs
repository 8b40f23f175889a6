//! The engine's list of changes, parsed while it arrives.
//!
//! It is one JSON array with an object per path. A suspect can create millions of paths, so neither
//! the text nor the list is ever held as a whole: only the object at hand is.

use bytes::{Buf, Bytes};
use futures::Stream;
use serde::Deserialize;

use super::raw::Body;
use crate::runtime::{Change, ChangeKind, RuntimeError};

/// Longest object of the array, bytes. A path has at most 4096 bytes, each of which JSON may write as
/// six (`\u0001`).
const OBJECT_LIMIT: usize = 64 << 10;

/// The changes in the order of the engine. The stream ends without an error only after the array's
/// closing bracket.
pub(super) fn parse(
    body: Body,
    call: String,
) -> impl Stream<Item = Result<Change, RuntimeError>> + Send {
    let state = Reading {
        body,
        call,
        parser: Parser::default(),
        input: Bytes::new(),
        ended: false,
    };
    futures::stream::unfold(state, |mut state| async move {
        if state.ended {
            return None;
        }
        let item = state.next().await.transpose()?;
        state.ended = item.is_err();
        Some((item, state))
    })
}

struct Reading {
    body: Body,
    call: String,
    parser: Parser,
    input: Bytes,
    ended: bool,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Change>, RuntimeError> {
        loop {
            while let Some(byte) = self.input.first().copied() {
                self.input.advance(1);
                if let Some(change) = self.parser.push(byte).map_err(|why| self.malformed(why))? {
                    return Ok(Some(change));
                }
            }
            match self.body.next().await? {
                Some(bytes) => self.input = bytes,
                None => {
                    return match self.parser.finish() {
                        Ok(()) => Ok(None),
                        Err(why) => Err(self.malformed(why)),
                    };
                }
            }
        }
    }

    fn malformed(&self, why: String) -> RuntimeError {
        RuntimeError::Malformed {
            call: self.call.clone(),
            why,
        }
    }
}

/// Cuts the array into its objects; each object is parsed by serde.
#[derive(Default)]
struct Parser {
    place: Place,
    object: Vec<u8>,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Place {
    /// Before "[" or "null".
    #[default]
    Start,
    /// Inside "null", which the engine sends for an unchanged container.
    Null,
    /// After "[": an object or the end.
    First,
    /// Inside an object.
    Object,
    /// After an object: a comma or the end.
    After,
    /// After a comma: an object.
    Next,
    /// After the value.
    End,
}

/// One object of the array.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    path: String,
    kind: u8,
}

impl Parser {
    fn push(&mut self, byte: u8) -> Result<Option<Change>, String> {
        if self.place == Place::Object {
            return self.inside(byte);
        }
        let is_space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        if is_space && self.place != Place::Null {
            return Ok(None);
        }
        self.place = match (self.place, byte) {
            (Place::Start, b'[') => Place::First,
            (Place::First | Place::After, b']') => Place::End,
            (Place::After, b',') => Place::Next,
            (Place::First | Place::Next, b'{') => {
                self.object.clear();
                self.object.push(byte);
                self.depth = 1;
                Place::Object
            }
            (Place::Start | Place::Null, _) if b"null".get(self.object.len()) == Some(&byte) => {
                self.object.push(byte);
                if self.object.len() == 4 {
                    Place::End
                } else {
                    Place::Null
                }
            }
            (place, _) => {
                return Err(format!(
                    "found byte {byte:#04x} at {place:?} of a JSON array of objects"
                ));
            }
        };
        Ok(None)
    }

    fn inside(&mut self, byte: u8) -> Result<Option<Change>, String> {
        if self.object.len() >= OBJECT_LIMIT {
            return Err(format!(
                "expected changes of at most {OBJECT_LIMIT} bytes, one is longer"
            ));
        }
        self.object.push(byte);
        if self.in_string {
            let closes = byte == b'"' && !self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            self.in_string = !closes;
            return Ok(None);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        if self.depth > 0 {
            return Ok(None);
        }
        self.place = Place::After;
        let entry: Entry =
            serde_json::from_slice(&self.object).map_err(|error| error.to_string())?;
        let kind = match entry.kind {
            0 => ChangeKind::Changed,
            1 => ChangeKind::Added,
            2 => ChangeKind::Deleted,
            other => {
                return Err(format!(
                    "expected a kind of change 0, 1 or 2, found {other}"
                ));
            }
        };
        Ok(Some(Change {
            kind,
            path: entry.path,
        }))
    }

    fn finish(&self) -> Result<(), String> {
        if self.place == Place::End {
            Ok(())
        } else {
            Err(format!(
                "it ended at {:?} of a JSON array of objects",
                self.place
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Result<Vec<String>, String> {
        let mut parser = Parser::default();
        let mut found = Vec::new();
        for byte in text.bytes() {
            if let Some(change) = parser.push(byte)? {
                found.push(format!("{:?} {}", change.kind, change.path));
            }
        }
        parser.finish()?;
        Ok(found)
    }

    #[test]
    fn the_engines_answers_are_read_in_order() {
        let text = "[{\"Path\":\"/a\",\"Kind\":0},\n {\"Path\":\"/a/b\",\"Kind\":1},{\"Kind\":2,\"Path\":\"/c\"}]\n";
        assert_eq!(
            all(text).unwrap(),
            ["Changed /a", "Added /a/b", "Deleted /c"]
        );
        assert_eq!(all("null\n").unwrap(), Vec::<String>::new());
        assert_eq!(all(" [ ]").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_path_may_contain_anything_json_can_write() {
        let text = r#"[{"Path":"/a\"},]{[\\","Kind":1,"Extra":{"x":["}"]}},{"Path":"/\u00e9\n","Kind":1}]"#;
        assert_eq!(all(text).unwrap(), ["Added /a\"},]{[\\", "Added /é\n"]);
    }

    #[test]
    fn an_answer_that_ends_early_is_never_taken_for_the_whole() {
        let text = r#"[{"Path":"/a","Kind":0},{"Path":"/b","Kind":1}]"#;
        for end in 0..text.len() {
            assert!(
                all(&text[..end]).is_err(),
                "{:?} was accepted",
                &text[..end]
            );
        }
        assert!(all(text).is_ok());
    }

    #[test]
    fn fuzz_changes_what_is_taken_is_what_serde_reads() {
        let seeds = [
            r#"[{"Path":"/a","Kind":0},{"Path":"/a\"},]{[\\","Kind":1,"Extra":{"x":["}"]}},{"Kind":2,"Path":"/\u00e9"}]"#,
            "null\n",
            "[]",
        ];
        let seeds = seeds.map(|seed| seed.as_bytes().to_vec());
        impound_fuzz::run("changes", &seeds, |_, input| {
            let mut parser = Parser::default();
            let mut found = Vec::new();
            let taken = input.iter().try_for_each(|byte| {
                found.extend(parser.push(*byte)?.map(|change| change.path));
                Ok::<_, String>(())
            });
            if taken.and_then(|()| parser.finish()).is_ok() {
                let whole: Option<Vec<Entry>> = serde_json::from_slice(&input).unwrap();
                let whole = whole.unwrap_or_default().into_iter();
                assert_eq!(found, whole.map(|entry| entry.path).collect::<Vec<_>>());
            }
        });
    }

    #[test]
    fn anything_but_an_array_of_changes_is_refused() {
        for text in [
            "{}",
            "nul",
            "nullnull",
            "[1]",
            "[]x",
            "[{}]",
            "[,]",
            r#"[{"Path":"/a","Kind":3}]"#,
            "[[]]",
        ] {
            assert!(all(text).is_err(), "{text} was accepted");
        }
        let long = format!(r#"[{{"Path":"{}","Kind":0}}]"#, "a".repeat(OBJECT_LIMIT));
        assert!(all(&long).is_err());
    }
}
