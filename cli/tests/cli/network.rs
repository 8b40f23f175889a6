//! `impound doctor --network`: what is said of a network that enforces policies and of those that don't, and that nothing is
//! left behind. The pods run nowhere: a thread plays kubelet and network, and says how they ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use kube_memory::{Cluster, ClusterConfig, Fault};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::fake::{Fake, Ran};

/// Whether an answer comes through: what of (the part, whether the policy allows it).
type Network = fn(&str, bool) -> bool;

#[test]
fn policies_that_are_enforced_are_told_from_those_that_are_not_and_from_what_could_not_be_tested() {
    let cases: [(Network, &str, &str); 4] = [
        (|_, allowed| allowed, "ok", "enforced"),
        (|_, _| true, "failed", "NOT enforced"),
        (
            |_, _| false,
            "warning",
            "could not be tested, because a pod does not reach another even where a policy allows it",
        ),
        (
            // The listener has died meanwhile.
            |part, _| part == "before",
            "warning",
            "could not be tested, because the listener did not answer either",
        ),
    ];
    for (network, state, found) in cases {
        let scene = Scene::start(Some(network));
        let ran = scene.doctor();
        let checks: Value = serde_json::from_str(&ran.out).unwrap();
        let check = about(&checks, "network policies");
        assert_eq!(check["state"], state, "{check}");
        assert!(
            check["found"].as_str().unwrap().starts_with(found),
            "{check}"
        );
        assert_eq!(check.get("remedy").is_some(), state != "ok", "{check}");
        scene.nothing_is_left();
    }
}

#[test]
fn what_is_found_is_said_of_the_nodes_that_were_tried_and_those_that_try_are_on_one_node() {
    let scene = Scene::start(Some(|_, allowed| allowed));
    let ran = scene.doctor();
    let checks: Value = serde_json::from_str(&ran.out).unwrap();
    let check = about(&checks, "network policies");
    let tried = scene.tried.lock().unwrap();
    let node = &tried["before"];
    assert_eq!(
        [&tried["denied"], &tried["after"]],
        [node, node],
        "{tried:?}"
    );
    let said = check["found"].as_str().unwrap();
    let other = said.split(['(', ':']).next().unwrap();
    assert!(
        other.contains(node.as_str()) && said.contains("not tried"),
        "{said} {tried:?}"
    );
    scene.nothing_is_left();
}

#[test]
fn what_could_not_be_deleted_is_told_beside_what_was_found() {
    let scene = Scene::start(Some(|_, allowed| allowed));
    let fault = Fault::answer(403).on("DELETE", "/networkpolicies");
    scene.cluster.inject(fault);
    let ran = scene.doctor();
    let checks: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        about(&checks, "network policies")["state"],
        "ok",
        "{checks}"
    );
    let left = about(&checks, "network policies, after the test");
    assert_eq!(left["state"], "warning", "{left}");
    let remedy = left["remedy"].as_str().unwrap();
    assert!(
        remedy.starts_with("kubectl delete pods,networkpolicies -n impound -l"),
        "{left}"
    );
}

fn about<'c>(checks: &'c Value, what: &str) -> &'c Value {
    let mut checks = checks.as_array().unwrap().iter();
    checks.find(|check| check["about"] == what).unwrap()
}

#[test]
fn without_an_installation_the_test_says_that_it_could_not_be_made() {
    let scene = Scene::start(None);
    scene.kubectl(&["delete", "daemonset", "impound-agent", "-n", "impound"]);
    let ran = scene.doctor();
    assert!(ran.out.contains("could not be tested"), "{ran:?}");
    scene.nothing_is_left();
}

#[test]
fn an_interrupted_test_leaves_nothing_behind() {
    // Nobody says how the pods end.
    let scene = Scene::start(None);
    let running = scene.command().spawn().unwrap();
    scene.until("a pod that tries", || {
        scene
            .made("pods")
            .iter()
            .any(|name| name.ends_with("-before"))
    });
    let ran = interrupted(running);
    assert_eq!(ran.code, 130, "{ran:?}");
    assert!(ran.err.contains("are deleted"), "{ran:?}");
    scene.nothing_is_left();
}

fn interrupted(running: Child) -> Ran {
    let pid = Pid::from_child(&running);
    kill_process(pid, Signal::INT).unwrap();
    Ran::from(running.wait_with_output().unwrap())
}

struct Scene {
    fake: Fake,
    kubeconfig: PathBuf,
    stop: Arc<AtomicBool>,
    kubelet: Option<JoinHandle<()>>,
    dir: tempfile::TempDir,
    /// The node of each part that has tried.
    tried: Arc<Mutex<BTreeMap<String, String>>>,
    cluster: Cluster,
    _runtime: tokio::runtime::Runtime,
}

