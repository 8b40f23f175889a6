//! Tokens of an authority made with openssl: good ones, and each way in which one is not.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

const DATA: &[u8] = b"a checkpoint";

/// An authority of openssl, see `tests/authority.sh`.
pub(crate) struct TestAuthority {
    directory: tempfile::TempDir,
}

fn script(arguments: &[&str], environment: &[(&str, &str)]) -> Vec<u8> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/authority.sh");
    let mut command = Command::new(script);
    command.args(arguments).envs(environment.iter().copied());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    output.stdout
}

impl TestAuthority {
    /// `arguments`: `rsa` or `ec`, and perhaps the times between which its certificate is valid.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        Self::with(arguments, &[])
    }

    fn with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        script(&[&["make", path], arguments].concat(), environment);
        Self { directory }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root.pem")
    }

    pub(crate) fn trusted(&self) -> StampAuthority {
        StampAuthority::from_pem(&std::fs::read(self.root()).unwrap()).unwrap()
    }

    fn reply(&self, query: &[u8]) -> Vec<u8> {
        let file = self.directory.path().join("query");
        std::fs::write(&file, query).unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        script(&["reply", &path(self.directory.path()), &path(&file)], &[])
    }

    /// A token over `bytes`.
    pub(crate) fn token(&self, bytes: &[u8]) -> Vec<u8> {
        let request = StampRequest::new(Sha256::of(bytes), *b"a nonce!");
        let response = self.reply(&request.encode());
        request
            .token(&response, &self.trusted())
            .unwrap()
            .0
            .to_vec()
    }

    /// What is said of its answer to a question about `DATA`.
    fn answer(&self, trusted: &StampAuthority) -> Result<Timestamp, String> {
        let request = StampRequest::new(Sha256::of(DATA), [0xff; 8]);
        let response = self.reply(&request.encode());
        let token = request.token(&response, trusted);
        token
            .map(|(_, time)| time)
            .map_err(|error| error.to_string())
    }
}

fn around_now(time: Timestamp) -> bool {
    let age = Timestamp::now().to_utc() - time.to_utc();
    (time::Duration::seconds(-2)..time::Duration::minutes(2)).contains(&age)
}

#[test]
fn tokens_of_rsa_and_ec_authorities_are_good_and_say_when() {
    for kind in ["rsa", "ec"] {
        let authority = TestAuthority::new(&[kind]);
        let time = authority.answer(&authority.trusted()).unwrap();
        assert!(around_now(time), "{kind}: {time}");
        let token = authority.token(DATA);
        let again = authority.trusted().check(&token, Sha256::of(DATA)).unwrap();
        assert_eq!(stamp_time(&token).unwrap(), again);
    }
    // As they were before OpenSSL 3: the signer is named by its certificate's SHA-1.
    let older = TestAuthority::with(&["rsa"], &[("ESS", "sha1")]);
    assert!(around_now(older.answer(&older.trusted()).unwrap()));
}

#[test]
fn a_token_by_another_authority_is_not_trusted() {
    let (ours, theirs) = (TestAuthority::new(&["ec"]), TestAuthority::new(&["ec"]));
    let said = theirs.answer(&ours.trusted()).unwrap_err();
    assert!(
        said.starts_with("the time-stamp's signer is not to be trusted: "),
        "{said}"
    );
}

