//! What is news of the objects that a quarantine has changed.
//!
//! ```text
//! watch -> appeared, changed, gone                    news
//! watch fails, all is listed again -> seen before     none: each would have every quarantine in force looked at, at once
//!                                  -> not listed any more: gone meanwhile, which nothing else tells
//! ```

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;

use futures::{Stream, StreamExt, stream};
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt};

/// Of a watch that is begun again whenever it fails, what is news. Of an object that is gone no more than namespace and
/// name.
pub(super) fn news<K>(
    watch: impl Stream<Item = watcher::Result<Event<K>>> + Send,
) -> impl Stream<Item = watcher::Result<K>> + Send
where
    K: Resource<DynamicType = ()> + Default + Debug + Send + 'static,
{
    let mut known = Known::default();
    watch.flat_map(move |event| {
        stream::iter(match event {
            Ok(event) => known.news(event).into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    })
}

/// Namespace and name of an object.
type Key = (Option<String>, String);

/// What is there, as far as was heard.
#[derive(Default)]
struct Known {
    /// With uid and resourceVersion.
    versions: HashMap<Key, [Option<String>; 2]>,
    /// What the list under way has so far.
    listed: HashSet<Key>,
}

impl Known {
    fn news<K: Resource<DynamicType = ()> + Default>(&mut self, event: Event<K>) -> Vec<K> {
        match event {
            Event::Apply(object) => self.seen(object).into_iter().collect(),
            Event::Delete(object) => {
                self.versions.remove(&key(&object));
                vec![object]
            }
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listed.insert(key(&object));
                self.seen(object).into_iter().collect()
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let gone = self.versions.extract_if(|key, _| !listed.contains(key));
                gone.map(|(key, _)| named(key)).collect()
            }
        }
    }

    /// The object, if it was not seen like this before.
    fn seen<K: Resource<DynamicType = ()>>(&mut self, object: K) -> Option<K> {
        let version = [object.uid(), object.resource_version()];
        let before = self.versions.insert(key(&object), version.clone());
        (before != Some(version)).then_some(object)
    }
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> Key {
    (object.namespace(), object.name_any())
}

fn named<K: Resource<DynamicType = ()> + Default>((namespace, name): Key) -> K {
    let mut object = K::default();
    let metadata = object.meta_mut();
    metadata.namespace = namespace;
    metadata.name = Some(name);
    object
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(name: &str, version: &str) -> Pod {
        let mut pod: Pod = named((Some("shop".into()), name.into()));
        pod.metadata.uid = Some(format!("uid-{name}"));
        pod.metadata.resource_version = Some(version.into());
        pod
    }

    /// Names of what is news of each event.
    fn heard(known: &mut Known, events: impl IntoIterator<Item = Event<Pod>>) -> Vec<String> {
        let heard = events.into_iter().flat_map(|event| known.news(event));
        heard.map(|pod| pod.name_any()).collect()
    }

    fn listed(pods: [Pod; 2]) -> Vec<Event<Pod>> {
        let pods = pods.map(Event::InitApply);
        let all = [Event::Init].into_iter().chain(pods);
        all.chain([Event::InitDone]).collect()
    }

    #[test]
    fn what_is_listed_again_is_no_news_and_what_has_changed_meanwhile_is() {
        let mut known = Known::default();
        let all = [pod("a", "1"), pod("b", "2")];
        assert_eq!(heard(&mut known, listed(all.clone())), ["a", "b"]);
        assert_eq!(heard(&mut known, listed(all)), Vec::<String>::new());
        let changed = [pod("a", "1"), pod("b", "3")];
        assert_eq!(heard(&mut known, listed(changed)), ["b"]);
        assert_eq!(heard(&mut known, [Event::Apply(pod("a", "4"))]), ["a"]);
    }

    #[test]
    fn what_is_gone_is_news_also_if_it_went_while_nobody_watched() {
        let mut known = Known::default();
        heard(&mut known, listed([pod("a", "1"), pod("b", "2")]));
        assert_eq!(heard(&mut known, [Event::Delete(pod("a", "3"))]), ["a"]);
        let gone: Vec<Pod> = listed([pod("c", "4"), pod("d", "5")])
            .into_iter()
            .flat_map(|event| known.news(event))
            .filter(|pod| pod.metadata.uid.is_none())
            .collect();
        assert_eq!(gone.len(), 1, "{gone:?}");
        let place = (gone[0].namespace(), gone[0].name_any());
        assert_eq!(place, (Some("shop".into()), "b".into()));
        // It is said once.
        let again = listed([pod("c", "4"), pod("d", "5")]);
        assert_eq!(heard(&mut known, again), Vec::<String>::new());
    }

    #[test]
    fn a_list_that_was_broken_off_says_of_nobody_that_it_is_gone() {
        let mut known = Known::default();
        let all = [pod("a", "1"), pod("b", "2")];
        heard(&mut known, listed(all.clone()));
        let broken = [Event::Init, Event::InitApply(pod("a", "1"))];
        assert_eq!(heard(&mut known, broken), Vec::<String>::new());
        assert_eq!(heard(&mut known, listed(all)), Vec::<String>::new());
    }
}
