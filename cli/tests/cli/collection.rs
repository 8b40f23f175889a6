//! A real, signed collection on disk.

use std::fs;
use std::path::Path;

use impound_evidence::*;
use impound_proto::controller::v1::EvidenceFile;

pub(crate) const TAR: &str =
    "artifacts/worker2/default_web-5d4f-x7/nginx/evidence-compromised-nginx-0123456789ab.tar";

pub(crate) struct Collection {
    pub(crate) directory: tempfile::TempDir,
    key: SigningKey,
    log: CustodyLog,
    manifest: Manifest,
}

impl Collection {
    /// Sealed with the key in the file.
    pub(crate) fn sealed(key: &Path) -> Self {
        // Nothing but its end: a whole tar of 1 MiB.
        Self::sealed_with(key, vec![0; 1 << 20])
    }

    /// As [`Collection::sealed`], with this tar.
    pub(crate) fn sealed_with(key: &Path, tar: Vec<u8>) -> Self {
        let diff = b"A /tmp/x\n".to_vec();
        Self::of(
            key,
            vec![
                ("before/pod.json", b"{\"kind\":\"Pod\"}".to_vec()),
                (TAR, tar),
                ("artifacts/worker2/default_web-5d4f-x7/nginx/diff.txt", diff),
            ],
        )
    }

    /// As [`Collection::sealed_with`], of a tar that is not complete.
    pub(crate) fn sealed_partial(key: &Path, tar: Vec<u8>, completeness: Completeness) -> Self {
        Self::new(key, vec![(TAR, tar)], completeness)
    }

    /// Of these files.
    pub(crate) fn of(key: &Path, files: Vec<(&str, Vec<u8>)>) -> Self {
        Self::new(key, files, Completeness::Complete)
    }