#[test]
fn a_certificate_that_had_expired_or_was_not_valid_yet_at_the_time_is_refused() {
    for (from, until, expected) in [
        ("20240101000000Z", "20240201000000Z", "had expired at"),
        ("20990101000000Z", "20990201000000Z", "was not valid yet at"),
    ] {
        let authority = TestAuthority::new(&["ec", from, until]);
        let said = authority.answer(&authority.trusted()).unwrap_err();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_certificate_for_more_than_time_stamping_is_refused() {
    // openssl does not sign with such certificates, so the good token's certificate is looked at directly.
    let purposes = |purpose: &str| {
        let authority = TestAuthority::with(&["ec"], &[("PURPOSE", purpose)]);
        let pem = std::fs::read(authority.directory.path().join("tsa.pem")).unwrap();
        use rustls_pki_types::pem::PemObject as _;
        let certificate = rustls_pki_types::CertificateDer::from_pem_slice(&pem).unwrap();
        authority::only_time_stamping(&certificate)
    };
    assert!(purposes("critical,timeStamping").is_ok());
    for wrong in [
        "timeStamping",
        "critical,timeStamping,serverAuth",
        "critical,serverAuth",
    ] {
        assert!(
            matches!(purposes(wrong), Err(StampError::Purpose)),
            "{wrong}"
        );
    }
}

#[test]
fn an_answer_to_another_question_is_refused() {
    let authority = TestAuthority::new(&["ec"]);
    let trusted = authority.trusted();
    let asked = StampRequest::new(Sha256::of(DATA), [1; 8]);
    let said = |other: StampRequest| {
        let response = authority.reply(&other.encode());
        asked.token(&response, &trusted).unwrap_err().to_string()
    };
    assert_eq!(
        said(StampRequest::new(Sha256::of(DATA), [2; 8])),
        "the answer has not the nonce of the question: it is an answer to another one"
    );
    assert_eq!(
        said(StampRequest::new(Sha256::of(b"other"), [1; 8])),
        format!(
            "expected a time-stamp of SHA-256 {}, got one of {}",
            Sha256::of(DATA),
            Sha256::of(b"other")
        )
    );
}

#[test]
fn an_authority_that_refuses_is_quoted() {
    // The policy that is asked for, 1.2.3.4.9, is none of the authority's.
    let authority = TestAuthority::new(&["ec"]);
    let request = StampRequest::new(Sha256::of(DATA), [1; 8]);
    let mut query = request.encode();
    query.splice(5 + 51..5 + 51, [0x06, 0x04, 0x2a, 0x03, 0x04, 0x09]);
    query[1] += 6;
    let response = authority.reply(&query);
    assert_eq!(
        request
            .token(&response, &authority.trusted())
            .unwrap_err()
            .to_string(),
        "the time-stamping authority gave none: rejection: \"Requested policy is not supported.\""
    );
}

#[test]
fn no_changed_byte_of_what_is_signed_goes_unnoticed() {
    let authority = TestAuthority::new(&["rsa"]);
    let (trusted, token) = (authority.trusted(), authority.token(DATA));
    let imprint = Sha256::of(DATA);
    let good = Token::decode(&token).unwrap();
    let parts: [(&[u8], &str); 4] = [
        (good.content, "content"),
        (good.signature, "signature"),
        (good.message_digest, "digest"),
        (good.certificate_digest.1, "certificate's digest"),
    ];
    for (part, name) in parts {
        let start = token.windows(part.len()).position(|at| at == part).unwrap();
        for at in start..start + part.len() {
            let mut changed = token.clone();
            changed[at] ^= 1;
            assert!(
                trusted.check(&changed, imprint).is_err(),
                "{name}, byte {at}"
            );
        }
    }
    let ends = |token: &[u8]| trusted.check(token, imprint).is_err();
    assert!(ends(&token[..token.len() - 1]) && ends(&[&token[..], &[0]].concat()) && ends(&[]));
    assert!(matches!(
        trusted.check(&vec![0x30; TOKEN_LIMIT as usize + 1], imprint),
        Err(StampError::TooLong(_))
    ));
}

#[test]
fn an_authority_is_known_by_a_certificate_that_signed_itself() {
    let authority = TestAuthority::new(&["ec"]);
    let read = |name: &str| std::fs::read(authority.directory.path().join(name)).unwrap();
    for (pem, expected) in [
        (read("tsa.pem"), "signed itself"),
        (read("tsa.key"), "signed itself"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec(),
            "PEM",
        ),
    ] {
        let said = StampAuthority::from_pem(&pem).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    let both = [read("tsa.pem"), read("root.pem")].concat();
    assert!(StampAuthority::from_pem(&both).is_ok());
}
