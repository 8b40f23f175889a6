//! The objects, their one version counter and the log of changes that watches and controllers read.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::Value;

use crate::json;

/// A stored object. Shared, never changed in place: a change stores a new one.
pub(crate) type Object = Arc<Value>;

/// Namespace (`""` for cluster-wide) and name; the order of lists.
pub(crate) type Key = (String, String);

/// The first version a fresh cluster gives: watches from before it can be refused as too old.
const FIRST_VERSION: u64 = 1000;

/// Changes kept per resource. A real server keeps a few minutes' worth; this many lets a test of any length watch.
const LOG_LENGTH: usize = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// One change of one object.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) kind: ChangeKind,
    /// What was there before; none for an addition.
    pub(crate) old: Option<Object>,
    /// What is there now; for a deletion the last state, with the version of the deletion.
    pub(crate) new: Object,
}

/// All objects of one resource.
#[derive(Debug, Default)]
pub(crate) struct Table {
    objects: BTreeMap<Key, Object>,
    log: VecDeque<Change>,
    /// The version before the oldest change in the log; 0 while nothing ever changed.
    compacted: u64,
}

impl Table {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Object> {
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Objects in list order; of one namespace, or of all for `""`.
    pub(crate) fn list<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Object> {
        let start = Bound::Included((namespace.to_owned(), String::new()));
        self.objects
            .range((start, Bound::Unbounded))
            .take_while(move |((found, _), _)| namespace.is_empty() || found == namespace)
            .map(|(_, object)| object)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Changes after a version, or the newest version that is already forgotten.
    pub(crate) fn changes_after(&self, version: u64) -> Result<impl Iterator<Item = &Change>, u64> {
        if version < self.compacted {
            return Err(self.compacted);
        }
        let start = self.log.partition_point(|change| change.version <= version);
        Ok(self.log.iter().skip(start))
    }
}

/// An object that changed and that a controller hasn't looked at yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dirty {
    pub(crate) table: Arc<str>,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) deleted: bool,
}

/// Everything that is stored.
#[derive(Debug)]
pub(crate) struct Store {
    version: u64,
    tables: HashMap<Arc<str>, Table>,
    empty: Table,
    /// The version each object (by uid) was created with: creationTimestamp knows only whole seconds.
    born: HashMap<String, u64>,
    /// Drained by the controllers.
    pub(crate) dirty: Vec<Dirty>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            version: FIRST_VERSION,
            tables: HashMap::new(),
            empty: Table::default(),
            born: HashMap::new(),
            dirty: Vec::new(),
        }
    }
}

impl Store {
    /// The newest resourceVersion.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The version an object was created with: tells which of two is younger.
    pub(crate) fn born(&self, object: &Value) -> u64 {
        self.born.get(json::uid(object)).copied().unwrap_or(0)
    }

    pub(crate) fn table(&self, table: &str) -> &Table {
        self.tables.get(table).unwrap_or(&self.empty)
    }

    pub(crate) fn get(&self, table: &str, namespace: &str, name: &str) -> Option<Object> {
        self.table(table).get(namespace, name).cloned()
    }

    /// A copy of a list (cheap: the objects are shared).
    pub(crate) fn list(&self, table: &str, namespace: &str) -> Vec<Object> {
        self.table(table).list(namespace).cloned().collect()
    }

    /// Tables that hold anything in a namespace.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (&Arc<str>, &Table)> {
        self.tables.iter()
    }

    /// Stores an object under a new version.
    pub(crate) fn put(&mut self, table: &Arc<str>, mut object: Value) -> Object {
        self.version += 1;
        json::put(
            &mut object,
            &["metadata", "resourceVersion"],
            self.version.to_string(),
        );
        let key = (
            json::namespace(&object).to_owned(),
            json::name(&object).to_owned(),
        );
        let object = Arc::new(object);
        let place = self.tables.entry(table.clone()).or_default();
        let old = place.objects.insert(key.clone(), object.clone());
        if old.is_none() {
            self.born
                .insert(json::uid(&object).to_owned(), self.version);
        }
        let kind = if old.is_some() {
            ChangeKind::Modified
        } else {
            ChangeKind::Added
        };
        let change = Change {
            version: self.version,
            kind,
            old,
            new: object.clone(),
        };
        self.note(table, key, change);
        object
    }

    /// Removes an object; the answer carries the version of the deletion.
    pub(crate) fn remove(
        &mut self,
        table: &Arc<str>,
        namespace: &str,
        name: &str,
    ) -> Option<Object> {
        let key = (namespace.to_owned(), name.to_owned());
        let old = self.tables.get_mut(table)?.objects.remove(&key)?;
        self.version += 1;
        self.born.remove(json::uid(&old));
        let mut last = Value::clone(&old);
        json::put(
            &mut last,
            &["metadata", "resourceVersion"],
            self.version.to_string(),
        );
        let last = Arc::new(last);
        let change = Change {
            version: self.version,
            kind: ChangeKind::Deleted,
            old: Some(old),
            new: last.clone(),
        };
        self.note(table, key, change);
        Some(last)
    }

    fn note(&mut self, table: &Arc<str>, key: Key, change: Change) {
        self.dirty.push(Dirty {
            table: table.clone(),
            namespace: key.0,
            name: key.1,
            deleted: change.kind == ChangeKind::Deleted,
        });
        let Some(place) = self.tables.get_mut(table) else {
            return;
        };
        if place.log.is_empty() && place.compacted == 0 {
            place.compacted = FIRST_VERSION;
        }
        place.log.push_back(change);
        if place.log.len() > LOG_LENGTH
            && let Some(forgotten) = place.log.pop_front()
        {
            place.compacted = forgotten.version;
        }
    }

    /// Forgets all changes up to now, as a compaction does: older watches end with 410.
    pub(crate) fn compact(&mut self) {
        for table in self.tables.values_mut() {
            table.log.clear();
            table.compacted = self.version;
        }
    }
}
