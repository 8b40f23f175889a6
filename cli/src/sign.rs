//! `impound evidence sign`: somebody vouches for a collection with a key of their own.
//!
//! ```text
//! verify -> the manifest that was verified -> a bundle over it -> signatures/<key id>.sigstore.json
//! ```

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;

use impound_evidence::{Given, MANIFEST, SIGNATURES, Sha256, SigningKey, sign_manifest};
use serde::Serialize;

use crate::arguments::EvidenceSign;
use crate::failure::{Exit, Failure};
use crate::human::clean;
use crate::output::Output;
use crate::verify;

/// A secret key has 241 bytes; anything much longer is another file.
const KEY_LIMIT: u64 = 64 << 10;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Signed {
    signature: String,
    key_id: Sha256,
    manifest_sha256: Sha256,
}

pub(crate) async fn run(output: &mut Output, wanted: EvidenceSign) -> Result<Exit, Failure> {
    let dir = wanted.dir.as_path();
    let key = secret(&wanted.with)?;
    let key_id = key.verifying_key().key_id();
    let mut keys = verify::keys(&wanted.keys)?;
    keys.push(key.verifying_key().clone());
    let verdict = verify::watch(output, verify::open(dir)?, keys, Given::default()).await?;
    let (true, Some(manifest), Some(manifest_sha256)) =
        (verdict.intact(), &verdict.manifest, verdict.manifest_sha256)
    else {
        let first = verdict.problems.first().map(ToString::to_string);
        return Err(Failure::Failed(format!(
            "{} is NOT INTACT and was not signed: {}",
            dir.display(),
            clean(&first.unwrap_or_default())
        )));
    };
    if verdict.key == Some(key_id) {
        return Err(Failure::Usage(format!(
            "{}: this key has signed the manifest already; vouch for it with one of your own",
            wanted.with.display()
        )));
    }
    let path = dir.join(SIGNATURES).join(format!("{key_id}.sigstore.json"));
    if verdict.countersigned.contains(&key_id) {
        return Err(Failure::Usage(format!(
            "{}: this key has signed it already",
            path.display()
        )));
    }
    // What was verified is encoded again: there is one encoding, and the file may have changed since.
    let bundle = sign_manifest(&manifest.encode(), &key)
        .map_err(|error| Failure::failed(MANIFEST, &error))?;
    fs::create_dir_all(dir.join(SIGNATURES))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)?;
    file.write_all(&bundle)?;
    file.sync_all()?;
    let view = Signed {
        signature: path.display().to_string(),
        key_id,
        manifest_sha256,
    };
    output.document(&view, |_| {
        let keys: String = wanted
            .keys
            .iter()
            .map(|key| format!(" --key {}", key.display()))
            .collect();
        let (with, public) = (wanted.with.display(), wanted.with.with_extension("pub"));
        let (dir, public) = (dir.display(), public.display());
        clean(&format!(
            "{}: vouches for {MANIFEST} with SHA-256 {manifest_sha256}, with key {key_id}",
            view.signature
        )) + "\nNobody misses it who does not ask for it. With your public key:\n"
            + &clean(&format!("  openssl pkey -in {with} -pubout -out {public}"))
            + "\n"
            + &clean(&format!(
                "  impound verify {dir}{keys} --countersigned-by {public}"
            ))
    })?;
    Ok(Exit::Ok)
}

fn secret(file: &Path) -> Result<SigningKey, Failure> {
    let wrong =
        |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", file.display()));
    let mut pem = zeroize::Zeroizing::new(String::new());
    fs::File::open(file)
        .and_then(|file| file.take(KEY_LIMIT).read_to_string(&mut pem))
        .map_err(|error| wrong(&error))?;
    SigningKey::from_pem(&pem).map_err(|error| wrong(&error))
}
