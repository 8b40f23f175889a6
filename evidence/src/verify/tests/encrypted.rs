//! A collection whose artifacts are encrypted: what is checked of it with the secret key and without, by us and by
//! `verify.sh`.

use super::*;
use crate::age::{Identity, Recipient};
use crate::{Encoder, Encoding, StoredForm, decode};

/// The draft with each artifact encrypted, as the controller does it.
pub(super) fn encrypted(mut draft: Draft, recipients: &[Recipient]) -> Draft {
    let files = std::mem::take(&mut draft.files);
    draft.manifest.encrypted_to = recipients.to_vec();
    draft.files = files
        .into_iter()
        .map(|(path, bytes)| {
            let (form, file) = sealed_file(&path, &bytes, recipients);
            let record = draft.artifact(&path);
            record.chunk_root = Some(Digests::of(&file).chunk_root);
            record.stored = Some(form.clone());
            (form.path.to_string(), file)
        })
        .collect();
    draft
}

fn sealed_file(path: &str, bytes: &[u8], recipients: &[Recipient]) -> (StoredForm, Vec<u8>) {
    let mut encoder = Encoder::new(recipients).unwrap();
    let mut file = encoder.update(bytes).unwrap();
    let (rest, encoded) = encoder.finish().unwrap();
    file.extend(rest);
    assert_eq!(encoded.plain, (bytes.len() as u64, Sha256::of(bytes)));
    (encoded.form(&path.parse().unwrap()).unwrap(), file)
}

/// Signs other bytes as the file that holds an artifact.
pub(super) fn stored_as(draft: &mut Draft, path: &str, bytes: &[u8]) {
    let record = draft.artifact(path);
    record.chunk_root = Some(Digests::of(bytes).chunk_root);
    let form = record.stored.as_mut().unwrap();
    (form.size, form.sha256) = (bytes.len() as u64, Sha256::of(bytes));
    let stored = form.path.to_string();
    let file = draft.files.iter_mut().find(|(path, _)| *path == stored);
    file.unwrap().1 = bytes.to_vec();
}

/// Signs an artifact as it is, in a collection that is encrypted.
pub(super) fn plain_again(draft: &mut Draft, path: &str, bytes: &[u8]) {
    let record = draft.artifact(path);
    record.chunk_root = Some(Digests::of(bytes).chunk_root);
    let stored = record.stored.take().unwrap().path.to_string();
    draft.files.retain(|(path, _)| *path != stored);
    draft.files.push((path.to_owned(), bytes.to_vec()));
}

fn opened(collection: &Collection, identities: &[&Identity]) -> Verdict {
    let given = Given {
        identities: identities.iter().map(|one| (*one).clone()).collect(),
        ..Given::default()
    };
    let source = DirSource::open(collection.directory.path()).unwrap();
    let keys = [collection.key.verifying_key().clone()];
    verify_watched(&source, &keys, &given, &|_| ())
}

fn name(path: &str) -> String {
    format!("{path}.age")
}

#[test]
fn an_encrypted_collection_is_checked_with_the_secret_key_and_without() {
    let (ada, bob) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let collection = encrypted(Draft::new(), &[ada.recipient(), bob.recipient()]).seal();
    assert!(!collection.at(TAR).exists() && collection.at(&name(TAR)).exists());
    let verdict = collection.verdict();
    assert_eq!(verdict.problems, []);
    assert!(verdict.intact() && verdict.complete());
    assert_eq!(verdict.closed, 4);
    for identity in [&ada, &bob] {
        let verdict = opened(&collection, &[identity]);
        assert_eq!(verdict.problems, []);
        assert_eq!(verdict.closed, 0);
    }
    let (code, says) = script::script(collection.directory.path(), &[&collection.key]);
    assert_eq!(code, 0, "{says}");
    assert!(
        says.contains("; NOT CHECKED: what is in 4 encrypted files"),
        "{says}"
    );
}

#[test]
fn a_key_that_does_not_open_it_is_no_check_passed_and_no_evidence_broken() {
    let (ada, eve) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let collection = encrypted(Draft::new(), &[ada.recipient()]).seal();
    let verdict = opened(&collection, &[&eve]);
    assert_eq!(verdict.problems, []);
    assert!(verdict.intact());
    assert_eq!((verdict.closed, verdict.unopened), (4, 4));
    let verdict = opened(&collection, &[&eve, &ada]);
    assert_eq!((verdict.closed, verdict.unopened), (0, 0));
    // What was changed is found all the same, and the others are not checked.
    let mut file = collection.bytes(&name(DIFF));
    file[10] ^= 1;
    collection.put(&name(DIFF), &file);
    let verdict = opened(&collection, &[&eve]);
    assert!(problems(&verdict)[0].starts_with(&format!("{}: expected SHA-256 ", name(DIFF))));
    assert_eq!((verdict.problems.len(), verdict.unopened), (1, 3));
}