impl Scene {
    fn start(network: Option<Network>) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let cluster = runtime
            .block_on(Cluster::start(ClusterConfig::default()))
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, cluster.kubeconfig()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let tried = Arc::<Mutex<BTreeMap<String, String>>>::default();
        let scene = Self {
            fake: Fake::start(),
            kubelet: network.map(|network| {
                let (kubeconfig, stop) = (kubeconfig.clone(), Arc::clone(&stop));
                let tried = Arc::clone(&tried);
                std::thread::spawn(move || play(network, &kubeconfig, &tried, &stop))
            }),
            kubeconfig,
            stop,
            dir,
            tried,
            cluster,
            _runtime: runtime,
        };
        let labels = json!({"app": "agent"});
        let agents = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "impound-agent", "namespace": "impound"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                "spec": {"containers": [{"name": "front", "image": "registry.example/agent@sha256:1"}]}}}});
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "impound"}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [namespace, agents]});
        let file = scene.dir.path().join("installed.json");
        std::fs::write(&file, list.to_string()).unwrap();
        let file = file.display().to_string();
        scene.kubectl(&["create", "--validate=false", "-f", &file]);
        scene
    }

    fn command(&self) -> Command {
        let kubeconfig = self.kubeconfig.display().to_string();
        let mut command = self.fake.command(&[
            "doctor",
            "--network",
            "--kubeconfig",
            &kubeconfig,
            "-o",
            "json",
        ]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn doctor(&self) -> Ran {
        Ran::from(self.command().output().unwrap())
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        kubectl(&self.kubeconfig, arguments).unwrap()
    }

    /// Names of what the test has made and what is not deleted.
    fn made(&self, kind: &str) -> Vec<String> {
        let label = "impound.dev/network-test";
        let listed = self.kubectl(&["get", kind, "-A", "-l", label, "-o", "name"]);
        listed.lines().map(str::to_owned).collect()
    }

    fn nothing_is_left(&self) {
        // A pod ends a moment after it was deleted.
        self.until("everything is deleted", || self.made("pods").is_empty());
        assert_eq!(self.made("networkpolicies"), Vec::<String>::new());
    }

    fn until(&self, what: &str, so: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !so() {
            assert!(Instant::now() < deadline, "not seen: {what}");
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(kubelet) = self.kubelet.take() {
            let _ = kubelet.join();
        }
    }
}

/// Says of each pod that tries how it ended in such a network, and cordons the node of the first one: who is to be on it
/// has to ask for it.
fn play(
    network: Network,
    kubeconfig: &Path,
    tried: &Mutex<BTreeMap<String, String>>,
    stop: &AtomicBool,
) {
    let read = |arguments: &[&str]| -> Value {
        let text = kubectl(kubeconfig, arguments).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    while !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(50));
        let of_test = [
            "-n",
            "impound",
            "-l",
            "impound.dev/network-test",
            "-o",
            "json",
        ];
        let pods = read(&[&["get", "pods"][..], &of_test].concat());
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let arguments = pod["spec"]["containers"][0]["args"].as_array().unwrap();
            let running = pod["status"]["phase"] == "Running";
            if !running || !arguments.contains(&json!("try")) {
                continue;
            }
            let policies = read(&[&["get", "networkpolicies"][..], &of_test].concat());
            // At the end they go one after the other.
            let Some([policy]) = policies["items"].as_array().map(Vec::as_slice) else {
                continue;
            };
            let rules = policy["spec"]["ingress"].as_array();
            let allowed = rules.is_some_and(|rules| !rules.is_empty());
            let part = name.rsplit('-').next().unwrap();
            let node = pod["spec"]["nodeName"].as_str().unwrap();
            tried.lock().unwrap().insert(part.into(), node.into());
            if part == "before" {
                kubectl(kubeconfig, &["cordon", node]).unwrap();
            }
            let comes = network(part, allowed);
            let (phase, code) = match arguments.contains(&json!("comes")) == comes {
                true => ("Succeeded", 0),
                false => ("Failed", 1),
            };
            let state = json!({"terminated": {"exitCode": code}});
            let status = json!({"status": {"phase": phase,
                "containerStatuses": [{"name": "reach", "image": "i", "imageID": "", "ready": false,
                    "restartCount": 0, "state": state}]}});
            let _ = kubectl(
                kubeconfig,
                &[
                    "patch",
                    "pod",
                    name,
                    "-n",
                    "impound",
                    "--subresource=status",
                    "--type=merge",
                    "-p",
                    &status.to_string(),
                ],
            );
        }
    }
}

fn kubectl(kubeconfig: &Path, arguments: &[&str]) -> Result<String, String> {
    let ran: Output = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments)
        .output()
        .expect("kubectl is needed: install it (1.27 or later)");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    match ran.status.success() {
        true => Ok(text(ran.stdout)),
        false => Err(text(ran.stderr)),
    }
}
