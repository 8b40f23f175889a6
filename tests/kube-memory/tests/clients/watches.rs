//! Watchers that lose their watch.

use super::*;

/// Waits until the watcher has shown this value. Errors are how a watcher tells that it starts again.
async fn seen(
    events: &mut (impl Stream<Item = watcher::Result<Event<ConfigMap>>> + Unpin),
    value: &str,
) {
    let found = async {
        while let Some(event) = events.next().await {
            if let Ok(Event::Apply(found) | Event::InitApply(found)) = event
                && found.data.as_ref().is_some_and(|data| data["v"] == value)
            {
                return;
            }
        }
        panic!("the watcher ended");
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap();
}

#[tokio::test]
async fn a_watcher_outlives_cut_watches_and_forgotten_versions() {
    let (cluster, client) = start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    for streaming in [false, true] {
        let name = format!("w-{streaming}");
        let mut config = watcher::Config::default().labels("watched=yes");
        if streaming {
            config = config.streaming_lists();
        }
        let mut events = watcher(api.clone(), config).boxed();
        let body = |value: &str| {
            json!({"apiVersion": "v1", "kind": "ConfigMap",
                   "metadata": {"name": name, "labels": {"watched": "yes"}}, "data": {"v": value}})
        };
        let set = |value: &'static str| {
            let (api, body, name) = (api.clone(), body(value), name.clone());
            async move {
                api.patch(&name, &PatchParams::apply("t").force(), &Patch::Apply(body))
                    .await
                    .unwrap()
            }
        };
        set("1").await;
        seen(&mut events, "1").await;
        cluster.cut_watches();
        set("2").await;
        seen(&mut events, "2").await;
        cluster.cut_watches();
        cluster.compact();
        set("3").await;
        cluster.compact();
        seen(&mut events, "3").await;
        let unlabel = Patch::Merge(json!({"metadata": {"labels": {"watched": null}}}));
        api.patch(&name, &PatchParams::default(), &unlabel)
            .await
            .unwrap();
        let gone = async {
            while let Some(event) = events.next().await {
                if let Ok(Event::Delete(found)) = event {
                    return found;
                }
            }
            panic!("the watcher ended");
        };
        let gone = tokio::time::timeout(PATIENCE, gone).await.unwrap();
        assert_eq!(
            gone.labels()["watched"],
            "yes",
            "the last state that was in the selection"
        );
    }
    cluster.shutdown().await;
}
