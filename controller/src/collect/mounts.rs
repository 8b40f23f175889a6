//! What is mounted into the suspect's containers, by the runtime's own description: no way of reading a
//! container through its runtime has it, so the manifest names each with its mount point and its kind.

use std::collections::BTreeMap;

use impound_evidence::{ContainerRole, EvidencePath};
use serde::Deserialize;

use super::failure::cut;
use super::receive::DOCUMENT;
use super::session::Session;
use crate::describe::describe;

/// Mounts that are named of one container; a pod has a dozen.
const NAMED: usize = 200;

impl Session<'_> {
    /// One sentence for each mount of a container of the suspect that was described. That a description
    /// can't be read is a sentence, too: it costs no collection.
    pub(super) async fn uncollected_mounts(&self) -> Vec<String> {
        let suspects = self.noted(|note| {
            let known = note.containers.iter();
            known
                .filter(|known| known.container.role == ContainerRole::Suspect)
                .map(|known| {
                    let path = format!("{}/inspect.json", known.directory).parse::<EvidencePath>();
                    (known.container.name.clone(), path)
                })
                .collect::<Vec<_>>()
        });
        let mut all = Vec::new();
        for (container, path) in suspects.await {
            let Ok(path) = path else { continue };
            if self.stored(&path).is_none() {
                continue;
            }
            let mounts = match self.document(&path, DOCUMENT).await {
                Ok(bytes) => mounts(&bytes),
                Err(error) => Err(describe(&error)),
            };
            match mounts {
                Ok(mounts) => all.extend(sentences(&container, mounts)),
                Err(why) => all.push(cut(format!(
                    "Container {container}: what is mounted into it is not known: {why}."
                ))),
            }
        }
        all
    }
}

fn sentences(container: &str, mounts: BTreeMap<String, String>) -> Vec<String> {
    let more = mounts.len().saturating_sub(NAMED);
    let named = mounts.into_iter().take(NAMED);
    let mut all: Vec<_> = named
        .map(|(at, what)| {
            cut(format!(
                "Container {container}: {at} is {what}; what is in it is not collected."
            ))
        })
        .collect();
    if more > 0 {
        all.push(format!(
            "Container {container}: {more} more mounts, all in its inspect.json, are not collected."
        ));
    }
    all
}

/// As much of the runtime's description as is about mounts.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    mounts: Option<Vec<Mount>>,
    host_config: Option<HostConfig>,
    hostname_path: Option<String>,
    hosts_path: Option<String>,
    resolv_conf_path: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mount {
    #[serde(rename = "Type")]
    kind: Option<String>,
    name: Option<String>,
    source: Option<String>,
    destination: String,
    #[serde(rename = "RW")]
    writable: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    tmpfs: Option<BTreeMap<String, String>>,
    ipc_mode: Option<String>,
    shm_size: Option<u64>,
}

/// By mount point, what each is.
fn mounts(inspect: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let description: Description =
        serde_json::from_slice(inspect).map_err(|error| error.to_string())?;
    let mut all = BTreeMap::new();
    for mount in description.mounts.into_iter().flatten() {
        let what = mount.what();
        all.insert(mount.destination, what);
    }
    if let Some(host) = description.host_config {
        for (at, options) in host.tmpfs.into_iter().flatten() {
            all.entry(at).or_insert_with(|| match options.as_str() {
                "" => "a tmpfs".to_owned(),
                options => format!("a tmpfs ({options})"),
            });
        }
        let shared = match (host.ipc_mode.as_deref().unwrap_or_default(), host.shm_size) {
            ("none", _) => None,
            ("host", _) => Some("the node's own shared memory".to_owned()),
            (mode, _) if mode.starts_with("container:") => {
                Some("shared memory, a tmpfs that other containers of the pod have too".to_owned())
            }
            (_, Some(size)) => Some(format!("shared memory, a tmpfs of {size} bytes")),
            (_, None) => Some("shared memory, a tmpfs".to_owned()),
        };
        if let Some(shared) = shared {
            all.entry("/dev/shm".to_owned()).or_insert(shared);
        }
    }
    for (at, path) in [
        ("/etc/hostname", description.hostname_path),
        ("/etc/hosts", description.hosts_path),
        ("/etc/resolv.conf", description.resolv_conf_path),
    ] {
        if let Some(path) = path.filter(|path| !path.is_empty()) {
            all.entry(at.to_owned())
                .or_insert_with(|| format!("the runtime's file {path} of the node"));
        }
    }
    Ok(all)
}

