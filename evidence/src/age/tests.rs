//! What is encrypted is read with any of its keys and no other, and nothing that was changed is.
//!
//! `tests/age`: a file that `age` 1.1.1 made, one that this made, and the key that opens both. That `age` opens the
//! second is what `tests/independent.sh` shows.

use super::*;

fn sealed(recipients: &[Recipient], plain: &[u8], piece: usize) -> Vec<u8> {
    let (mut encryptor, mut file) = Encryptor::new(recipients).unwrap();
    for part in plain.chunks(piece) {
        encryptor.update(part, &mut file).unwrap();
    }
    encryptor.finish(&mut file).unwrap();
    file
}

fn opened(file: &[u8], identities: &[Identity]) -> Result<Vec<u8>, OpenError> {
    let mut plain = Vec::new();
    Decryptor::new(file, identities)?.read_to_end(&mut plain)?;
    Ok(plain)
}

#[test]
fn whoever_has_one_of_the_keys_reads_what_was_encrypted_and_nobody_else() {
    let [ada, bob, eve] = [(); 3].map(|()| Identity::generate().unwrap());
    let recipients = [ada.recipient(), bob.recipient()];
    for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 17] {
        let plain: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        for piece in [1000, CHUNK, 3 * CHUNK] {
            let file = sealed(&recipients, &plain, piece);
            for one in [&ada, &bob] {
                assert!(
                    opened(&file, std::slice::from_ref(one)).unwrap() == plain,
                    "{size}"
                );
            }
            assert!(opened(&file, &[eve.clone(), ada.clone()]).unwrap() == plain);
            assert!(matches!(
                opened(&file, std::slice::from_ref(&eve)),
                Err(OpenError::NotForUs)
            ));
        }
    }
}

#[test]
fn no_changed_cut_or_lengthened_file_is_read_to_its_end() {
    let ada = Identity::generate().unwrap();
    let identities = [ada.clone()];
    let plain = vec![7; CHUNK + 300];
    let file = sealed(&[ada.recipient()], &plain, CHUNK);
    let header = file.len() - 16 - plain.len() - 2 * TAG;
    let places = (0..header + 40)
        .chain((header..file.len()).step_by(997))
        .chain([file.len() - 1]);
    for at in places {
        let mut changed = file.clone();
        changed[at] ^= 1;
        assert!(
            opened(&changed, &identities).is_err(),
            "a change at {at} was not noticed"
        );
    }
    for length in [
        0,
        10,
        header,
        header + 16,
        header + 16 + CHUNK + TAG,
        file.len() - 1,
    ] {
        assert!(
            opened(&file[..length], &identities).is_err(),
            "cut to {length}"
        );
    }
    assert!(opened(&[&file[..], b"x"].concat(), &identities).is_err());
    // A last chunk that is moved forward: the second of two, without the first.
    let moved = [&file[..header + 16], &file[header + 16 + CHUNK + TAG..]].concat();
    assert!(opened(&moved, &identities).is_err());
}

#[test]
fn files_of_the_age_program_are_read_and_those_for_it_are_kept() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/age");
    let key = std::fs::read_to_string(root.join("key.txt")).unwrap();
    let identities = Identity::parse_file(&key).unwrap();
    // As `seq 1 25000` writes them: two chunks and a part of one.
    let plain: String = (1..=25_000).map(|n| format!("{n}\n")).collect();
    let ours = root.join("ours.age");
    if std::env::var_os("IMPOUND_REGENERATE").is_some() {
        let other = Identity::generate().unwrap().recipient();
        let recipients = [other, identities[0].recipient()];
        std::fs::write(&ours, sealed(&recipients, plain.as_bytes(), 1000)).unwrap();
    }
    for file in [root.join("theirs.age"), ours] {
        let file = std::fs::read(file).unwrap();
        assert!(opened(&file, &identities).unwrap() == plain.as_bytes());
    }
}

#[test]
fn keys_are_spelt_as_age_spells_them() {
    // The example of https://c2sp.org/age, "X25519 recipient stanza".
    let text = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
    let public = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
    let file = format!("# created: 2026-11-26\n# public key: {public}\n\n{text}\n");
    let identities = Identity::parse_file(&file).unwrap();
    assert_eq!(identities.len(), 1);
    assert_eq!(identities[0].recipient().to_string(), public);
    assert_eq!(identities[0].reveal().as_str(), text);
    assert_eq!(
        public.parse::<Recipient>().unwrap(),
        identities[0].recipient()
    );
    assert!(!format!("{:?}", identities[0]).contains("SECRET"));
}

#[test]
fn what_is_no_public_key_is_refused_and_no_secret_is_repeated() {
    let secret = Identity::generate().unwrap();
    let public = secret.recipient().to_string();
    let error = secret
        .reveal()
        .parse::<Recipient>()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("secret key") && !error.contains(&secret.reveal()[16..]),
        "{error}"
    );
    let mistyped = public.replace('q', "p");
    let mistyped = if mistyped == public {
        public.replace('p', "q")
    } else {
        mistyped
    };
    let upper = public.to_uppercase();
    let long = "age1".repeat(100);
    for wrong in [
        "",
        "age1",
        "ssh-ed25519 AAAA",
        &public[..40],
        &mistyped,
        &upper,
        &long,
    ] {
        assert!(wrong.parse::<Recipient>().is_err(), "{wrong:?} was taken");
    }
    let file = format!("{}\nhello\n", secret.reveal().as_str());
    let error = Identity::parse_file(&file).unwrap_err();
    assert!(error.to_string().starts_with("line 2: "), "{error}");
    assert_eq!(
        Identity::parse_file("# nothing\n").unwrap_err(),
        AgeError::NoIdentity
    );
}

#[test]
fn fuzz_age_nothing_that_is_damaged_panics_or_is_taken_for_the_whole() {
    let ada = Identity::generate().unwrap();
    let plain = vec![7; 3000];
    let seed = sealed(&[ada.recipient(), ada.recipient()], &plain, CHUNK);
    let identities = [ada];
    impound_fuzz::run("age", &[seed], |_, bytes| {
        if let Ok(read) = opened(&bytes, &identities) {
            assert_eq!(read, plain);
        }
    });
}
