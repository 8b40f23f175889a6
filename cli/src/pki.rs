//! `impound pki`: the files of an installation, and a new key to sign evidence with.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use impound_evidence::{Keyring, SigningKey, Timestamp, VerifyingKey};
use impound_proto::pki::{self, Outcome, Plan};
use impound_proto::tls::explain;
use serde::Serialize;

use crate::arguments::{Pki, PkiInit};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Table};

pub(crate) fn run(output: &mut Output, command: Pki) -> Result<Exit, Failure> {
    match command {
        Pki::Init(wanted) => init(output, wanted),
        Pki::RotateSigningKey(wanted) => rotate(output, &wanted.dir.join("signing")),
    }
}

#[derive(Serialize)]
struct File {
    path: String,
    created: bool,
}

fn init(output: &mut Output, wanted: PkiInit) -> Result<Exit, Failure> {
    let plan = Plan {
        nodes: wanted.nodes,
        responders: wanted.responders.into_iter().map(|one| one.0).collect(),
        controller_addresses: wanted.controller_addresses,
        leaf_life: wanted.days.map(|days| time::Duration::days(days.into())),
    };
    let written = pki::init(&wanted.dir, &plan).map_err(|error| Failure::Usage(explain(&error)))?;
    let files: Vec<File> = written
        .into_iter()
        .map(|file| File {
            path: file.path.display().to_string(),
            created: file.outcome == Outcome::Created,
        })
        .collect();
    output.document(&files, |_| {
        let mut table = Table::new(&["FILE", "STATE"]);
        for file in &files {
            let state = if file.created { "created" } else { "kept" };
            table.row([file.path.clone(), state.to_owned()]);
        }
        table.to_string()
    })?;
    Ok(Exit::Ok)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rotated {
    key_id: String,
    former_key_id: String,
    keys: String,
}

/// The new key is written beside the old one first, then listed, then put in its place: whenever this
/// is interrupted, every key that can have signed is in the list, and the next run goes on.
fn rotate(output: &mut Output, signing: &Path) -> Result<Exit, Failure> {
    let at = |name: &str| signing.join(name);
    let wrong = |file: &Path, error: &dyn std::fmt::Display| {
        Failure::Usage(format!("{}: {error}", file.display()))
    };
    let (secret, public, new, ring_file) = (
        at("evidence.key"),
        at("evidence.pub"),
        at("evidence.key.new"),
        at("evidence-keys.json"),
    );
    let read = |file: &Path| fs::read_to_string(file).map_err(|error| wrong(file, &error));
    let former = VerifyingKey::from_pem(&read(&public)?).map_err(|error| wrong(&public, &error))?;
    let key = match new.exists() {
        true => SigningKey::from_pem(&read(&new)?).map_err(|error| wrong(&new, &error))?,
        false => {
            let key = SigningKey::generate().map_err(|error| wrong(&new, &error))?;
            let pem = key.to_pem().map_err(|error| wrong(&new, &error))?;
            write(&new, pem.as_bytes(), 0o600).map_err(|error| wrong(&new, &error))?;
            key
        }
    };
    let listing = |error| wrong(&ring_file, &error);
    let mut ring = match ring_file.exists() {
        true => Keyring::from_json(read(&ring_file)?.as_bytes()).map_err(listing)?,
        false => Keyring::default(),
    };
    if !ring.has(&former) {
        ring.turn_to(&former, None).map_err(listing)?;
    }
    if !ring.has(key.verifying_key()) {
        let now = Some(Timestamp::now());
        ring.turn_to(key.verifying_key(), now).map_err(listing)?;
    }
    replace(&ring_file, &ring.to_json())?;
    let pem = key.verifying_key().to_pem();
    replace(
        &public,
        pem.map_err(|error| wrong(&public, &error))?.as_bytes(),
    )?;
    fs::rename(&new, &secret).map_err(|error| wrong(&secret, &error))?;
    fs::File::open(signing)?.sync_all()?;
    let view = Rotated {
        key_id: key.verifying_key().key_id().to_string(),
        former_key_id: former.key_id().to_string(),
        keys: ring_file.display().to_string(),
    };
    output.document(&view, |_| {
        format!(
            "evidence is signed with {} from now on\n{} is kept in {}\n\nNext\n  restart impound-controller with --signing-key {} --evidence-keys {}\n",
            view.key_id,
            view.former_key_id,
            view.keys,
            secret.display(),
            view.keys
        )
    })?;
    Ok(Exit::Ok)
}

/// Puts a file in the place of the one there, whole or not at all.
fn replace(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = file.with_file_name(name);
    if part.exists() {
        fs::remove_file(&part)?;
    }
    write(&part, bytes, 0o644)?;
    fs::rename(&part, file)?;
    Ok(())
}

fn write(file: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(file)?;
    file.write_all(bytes)?;
    file.sync_all()
}