impl Mount {
    fn what(&self) -> String {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let what = match self.kind.as_deref() {
            Some("bind") => bound(&text(&self.source)),
            Some("volume") => format!("a volume of the runtime named {}", text(&self.name)),
            Some("tmpfs") => "a tmpfs".to_owned(),
            other => format!(
                "a mount of the kind {}",
                other.unwrap_or("that is not told")
            ),
        };
        match self.writable {
            Some(true) => format!("{what}, writable"),
            Some(false) => format!("{what}, read-only"),
            None => what,
        }
    }
}

/// A directory or file of the node. The kubelet's directories say which volume of the pod they are:
/// `/var/lib/kubelet/pods/<uid>/volumes/kubernetes.io~<kind>/<name>`.
fn bound(source: &str) -> String {
    let plugin = source.split_once("/volumes/kubernetes.io~");
    match plugin.and_then(|(_, volume)| volume.split_once('/')) {
        Some((kind, name)) => format!("the pod's volume {name} ({kind}), {source} of the node"),
        None => format!("{source} of the node"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mount_is_named_with_its_place_and_kind() {
        let inspect = br#"{"Mounts":[
            {"Type":"bind","Source":"/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache","Destination":"/cache","RW":true},
            {"Type":"bind","Source":"/var/lib/kubelet/pods/u/etc-hosts","Destination":"/etc/hosts","RW":true},
            {"Type":"volume","Name":"data","Source":"/var/lib/docker/volumes/data/_data","Destination":"/data","RW":false},
            {"Type":"tmpfs","Source":"","Destination":"/t","RW":true},
            {"Destination":"/odd"}],
            "HostConfig":{"Tmpfs":{"/scratch":"size=1m","/t":""},"IpcMode":"container:0123","ShmSize":67108864},
            "HostsPath":"/x/hosts","ResolvConfPath":"/x/resolv.conf","HostnamePath":""}"#;
        let found = mounts(inspect).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|(at, what)| format!("{at}: {what}"))
            .collect();
        assert_eq!(
            found,
            [
                "/cache: the pod's volume cache (empty-dir), /var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache of the node, writable",
                "/data: a volume of the runtime named data, read-only",
                "/dev/shm: shared memory, a tmpfs that other containers of the pod have too",
                "/etc/hosts: /var/lib/kubelet/pods/u/etc-hosts of the node, writable",
                "/etc/resolv.conf: the runtime's file /x/resolv.conf of the node",
                "/odd: a mount of the kind that is not told",
                "/scratch: a tmpfs (size=1m)",
                "/t: a tmpfs, writable",
            ]
        );
        for (mode, expected) in [
            ("private", Some("shared memory, a tmpfs of 1 bytes")),
            ("host", Some("the node's own shared memory")),
            ("none", None),
        ] {
            let inspect = format!(r#"{{"HostConfig":{{"IpcMode":"{mode}","ShmSize":1}}}}"#);
            let found = mounts(inspect.as_bytes()).unwrap();
            assert_eq!(found.get("/dev/shm").map(String::as_str), expected);
        }
        assert!(mounts(b"[]").is_err());
    }

    #[test]
    fn of_very_many_mounts_the_rest_is_counted() {
        let many = (0..NAMED + 3).map(|n| (format!("/{n:04}"), "a tmpfs".to_owned()));
        let said = sentences("app", many.collect());
        assert_eq!(said.len(), NAMED + 1);
        assert_eq!(
            said[0],
            "Container app: /0000 is a tmpfs; what is in it is not collected."
        );
        assert!(said[NAMED].starts_with("Container app: 3 more mounts"));
    }

    #[test]
    fn fuzz_mounts_any_description_is_told_in_bounded_words_or_refused() {
        let seed = br#"{"Mounts":[{"Type":"bind","Source":"/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache","Destination":"/cache","RW":true},{"Type":"volume","Name":"data","Destination":"/data","RW":false},{"Destination":"/odd"}],"HostConfig":{"Tmpfs":{"/scratch":"size=1m"},"IpcMode":"private","ShmSize":67108864},"HostsPath":"/x/hosts"}"#;
        impound_fuzz::run("mounts", &[seed.to_vec()], |_, bytes| {
            if let Ok(found) = mounts(&bytes) {
                let said = sentences("app", found);
                assert!(said.len() <= NAMED + 1);
                let longest = said.iter().map(|sentence| sentence.chars().count()).max();
                assert!(longest <= Some(cut("x".repeat(1 << 20)).len()));
            }
        });
    }
}
