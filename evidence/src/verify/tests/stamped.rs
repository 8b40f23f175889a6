//! `tests/stamped/*`: a collection with an authority's timestamp, and one for each way in which that can be
//! broken, each with what is said of it with and without the authority's certificate, by `impound verify` and by
//! `verify.sh`.
//!
//! Made once (IMPOUND_REGENERATE=1) and then only read: the authority's certificate was valid for an hour, and
//! that must do for ever.

use super::script::all_with;
use super::*;
use crate::stamp::tests::TestAuthority;
use crate::stamp::{CheckpointStamp, StampAuthority};
use crate::{CHECKPOINT_STAMP, Timestamp};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stamped")
}

fn said(directory: &Path, key: &VerifyingKey, authority: Option<&Arc<StampAuthority>>) -> String {
    let source = DirSource::open(directory).unwrap();
    let verdict = verify_watched(
        &source,
        std::slice::from_ref(key),
        &Given {
            authority: authority.cloned(),
            ..Given::default()
        },
        &|_| (),
    );
    let mut text: String = match verdict.intact() {
        true => format!("intact, timestamp {:?}\n", verdict.timestamp),
        false => verdict
            .problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect(),
    };
    for warning in &verdict.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    let mut arguments: Vec<PathBuf> = Vec::new();
    if authority.is_some() {
        arguments.extend(["--timestamp-ca".into(), root().join("authority.pem")]);
    }
    arguments.extend([directory.to_owned(), root().join("evidence.pub")]);
    let (code, line) = all_with(&arguments);
    assert_eq!(
        code == 0,
        verdict.intact(),
        "{}: {line}",
        directory.display()
    );
    text + &line
}

#[test]
fn each_broken_timestamp_is_called_what_it_is_years_later() {
    if std::env::var_os("IMPOUND_REGENERATE").is_some() {
        generate();
    }
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let key = VerifyingKey::from_pem(&read("evidence.pub")).unwrap();
    let authority = Arc::new(StampAuthority::from_pem(read("authority.pem").as_bytes()).unwrap());
    let mut seen = 0;
    for entry in fs::read_dir(root()).unwrap() {
        let directory = entry.unwrap().path();
        if !directory.is_dir() {
            continue;
        }
        seen += 1;
        let said = format!(
            "# without the authority's certificate\n{}# with it\n{}",
            said(&directory, &key, None),
            said(&directory, &key, Some(&authority))
        );
        let expected = directory.with_extension("expected");
        if std::env::var_os("IMPOUND_REGENERATE").is_some() {
            fs::write(&expected, &said).unwrap();
        }
        let name = directory.display();
        assert_eq!(fs::read_to_string(&expected).unwrap(), said, "{name}");
    }
    assert_eq!(seen, 10);
}

fn generate() {
    let valid = |hours: i64| {
        let time = Timestamp::now().to_utc() + time::Duration::hours(hours);
        let form = time::macros::format_description!("[year][month][day][hour][minute][second]Z");
        time.format(form).unwrap()
    };
    let (from, until) = (valid(0), valid(1));
    let authority = TestAuthority::new(&["ec", &from, &until]);
    let other = TestAuthority::new(&["rsa"]);
    let key = SigningKey::generate().unwrap();
    let _ = fs::remove_dir_all(root());
    fs::create_dir_all(root()).unwrap();
    let pem = key.verifying_key().to_pem().unwrap();
    fs::write(root().join("evidence.pub"), pem).unwrap();
    fs::copy(authority.root(), root().join("authority.pem")).unwrap();

    let token = |it: &Collection| authority.token(&it.bytes(CHECKPOINT));
    type Break<'a> = &'a dyn Fn(&Collection);
    let broken: [(&str, Break); 10] = [
        ("good", &|_| ()),
        ("token-changed", &|it| {
            let mut token = it.bytes(CHECKPOINT_STAMP);
            *token.last_mut().unwrap() ^= 1;
            it.put(CHECKPOINT_STAMP, token);
        }),
        ("token-missing", &|it| {
            fs::remove_file(it.at(CHECKPOINT_STAMP)).unwrap();
        }),
        ("token-of-another-time", &|it| {
            it.put(CHECKPOINT_STAMP, token(it))
        }),
        ("token-added", &|it| stamp(it, None)),
        ("none-was-given", &|it| {
            fs::remove_file(it.at(CHECKPOINT_STAMP)).unwrap();
            stamp(
                it,
                Some(CheckpointStamp::None {
                    reason: "the authority did not answer within 10 s".to_owned(),
                }),
            );
        }),
        ("signed-of-another-checkpoint", &|it| {
            restamp(it, authority.token(b"another checkpoint"))
        }),
        ("signed-by-another-authority", &|it| {
            restamp(it, other.token(&it.bytes(CHECKPOINT)))
        }),
        ("signed-with-a-changed-time", &|it| {
            let mut token = it.bytes(CHECKPOINT_STAMP);
            let year = token.windows(2).position(|at| at == [0x18, 0x0f]).unwrap() + 5;
            token[year] ^= 1;
            restamp(it, token);
        }),
        ("signed-garbage", &|it| restamp(it, b"<html>".to_vec())),
    ];
    for (name, break_it) in broken {
        let secret = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
        let collection = Draft::new().seal_with(secret);
        restamp(&collection, token(&collection));
        break_it(&collection);
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(collection.directory.path())
            .arg(root().join(name))
            .status();
        assert!(copied.unwrap().success());
    }
}

/// Puts a token in place and signs that.
fn restamp(collection: &Collection, token: Vec<u8>) {
    let sha256 = Sha256::of(&token);
    collection.put(CHECKPOINT_STAMP, token);
    stamp(
        collection,
        Some(CheckpointStamp::Token {
            sha256,
            authority: "http://time.example.org/tsa".to_owned(),
        }),
    );
}

/// What the manifest says of the timestamp, signed.
fn stamp(collection: &Collection, says: Option<CheckpointStamp>) {
    let mut manifest = Manifest::decode(&collection.bytes(MANIFEST)).unwrap();
    manifest.timestamp = says;
    collection.put(MANIFEST, manifest.encode());
    let bundle = sign_manifest(&manifest.encode(), &collection.key).unwrap();
    collection.put(BUNDLE, bundle);
}
