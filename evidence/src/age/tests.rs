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

/// Fails once, behind so many bytes, and goes on then as if nothing had been.
struct Hiccup<'a> {
    from: &'a [u8],
    at: usize,
    fails: Option<io::ErrorKind>,
}

impl Read for Hiccup<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == 0
            && let Some(kind) = self.fails.take()
        {
            return Err(kind.into());
        }
        let until = if self.fails.is_some() {
            self.at
        } else {
            usize::MAX
        };
        let room = buffer.len().min(until);
        let n = self.from.read(&mut buffer[..room])?;
        self.at = self.at.saturating_sub(n);
        Ok(n)
    }
}

/// What can be read until the first error; behind it there must be nothing but errors.
fn read_on(decryptor: &mut impl Read) -> (Vec<u8>, bool) {
    let (mut read, mut buffer) = (Vec::new(), vec![0; 7001]);
    loop {
        match decryptor.read(&mut buffer) {
            Ok(0) => return (read, true),
            Ok(n) => read.extend_from_slice(&buffer[..n]),
            Err(_) => break,
        }
    }
    buffer.fill(0);
    for _ in 0..3 {
        assert!(decryptor.read(&mut buffer).is_err());
        assert!(buffer.iter().all(|byte| *byte == 0));
    }
    (read, false)
}

#[test]
fn behind_an_error_nothing_is_read_any_more() {
    let ada = Identity::generate().unwrap();
    let identities = [ada.clone()];
    let plain: Vec<u8> = (0..3 * CHUNK + 17).map(|n| (n % 251) as u8).collect();
    let file = sealed(&[ada.recipient()], &plain, CHUNK);
    let start = file.len() - plain.len() - 4 * TAG;
    let chunks = (0..4).map(|n| start + n * (CHUNK + TAG));
    let places = (0..file.len()).step_by(9973).chain(chunks);
    for at in places.chain([file.len()]) {
        let broken = |fails| Hiccup {
            from: &file,
            at,
            fails: Some(fails),
        };
        // Reading again is what is done about this one.
        let interrupted = broken(io::ErrorKind::Interrupted);
        let mut decryptor = Decryptor::new(interrupted, &identities).unwrap();
        assert!(read_on(&mut decryptor) == (plain.clone(), true), "at {at}");
        let Ok(mut decryptor) = Decryptor::new(broken(io::ErrorKind::TimedOut), &identities) else {
            assert!(at < start + CHUNK + TAG, "at {at}");
            continue;
        };
        let (read, whole) = read_on(&mut decryptor);
        assert!(!whole && plain.starts_with(&read), "at {at}");
    }
    // Of the second chunk nothing, and what follows it neither.
    let mut changed = file;
    changed[start + CHUNK + TAG + 5] ^= 1;
    let mut decryptor = Decryptor::new(&changed[..], &identities).unwrap();
    assert!(read_on(&mut decryptor) == (plain[..CHUNK].to_vec(), false));
}

#[test]
fn what_does_not_begin_as_an_age_file_is_seen_to_be_none_without_a_key() {
    let ada = Identity::generate().unwrap();
    let file = sealed(&[ada.recipient(), ada.recipient()], b"", CHUNK);
    let says = |file: &[u8], size: usize| {
        let start = &file[..file.len().min(usize::try_from(START).unwrap())];
        check_form(start, size as u64).map_err(|error| error.to_string())
    };
    assert_eq!(says(&file, file.len()), Ok(()));
    let header = file.len() - 32;
    for length in (0..header).chain([header + 31]) {
        assert!(says(&file[..length], length).is_err(), "cut to {length}");
    }
    let text = String::from_utf8(file[..header].to_vec()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let changed = |from: &str, to: &str| text.replacen(from, to, 1);
    let long = format!(
        "{}\n{}",
        lines[0],
        format!("{}\n{}\n", lines[1], lines[2]).repeat(200)
    );
    for (wrong, why) in [
        (changed("/v1", "/v2"), "version"),
        (format!("{}\n{}\n", lines[0], lines[5]), "no recipient"),
        (changed("X25519", "scrypt"), "X25519"),
        (changed("-> X25519 ", "-> X25519 x "), "base64"),
        (changed(lines[2], &lines[2][1..]), "base64"),
        (changed(lines[5], &format!("{}=", lines[5])), "base64"),
        (format!("{long}{}\n", lines[5]), "does not end"),
        ("A /tmp/x\n".to_owned(), "version"),
    ] {
        let said = says(wrong.as_bytes(), 1 << 20).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn public_keys_that_no_secret_key_has_are_refused_where_they_are_given() {
    let hex = |text: &str| -> [u8; 32] {
        let digits = (0..32).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap());
        digits.collect::<Vec<_>>().try_into().unwrap()
    };
    let with = |first: u8, middle: u8, last: u8| {
        let mut key = [middle; 32];
        (key[0], key[31]) = (first, last);
        key
    };
    let low = [
        with(0, 0, 0),
        with(1, 0, 0),
        with(0xec, 0xff, 0x7f),
        hex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        hex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    ];
    let mut other = Identity::generate().unwrap().recipient().public;
    assert!(flaw(&other).is_none());
    other[31] |= 0x80;
    let misspelt = [
        with(0xed, 0xff, 0x7f),
        with(0xee, 0xff, 0x7f),
        with(0xff, 0xff, 0x7f),
        with(0, 0, 0x80),
        with(9, 0, 0x80),
        other,
    ];
    let cases = low.map(|key| (key, "low order"));
    for (key, why) in cases
        .into_iter()
        .chain(misspelt.map(|key| (key, "spelling")))
    {
        let text = bech32::encode(RECIPIENT, &key);
        let error = text.parse::<Recipient>().unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(&text), "{error}");
    }
    // The largest one, and the curve's base point.
    for key in [with(0xeb, 0xff, 0x7f), with(9, 0, 0)] {
        assert!(bech32::encode(RECIPIENT, &key).parse::<Recipient>().is_ok());
    }
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
