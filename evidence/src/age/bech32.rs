//! Bech32, in which age writes its keys.
//!
//! Source: <https://github.com/bitcoin/bips/blob/master/bip-0173.mediawiki>, without its limit of 90 characters, as
//! <https://c2sp.org/age> has it.

use zeroize::Zeroize as _;

const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
/// Digits of the checksum.
const CHECKSUM: usize = 6;
/// Longest text that is looked at: keys have 62 and 74 characters.
const LONGEST: usize = 128;

/// `data` behind `prefix` in lower case.
pub(super) fn encode(prefix: &str, data: &[u8]) -> String {
    let mut digits = regroup(data, 8, 5, true).unwrap_or_default();
    let sum = polymod(
        &mut expanded(prefix)
            .chain(digits.iter().copied())
            .chain([0; CHECKSUM]),
    ) ^ 1;
    digits.extend((0..CHECKSUM).map(|at| (sum >> (5 * (CHECKSUM - 1 - at)) & 31) as u8));
    let letters = digits
        .iter()
        .filter_map(|digit| ALPHABET.get(usize::from(*digit)));
    let text = format!(
        "{prefix}1{}",
        letters
            .map(|letter| char::from(*letter))
            .collect::<String>()
    );
    digits.zeroize();
    text
}

/// The prefix in lower case, and the bytes; or what is wrong with it.
pub(super) fn decode(text: &str) -> Result<(String, Vec<u8>), &'static str> {
    if text.len() > LONGEST {
        return Err("it is too long");
    }
    let lower = text.to_ascii_lowercase();
    if text != lower && text != text.to_ascii_uppercase() {
        return Err("it has upper and lower case");
    }
    let (prefix, rest) = lower
        .rsplit_once('1')
        .ok_or("it has no 1 behind its prefix")?;
    let digit = |letter: u8| ALPHABET.iter().position(|known| *known == letter);
    let digits = rest
        .bytes()
        .map(|letter| digit(letter).map(|digit| digit as u8));
    let digits: Vec<u8> = digits
        .collect::<Option<_>>()
        .ok_or("it has a letter that no key has")?;
    if polymod(&mut expanded(prefix).chain(digits.iter().copied())) != 1 {
        return Err("its checksum is wrong: it is mistyped or cut");
    }
    let end = digits
        .len()
        .checked_sub(CHECKSUM)
        .ok_or("it is too short")?;
    let data = regroup(digits.get(..end).unwrap_or_default(), 5, 8, false);
    Ok((prefix.to_owned(), data.ok_or("it has bits left over")?))
}

fn expanded(prefix: &str) -> impl Iterator<Item = u8> {
    let high = prefix.bytes().map(|byte| byte >> 5);
    high.chain([0]).chain(prefix.bytes().map(|byte| byte & 31))
}

fn polymod(digits: &mut dyn Iterator<Item = u8>) -> u32 {
    const GENERATOR: [u32; 5] = [
        0x3b6a_57b2,
        0x2650_8e6d,
        0x1ea1_19fa,
        0x3d42_33dd,
        0x2a14_62b3,
    ];
    digits.fold(1, |sum, digit| {
        let moved = (sum & 0x01ff_ffff) << 5 ^ u32::from(digit);
        let bits = (0..)
            .zip(GENERATOR)
            .filter(|(bit, _)| sum >> (25 + bit) & 1 == 1);
        bits.fold(moved, |sum, (_, generator)| sum ^ generator)
    })
}

/// Bits in groups of `from` as groups of `to`. None if, without padding, something is left over but zeros.
fn regroup(data: &[u8], from: u32, to: u32, pad: bool) -> Option<Vec<u8>> {
    let (mut bits, mut held): (u32, u32) = (0, 0);
    let mut out = Vec::new();
    for group in data {
        bits = (bits << from | u32::from(*group)) & 0xffff;
        held += from;
        while held >= to {
            held -= to;
            out.push((bits >> held & ((1 << to) - 1)) as u8);
        }
    }
    let rest = bits << (to - held) & ((1 << to) - 1);
    if pad && held > 0 {
        out.push(rest as u8);
    } else if !pad && (held >= from || rest != 0) {
        return None;
    }
    Some(out)
}