#[test]
fn whoever_the_manifest_names_can_read_every_artifact_or_it_is_not_true() {
    let (ada, eve) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let mut draft = encrypted(Draft::new(), &[ada.recipient()]);
    draft.manifest.encrypted_to.push(eve.recipient());
    let collection = draft.seal();
    assert!(opened(&collection, &[&ada]).intact());
    let verdict = opened(&collection, &[&eve]);
    let says = format!(
        "is not encrypted to {}, as the manifest says",
        eve.recipient()
    );
    let said = problems(&verdict);
    assert_eq!(said.len(), 4);
    assert!(said.contains(&format!("{}: {says}", name(POD))), "{said:?}");
}

#[test]
fn a_file_that_is_recorded_as_encrypted_begins_as_an_age_file_for_whoever_checks() {
    let ada = Identity::generate().unwrap();
    let whole = sealed_file(DIFF, b"A /tmp/x\n", &[ada.recipient()]).1;
    let payload = whole.windows(4).position(|at| at == b"--- ").unwrap() + 48;
    let zero = |mut file: Vec<u8>| {
        file[3] = 0;
        file
    };
    for file in [
        b"A /tmp/x\n".to_vec(),
        Vec::new(),
        whole[1..].to_vec(),
        zero(whole.clone()),
        whole[..payload + 31].to_vec(),
        [b"age-encryption.org/v1\n".as_slice(), &[0; 4000]].concat(),
        [
            b"age-encryption.org/v1\n".as_slice(),
            &whole[payload - 48..],
        ]
        .concat(),
    ] {
        let mut draft = encrypted(Draft::new(), &[ada.recipient()]);
        stored_as(&mut draft, DIFF, &file);
        let collection = draft.seal();
        let said = collection.problems();
        assert!(
            said[0].starts_with(&format!("{}: is no whole age file: ", name(DIFF))),
            "{said:?}"
        );
        assert_eq!(problems(&opened(&collection, &[&ada])), said);
        let (code, says) = script::script(collection.directory.path(), &[&collection.key]);
        assert_eq!(code, 1, "{says}");
        assert!(
            says.ends_with(&format!(
                "{}: is recorded as encrypted and is no age file",
                name(DIFF)
            )),
            "{says}"
        );
    }
}

#[test]
fn a_collection_is_encrypted_as_a_whole_or_not_at_all() {
    let ada = Identity::generate().unwrap();
    let whole = || encrypted(Draft::new(), &[ada.recipient()]);
    let mut plain = whole();
    plain_again(&mut plain, DIFF, b"A /tmp/x\n");
    let mut nobodys = whole();
    nobodys.manifest.encrypted_to.clear();
    let mut attempt = whole();
    attempt.add_broken_attempt(TAR);
    for (draft, path, says) in [
        (
            plain,
            DIFF.to_owned(),
            "is not encrypted, and yet the manifest says that the collection is",
        ),
        (
            nobodys,
            DIFF.to_owned(),
            "is encrypted, and the manifest names nobody who can read it",
        ),
        (
            attempt,
            format!("{TAR}.partial-1"),
            "is not encrypted, and yet the manifest says that the collection is",
        ),
    ] {
        let collection = draft.seal();
        let said = format!("{path}: {says}");
        assert!(
            collection.problems().contains(&said),
            "{:?}",
            collection.problems()
        );
        let script = script::script(collection.directory.path(), &[&collection.key]);
        assert_eq!(script, (1, format!("NOT INTACT: {said}")));
    }
    // What checks it is for everybody.
    let mut draft = whole();
    draft
        .files
        .push((SCRIPT.to_owned(), VERIFY_SH.as_bytes().to_vec()));
    let of_script = as_read(record(SCRIPT, VERIFY_SH.as_bytes()));
    draft.manifest.artifacts.push(of_script);
    let collection = draft.seal();
    assert_eq!(collection.verdict().problems, []);
    assert_eq!(
        script::script(collection.directory.path(), &[&collection.key]).0,
        0
    );
}

#[test]
fn behind_the_end_that_was_recorded_nothing_is_read_any_more() {
    let ada = Identity::generate().unwrap();
    let (form, file) = sealed_file(DIFF, &[7; 300_000], &[ada.recipient()]);
    for size in [299_999, 100_000, 300_001] {
        let record = ArtifactRecord {
            size,
            stored: Some(form.clone()),
            ..record(DIFF, b"")
        };
        let file = Box::new(std::io::Cursor::new(file.clone()));
        let mut reader = decode(file, &record, std::slice::from_ref(&ada)).unwrap();
        let mut read = Vec::new();
        assert!(reader.read_to_end(&mut read).is_err());
        assert!(read.len() as u64 <= size);
        for _ in 0..3 {
            assert!(reader.read(&mut [0; 100]).is_err());
        }
    }
}

