//! Follows a quarantine and its collection, or a sweep, until it is over.
//!
//! The controller streams each object's whole state after every change; [`story`] tells what is new
//! in it. A lost connection (a replica that restarts) is not the end: each stream is opened again
//! until the controller was away for [`PATIENCE`].

mod story;

use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use impound_proto::controller::v1 as wire;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Status, Streaming};

use crate::client::{Client, Grpc};
use crate::failure::{Exit, Failure};
use crate::screen::{Line, Screen};
use story::Story;

pub(crate) use story::{fact_word, path_below_node};

/// How long the controller may be away before following is given up: a rolling update of a
/// Deployment, with a new leader's election, takes about a minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// First pause before a stream is opened again; doubled up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);

const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// What is followed.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// And its collection, as soon as there is one.
    Quarantine {
        namespace: String,
        name: String,
    },
    Collection {
        namespace: String,
        name: String,
    },
    Sweep {
        name: String,
    },
}

/// How long something is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Until nothing more happens by itself.
    Over,
    /// Until it is released: a release that was just asked for may not be begun. Its collection is not followed.
    Released,
    /// Also when it is over.
    Forever,
}

/// What was last known of what was followed.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    pub(crate) quarantine: Option<wire::Quarantine>,
    pub(crate) collection: Option<wire::Collection>,
    pub(crate) sweep: Option<wire::Sweep>,
}

/// Follows `subject` on `screen`, and tells what is not known of it yet.
pub(crate) async fn follow(
    client: &Client,
    screen: &mut Screen,
    subject: Subject,
    until: Until,
    known: Option<&wire::Quarantine>,
) -> Result<Followed, Failure> {
    let mut watches = Watches::new(client);
    match subject {
        Subject::Quarantine { namespace, name } => {
            watches.start::<wire::Quarantine>(Wanted {
                namespace,
                name,
                until,
                certain: false,
            });
        }
        Subject::Collection { namespace, name } => {
            watches.start::<wire::Collection>(Wanted {
                namespace,
                name,
                until: Until::Over,
                certain: false,
            });
        }
        Subject::Sweep { name } => {
            watches.start::<wire::Sweep>(Wanted {
                namespace: String::new(),
                name,
                until: Until::Over,
                certain: false,
            });
        }
    }
    let mut followed = Followed::default();
    let mut story = Story::new(screen);
    if let Some(known) = known {
        story.knows(known);
    }
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        let update = tokio::select! {
            update = watches.updates.recv() => update,
            _ = &mut interrupt => {
                return Err(Failure::Interrupted("interrupted; nothing was stopped in the cluster".to_owned()));
            }
        };
        match update {
            Some(Update::Quarantine(quarantine)) => {
                story.quarantine(&quarantine)?;
                let collects = !quarantine.collection.is_empty() && until != Until::Released;
                if collects && !watches.collection {
                    watches.start::<wire::Collection>(Wanted {
                        namespace: quarantine.namespace.clone(),
                        name: quarantine.collection.clone(),
                        until: Until::Over,
                        certain: true,
                    });
                }
                followed.quarantine = Some(*quarantine);
            }
            Some(Update::Collection(collection)) => {
                story.collection(&collection)?;
                followed.collection = Some(*collection);
            }
            Some(Update::Sweep(sweep)) => {
                story.sweep(&sweep)?;
                let over = sweep.over(until);
                followed.sweep = Some(*sweep);
                if over {
                    return Ok(followed);
                }
            }
            Some(Update::Lost(why)) => story.lost(&why)?,
            Some(Update::Back) => story.back()?,
            Some(Update::Failed(failure)) => return Err(failure),
            // Unreachable while this end keeps a sender.
            None => return Ok(followed),
        }
        let quarantine = followed.quarantine.as_ref();
        let collection = followed.collection.as_ref();
        let quarantine_over = quarantine.is_none_or(|quarantine| quarantine.over(until));
        let collection_over =
            !watches.collection || collection.is_some_and(|collection| collection.over(until));
        let known = quarantine.is_some() || collection.is_some();
        if known && quarantine_over && collection_over {
            return Ok(followed);
        }
    }
}

enum Update {
    Quarantine(Box<wire::Quarantine>),
    Collection(Box<wire::Collection>),
    Sweep(Box<wire::Sweep>),
    /// The connection broke; it is being opened again.
    Lost(String),
    Back,
    Failed(Failure),
}

/// The streams, each read by a task of its own.
struct Watches<'c> {
    client: &'c Client,
    sender: mpsc::Sender<Update>,
    updates: mpsc::Receiver<Update>,
    /// Whether a collection is watched.
    collection: bool,
    // Ends the tasks when dropped.
    tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Wanted {
    namespace: String,
    name: String,
    until: Until,
    /// Named by a quarantine: it is there or soon will be.
    certain: bool,
}

