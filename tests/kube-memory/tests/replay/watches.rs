//! The recorded watches: the same actions while the live server is watched, and the same events in the same order.

use std::time::Duration;

use serde_json::{Value, json};

use super::run::{Answer, Run};

const PODS: &str = "/api/v1/namespaces/rec-11/pods";

/// Type, labels, whether terminating, and for errors the code and reason: what a watcher acts on.
fn essence(line: &Value) -> Option<Value> {
    let object = &line["object"];
    let kind = line["type"].as_str()?;
    Some(match kind {
        // When bookmarks come is the server's choice, except the one that ends the initial events.
        "BOOKMARK" if object["metadata"]["annotations"]["k8s.io/initial-events-end"] != "true" => {
            return None;
        }
        "BOOKMARK" => json!([
            kind,
            object["kind"],
            object["metadata"]["annotations"],
            object["spec"]
        ]),
        "ERROR" => json!([kind, object["code"], object["reason"], object["status"]]),
        _ => json!([
            kind,
            object["metadata"]["name"],
            object["metadata"]["labels"],
            !object["metadata"]["deletionTimestamp"].is_null(),
            object["metadata"]["deletionGracePeriodSeconds"],
        ]),
    })
}

/// Status writes of the kubelet come in other numbers: equal neighbours count once.
fn sequence<'a>(lines: impl Iterator<Item = &'a Value>) -> Vec<Value> {
    let mut all: Vec<Value> = lines.filter_map(essence).collect();
    all.dedup();
    all
}

fn live_lines(answer: &Answer) -> Vec<Value> {
    answer
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

async fn make(run: &Run, name: &str) {
    let body = json!({
        "metadata": {"name": name, "labels": {"app": "nginx"}},
        "spec": {"terminationGracePeriodSeconds": 1, "nodeSelector": {"kubernetes.io/hostname": "k8s-worker2"},
                 "containers": [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
                                 "command": ["/bin/sleep", "100000"]}]},
    });
    run.ask("POST", PODS, body).await;
    run.settle().await;
}

async fn relabel(run: &Run, name: &str) {
    let patch = json!({"metadata": {"labels": {"app": null, "status": "suspectpod"}}});
    run.ask("PATCH", &format!("{PODS}/{name}"), patch).await;
    run.settle().await;
}

/// The actions during each recorded watch.
async fn act(run: &Run, at: usize) {
    tokio::time::sleep(Duration::from_millis(100)).await;
    match at {
        1 => {
            make(run, "w").await;
            relabel(run, "w").await;
            run.ask("DELETE", &format!("{PODS}/w"), Value::Null).await;
            tokio::time::sleep(Duration::from_millis(1000)).await;
        }
        2 => {
            make(run, "v").await;
            relabel(run, "v").await;
        }
        _ => {}
    }
}

pub(crate) async fn exchange(
    run: &mut Run,
    at: usize,
    exchange: &Value,
) -> Result<(), Vec<String>> {
    if at == 3 {
        let path = format!("{PODS}/v?gracePeriodSeconds=0");
        run.ask("DELETE", &path, Value::Null).await;
        make(run, "x").await;
    }
    let mut request = exchange["request"].clone();
    let path = request["path"].as_str().unwrap();
    // Nothing is slow here: two seconds are enough for any of them.
    let path = path
        .replace("timeoutSeconds=8", "timeoutSeconds=3")
        .replace("timeoutSeconds=6", "timeoutSeconds=2");
    request["path"] = path.replace("3573", &start_version(run, at).await).into();
    let sent = run.send_recorded(&request);
    let (answer, ()) = tokio::join!(sent, act(run, at));
    let recorded = exchange["response"]["watchLines"].as_array().unwrap();
    let wanted = sequence(recorded.iter().map(|line| &line["line"]));
    let lines = live_lines(&answer);
    let found = sequence(lines.iter());
    let mut differences = Vec::new();
    if exchange["response"]["status"] != answer.status {
        differences.push(format!("status: live {}", answer.status));
    }
    // The recorded third watch went on until the pod ran: its later changes were of the status only.
    if wanted != found && !(at == 3 && wanted.starts_with(&found)) {
        differences.push(format!("recorded {wanted:#?}\n    live {found:#?}"));
    }
    let versions: Vec<u64> = lines
        .iter()
        .filter(|line| line["type"] != "ERROR" && at != 6 && at != 3)
        .filter_map(|line| {
            line["object"]["metadata"]["resourceVersion"]
                .as_str()?
                .parse()
                .ok()
        })
        .collect();
    if !versions.is_sorted() {
        differences.push(format!("versions go back: {versions:?}"));
    }
    if differences.is_empty() {
        Ok(())
    } else {
        Err(differences)
    }
}

/// The version of the first list. The second watch starts from it too, and so gets the past of the first.
async fn start_version(run: &mut Run, at: usize) -> String {
    if at == 1 {
        let list = run.ask("GET", PODS, Value::Null).await;
        let version = list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned();
        run.mapping.learn("3573", &version);
    }
    run.mapping.translate("3573")
}