    fn new(key: &Path, files: Vec<(&str, Vec<u8>)>, completeness: Completeness) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = SigningKey::from_pem(&fs::read_to_string(key).unwrap()).unwrap();
        let now = Timestamp::now();
        let artifacts = files.iter().map(|(path, bytes)| ArtifactRecord {
            path: path.parse().unwrap(),
            size: bytes.len() as u64,
            sha256: Sha256::of(bytes),
            chunk_root: Some(Digests::of(bytes).chunk_root),
            stored: None,
            media_type: "application/octet-stream".to_owned(),
            method: method(path),
            api_call: "GET /containers/0123/export".to_owned(),
            source_id: "0123".repeat(16),
            derived_from: derived_from(path),
            consistency: Consistency::Live,
            completeness: completeness.clone(),
            omissions: Method::Export.omissions(),
            clock_offset_ms: None,
            started: Some(now),
            finished: Some(now),
            received_started: now,
            received_finished: now,
            receipt: Some(StorageReceipt {
                location: "file:///evidence".to_owned(),
                version: None,
                lock: None,
                verified: now,
            }),
        });
        let mut manifest = Manifest {
            case: "INC-7".parse().unwrap(),
            collection: "web-5d4f-x7".parse().unwrap(),
            outcome: match completeness {
                Completeness::Complete => Outcome::Complete,
                Completeness::Incomplete { .. } => Outcome::Partial,
            },
            requested_by: "spiffe://impound.dev/responder/responder/ada".to_owned(),
            claimed: false,
            requester_certificate_sha256: None,
            reason: "shell in container".to_owned(),
            created: "2026-01-31T03:05:00.000000Z".parse().unwrap(),
            controller: Build {
                name: "impound-controller".to_owned(),
                version: "0.1.0".to_owned(),
                executable_sha256: None,
            },
            cluster: "6f2b0f6a-0d5b-4c8e-8a55-0a3f1b7f6f10".to_owned(),
            node: Node {
                name: "worker2".to_owned(),
                uid: None,
                boot_id: None,
            },
            pod: Pod {
                namespace: "default".to_owned(),
                name: "web-5d4f-x7".to_owned(),
                uid: "0b0c3c3e-5a0e-4b1e-9d5f-6a9f0d9a5a11".to_owned(),
            },
            quarantine: None,
            agents: Vec::new(),
            containers: Vec::new(),
            artifacts: artifacts.collect(),
            missing: Vec::new(),
            alterations: Vec::new(),
            omissions: Vec::new(),
            storage: None,
            encrypted_to: Vec::new(),
            custody: CustodyLog::new("").head(),
            timestamp: None,
        };
        manifest.artifacts.sort_by(|a, b| a.path.cmp(&b.path));
        let log = CustodyLog::new(origin(&manifest.case));
        let mut collection = Self {
            directory,
            key,
            log,
            manifest,
        };
        for (path, bytes) in files {
            collection.write(path, &bytes);
        }
        for record in collection.manifest.artifacts.clone() {
            let mut entry = Entry::new(Event::Stored, "controller", record.path.as_str());
            entry.artifact = Some(record);
            collection.append(entry);
        }
        collection.seal();
        collection
    }

    /// Signs another manifest.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Manifest)) {
        change(&mut self.manifest);
        self.seal();
    }

    /// Signs the manifest as it is now.
    pub(crate) fn seal(&mut self) {
        self.manifest.custody = self.log.head();
        let manifest = self.manifest.encode();
        self.write(MANIFEST, &manifest);
        self.write(BUNDLE, &sign_manifest(&manifest, &self.key).unwrap());
    }

    /// As if something had been asked for that isn't there.
    pub(crate) fn make_partial(&mut self) {
        self.manifest.outcome = Outcome::Partial;
        self.manifest.missing.push(Missing {
            path: "artifacts/worker2/default_web-5d4f-x7/sidecar"
                .parse()
                .unwrap(),
            reason: "the container was gone when it was asked for".to_owned(),
        });
        self.seal();
    }

    pub(crate) fn read(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.directory.path().join(path)).ok()
    }

    pub(crate) fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn sha256(&self, path: &str) -> String {
        let record = self
            .manifest
            .artifacts
            .iter()
            .find(|record| record.stored_path().as_str() == path);
        record
            .map(|record| record.stored_sha256().to_string())
            .unwrap_or_default()
    }

    pub(crate) fn files(&self) -> Vec<EvidenceFile> {
        let names = self
            .manifest
            .artifacts
            .iter()
            .map(|record| record.stored_path().as_str());
        names
            .chain([CHECKPOINT, CUSTODY, MANIFEST, BUNDLE])
            .map(|path| EvidenceFile {
                case_id: self.manifest.case.to_string(),
                collection: self.manifest.collection.to_string(),
                path: path.to_owned(),
                size: self.read(path).unwrap().len() as u64,
                sha256: self.sha256(path),
                completeness: if self.sha256(path).is_empty() {
                    ""
                } else {
                    "complete"
                }
                .to_owned(),
            })
            .collect()
    }

    /// Encrypts every artifact, as the controller does it.
    pub(crate) fn encrypt(&mut self, recipient: age::Recipient) {
        self.manifest.encrypted_to = vec![recipient.clone()];
        for mut record in std::mem::take(&mut self.manifest.artifacts) {
            let plain = self.read(record.path.as_str()).unwrap();
            let mut encoder = Encoder::new(std::slice::from_ref(&recipient)).unwrap();
            let mut file = encoder.update(&plain).unwrap();
            let (rest, encoded) = encoder.finish().unwrap();
            file.extend(rest);
            fs::remove_file(self.directory.path().join(record.path.as_str())).unwrap();
            record.stored = Some(encoded.form(&record.path).unwrap());
            record.chunk_root = Some(Digests::of(&file).chunk_root);
            self.write(record.stored_path().as_str(), &file);
            self.manifest.artifacts.push(record);
        }
        self.log = CustodyLog::new(self.log.origin());
        fs::remove_file(self.directory.path().join(CUSTODY)).unwrap();
        for record in self.manifest.artifacts.clone() {
            let mut entry = Entry::new(Event::Stored, "controller", record.path.as_str());
            entry.artifact = Some(record);
            self.append(entry);
        }
        self.seal();
    }

    /// Another entry, as a case's log gets with every read.
    pub(crate) fn go_on(&mut self) {
        self.append(Entry::new(Event::Exported, "ada", TAR));
    }

    /// Cuts the log back to its first entry, as somebody with write access to the store could.
    pub(crate) fn cut_log(&mut self) {
        let lines = self.read(CUSTODY).unwrap();
        let first = lines.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        self.log = CustodyLog::read(self.log.origin(), &lines[..first], |_| ()).unwrap();
        self.write(CUSTODY, &lines[..first]);
        self.write(CHECKPOINT, &self.log.checkpoint(&self.key).unwrap());
    }

    fn append(&mut self, entry: Entry) {
        let mut lines = self.read(CUSTODY).unwrap_or_default();
        lines.extend(self.log.append(entry).unwrap());
        self.write(CUSTODY, &lines);
        self.write(CHECKPOINT, &self.log.checkpoint(&self.key).unwrap());
    }
}

fn method(path: &str) -> Method {
    match path {
        path if path.ends_with(".tar") => Method::Export,
        path if path.ends_with(".changes.jsonl") => Method::Derived,
        path if path.contains("diff.") => Method::Diff,
        _ => Method::KubernetesObject,
    }
}

/// A list of changes is made from the diff beside it.
fn derived_from(path: &str) -> Vec<EvidencePath> {
    let (directory, _) = path.rsplit_once('/').unwrap_or_default();
    match method(path) {
        Method::Derived => vec![format!("{directory}/diff.jsonl").parse().unwrap()],
        _ => Vec::new(),
    }
}