/// An object whose state is streamed.
trait Object: Sized + Send + 'static {
    const COLLECTION: bool;
    /// Whether it need not be followed any longer.
    fn over(&self, until: Until) -> bool;
    fn watch(grpc: Grpc, wanted: Wanted) -> BoxFuture<'static, Result<Streaming<Self>, Status>>;
    fn update(self) -> Update;
}

impl<'c> Watches<'c> {
    fn new(client: &'c Client) -> Self {
        let (sender, updates) = mpsc::channel(16);
        Self {
            client,
            sender,
            updates,
            collection: false,
            tasks: JoinSet::new(),
        }
    }

    fn start<T: Object>(&mut self, wanted: Wanted) {
        self.collection |= T::COLLECTION;
        self.tasks
            .spawn(watch::<T>(self.client.grpc(), wanted, self.sender.clone()));
    }
}

/// Reads one stream, again and again, until its object is over. Ends early if nobody listens.
async fn watch<T: Object>(grpc: Grpc, wanted: Wanted, updates: mpsc::Sender<Update>) {
    let mut pause = PAUSE;
    let mut lost: Option<Instant> = None;
    loop {
        let failure = match T::watch(grpc.clone(), wanted.clone()).await {
            Err(status) => Failure::of_call(&status),
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(object)) => {
                        pause = PAUSE;
                        if lost.take().is_some() && updates.send(Update::Back).await.is_err() {
                            return;
                        }
                        let over = object.over(wanted.until);
                        if updates.send(object.update()).await.is_err() || over {
                            return;
                        }
                    }
                    Ok(None) => {
                        break Failure::Unreachable(
                            "the controller ended the stream early".to_owned(),
                        );
                    }
                    Err(status) => break Failure::of_call(&status),
                }
            },
        };
        let since = *lost.get_or_insert_with(Instant::now);
        let early = wanted.certain && failure.exit() == Exit::NotFound;
        let update = match failure {
            failure if since.elapsed() > PATIENCE => Some(Update::Failed(failure)),
            _ if early => None,
            failure if !failure.is_passing() => Some(Update::Failed(failure)),
            failure => Some(Update::Lost(failure.to_string())),
        };
        if let Some(update) = update
            && updates.send(update).await.is_err()
        {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

impl Object for wire::Quarantine {
    const COLLECTION: bool = false;

    fn over(&self, until: Until) -> bool {
        let phase = self.phase.as_str();
        match until {
            Until::Over => matches!(
                phase,
                "Complete" | "Incomplete" | "Refused" | "Failed" | "Released"
            ),
            Until::Released => phase == "Released",
            Until::Forever => false,
        }
    }

    fn watch(
        mut grpc: Grpc,
        wanted: Wanted,
    ) -> BoxFuture<'static, Result<Streaming<Self>, Status>> {
        let Wanted {
            namespace,
            name,
            until,
            ..
        } = wanted;
        let request = wire::WatchQuarantineRequest {
            namespace,
            name,
            follow: until != Until::Over,
        };
        async move { Ok(grpc.watch_quarantine(request).await?.into_inner()) }.boxed()
    }

    fn update(self) -> Update {
        Update::Quarantine(Box::new(self))
    }
}

impl Object for wire::Collection {
    const COLLECTION: bool = true;

    fn over(&self, until: Until) -> bool {
        until != Until::Forever && matches!(self.phase.as_str(), "Sealed" | "Partial" | "Failed")
    }

    fn watch(
        mut grpc: Grpc,
        wanted: Wanted,
    ) -> BoxFuture<'static, Result<Streaming<Self>, Status>> {
        let Wanted {
            namespace, name, ..
        } = wanted;
        let request = wire::WatchCollectionRequest { namespace, name };
        async move { Ok(grpc.watch_collection(request).await?.into_inner()) }.boxed()
    }

    fn update(self) -> Update {
        Update::Collection(Box::new(self))
    }
}

impl Object for wire::Sweep {
    const COLLECTION: bool = false;

    fn over(&self, _: Until) -> bool {
        matches!(
            self.phase.as_str(),
            "Complete" | "Partial" | "Cancelled" | "Refused"
        )
    }

    fn watch(
        mut grpc: Grpc,
        wanted: Wanted,
    ) -> BoxFuture<'static, Result<Streaming<Self>, Status>> {
        let request = wire::WatchSweepRequest { name: wanted.name };
        async move { Ok(grpc.watch_sweep(request).await?.into_inner()) }.boxed()
    }

    fn update(self) -> Update {
        Update::Sweep(Box::new(self))
    }
}

impl Screen {
    fn event(&mut self, label: &str, state: &str, message: &str) -> Result<(), Failure> {
        self.line(&Line {
            label: label.to_owned(),
            state: state.to_owned(),
            message: message.to_owned(),
            ..Line::default()
        })
    }
}