#[test]
fn a_changed_encrypted_file_is_found_without_the_secret_key() {
    let ada = Identity::generate().unwrap();
    let collection = encrypted(Draft::new(), &[ada.recipient()]).seal();
    let mut file = collection.bytes(&name(TAR));
    let last = file.len() - 1;
    file[last] ^= 1;
    collection.put(&name(TAR), &file);
    let said = collection.problems();
    assert!(
        said[0].starts_with(&format!("{}: expected SHA-256 ", name(TAR))),
        "{said:?}"
    );
    assert_eq!(said.len(), 1);
    assert_eq!(problems(&opened(&collection, &[&ada])), said);
    let (code, says) = script::script(collection.directory.path(), &[&collection.key]);
    assert_eq!(code, 1);
    assert!(
        says.contains(&format!("{}: was changed", name(TAR))),
        "{says}"
    );
}

#[test]
fn what_is_in_an_encrypted_file_must_be_what_was_recorded_of_it() {
    let ada = Identity::generate().unwrap();
    let of = |bytes: &[u8]| {
        let mut draft = encrypted(Draft::new(), &[ada.recipient()]);
        let (form, file) = sealed_file(DIFF, bytes, &[ada.recipient()]);
        let record = draft.artifact(DIFF);
        record.chunk_root = Some(Digests::of(&file).chunk_root);
        record.stored = Some(form);
        draft.files.retain(|(path, _)| *path != name(DIFF));
        draft.files.push((name(DIFF), file));
        draft.seal()
    };
    // Signed by the controller's own key: only what is inside shows it.
    for (bytes, says) in [
        (&b"A /tmp/y\n"[..], "holds something else: expected SHA-256"),
        (
            b"A /tmp/x\nA",
            "holds another file: expected 9 bytes in it, got more",
        ),
        (
            b"A /tmp",
            "holds another file: expected 9 bytes in it, got 6",
        ),
    ] {
        let collection = of(bytes);
        assert!(collection.verdict().intact(), "{bytes:?}");
        let said = problems(&opened(&collection, &[&ada]));
        assert!(
            said[0].starts_with(&format!("{}: {says}", name(DIFF))),
            "{said:?}"
        );
    }
}

#[test]
fn an_encrypted_tar_that_does_not_end_is_not_complete_for_who_can_read_it() {
    let ada = Identity::generate().unwrap();
    let mut draft = Draft::new();
    draft.contents(TAR, &[1; 700]);
    let collection = encrypted(draft, &[ada.recipient()]).seal();
    assert!(collection.verdict().intact());
    let said = problems(&opened(&collection, &[&ada]));
    assert!(
        said[0].starts_with(&format!(
            "{}: is recorded as complete and is not",
            name(TAR)
        )),
        "{said:?}"
    );
}

#[test]
fn a_plain_file_beside_its_encrypted_form_is_no_evidence() {
    let ada = Identity::generate().unwrap();
    let collection = encrypted(Draft::new(), &[ada.recipient()]).seal();
    collection.put(DIFF, b"A /tmp/x\n");
    assert_eq!(
        collection.problems(),
        [format!("{DIFF}: is there and not in the manifest")]
    );
    let (code, says) = script::script(collection.directory.path(), &[&collection.key]);
    assert_eq!(
        (code, says),
        (
            1,
            format!("NOT INTACT: {DIFF}: is there and not in the manifest")
        )
    );
}

#[test]
fn what_was_cut_off_while_it_was_encrypted_leaves_the_collection_complete_beside_the_whole() {
    let ada = Identity::generate().unwrap();
    let mut draft = encrypted(Draft::new(), &[ada.recipient()]);
    let (path, bytes) = (
        format!("{TAR}.age.partial-1"),
        b"age-encryption.org/v1\n".to_vec(),
    );
    draft.manifest.artifacts.push(ArtifactRecord {
        completeness: Completeness::incomplete("the controller stopped"),
        ..record(&path, &bytes)
    });
    draft.files.push((path, bytes));
    let collection = draft.seal();
    let verdict = opened(&collection, &[&ada]);
    assert_eq!(verdict.problems, []);
    assert!(verdict.complete());
    let (code, says) = script::script(collection.directory.path(), &[&collection.key]);
    assert_eq!(code, 0, "{says}");
}

#[test]
fn a_manifest_with_a_stored_form_that_nothing_can_have_is_refused() {
    let ada = Identity::generate().unwrap();
    let change: [fn(&mut StoredForm); 4] = [
        |form| form.path = INSPECT.parse().unwrap(),
        |form| form.encoding.clear(),
        |form| form.path = format!("{TAR}.age.age").parse().unwrap(),
        |form| {
            form.path = format!("{TAR}.age.age").parse().unwrap();
            form.encoding = vec![Encoding::Age, Encoding::Age];
        },
    ];
    for change in change {
        let mut draft = encrypted(Draft::new(), &[ada.recipient()]);
        change(draft.artifact(TAR).stored.as_mut().unwrap());
        let collection = draft.seal();
        let said = collection.problems();
        assert!(said[0].contains("is said to be stored as"), "{said:?}");
        let (code, says) = script::script(collection.directory.path(), &[&collection.key]);
        assert_eq!(code, 1);
        assert!(says.contains("in a form that nothing can have"), "{says}");
    }
}
