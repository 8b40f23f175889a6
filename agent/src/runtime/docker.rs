//! Docker Engine over its unix socket.
//!
//! Calls made, and no others: ping, version, containers (list), container inspect, changes, export, commit
//! with or without pause, pause and unpause, image inspect, image save, image delete. Typed calls go through bollard.
//! What has to be the engine's own bytes, or may be larger than memory, goes through [`raw`]: bollard
//! re-serialises, which loses fields it does not know, and collects whole answers.

mod changes;
mod raw;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bollard::errors::Error;
use bollard::models::{ContainerConfig, ContainerSummary, ContainerSummaryStateEnum};
use bollard::query_parameters::{
    CommitContainerOptions, ListContainersOptions, RemoveImageOptions,
};
use bollard::{ClientVersion, Docker as Client};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Deserialize;

use super::{
    ByteStream, Change, Commit, Container, ContainerId, ContainerRuntime, Done, INSPECT_LIMIT,
    Image, ImageReference, Reading, RuntimeError, State,
};

/// How long the engine may take for an answer that needs no work.
const QUICK: Duration = Duration::from_secs(60);

/// How long the engine may take for one that does: a commit or the start of a save copies as much as
/// the container holds. The caller may give up earlier.
const SLOW: Duration = Duration::from_secs(3600);

/// A Docker Engine.
#[derive(Clone, Debug)]
pub struct Docker {
    socket: PathBuf,
}

impl Docker {
    /// The engine at `socket`, e.g. "/var/run/docker.sock". Connects at each call, so the engine may
    /// be started, restarted or upgraded at any time.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// A client that speaks the engine's own version of the API, which for both old (20.10) and new
    /// (29) engines is the only one certain to be accepted.
    async fn client(&self) -> Result<Client, RuntimeError> {
        let engine = raw::api_version(&self.socket, QUICK).await?;
        let malformed = || RuntimeError::Malformed {
            call: "GET /_ping".to_owned(),
            why: format!("expected a version of the API such as 1.41, found {engine:?}"),
        };
        let (major, minor) = engine.split_once('.').ok_or_else(malformed)?;
        let engine = ClientVersion {
            major_version: major.parse().map_err(|_| malformed())?,
            minor_version: minor.parse().map_err(|_| malformed())?,
        };
        let known = bollard::API_DEFAULT_VERSION;
        let version = if engine < *known { &engine } else { known };
        let path = self.socket.to_string_lossy();
        Client::connect_with_unix(&path, SLOW.as_secs(), version)
            .map_err(|error| self.failed("connect", error))
    }

    async fn within<T>(
        &self,
        call: &str,
        limit: Duration,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, RuntimeError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.map_err(|error| self.failed(call, error)),
            Err(_) => Err(RuntimeError::Timeout {
                call: call.to_owned(),
                seconds: limit.as_secs(),
            }),
        }
    }

    /// Turns an answer that is bytes into a reading, once its first bytes or its end are there: only
    /// then it is known that the engine accepted the call.
    async fn reading(
        &self,
        api_call: String,
        body: impl futures::Stream<Item = Result<Bytes, Error>> + Send + 'static,
    ) -> Result<Reading<ByteStream>, RuntimeError> {
        let mut body = Box::pin(body);
        let first = match body.next().await {
            Some(Err(error)) => return Err(self.failed(&api_call, error)),
            Some(Ok(bytes)) => Some(Ok(bytes)),
            None => None,
        };
        let call = api_call.clone();
        let rest = body.map(move |item| {
            item.map_err(|error| RuntimeError::Broken {
                call: call.clone(),
                source: error.into(),
            })
        });
        Ok(Reading {
            api_call,
            bytes: futures::stream::iter(first).chain(rest).boxed(),
        })
    }

    fn failed(&self, call: &str, error: Error) -> RuntimeError {
        match error {
            Error::DockerResponseServerError {
                status_code,
                message,
            } => answered(call, status_code, message),
            Error::JsonDataError { message, .. } => RuntimeError::Malformed {
                call: call.to_owned(),
                why: message,
            },
            Error::JsonSerdeError { err } => RuntimeError::Malformed {
                call: call.to_owned(),
                why: err.to_string(),
            },
            Error::RequestTimeoutError => RuntimeError::Timeout {
                call: call.to_owned(),
                seconds: SLOW.as_secs(),
            },
            other => RuntimeError::Unreachable {
                at: self.socket.clone(),
                source: other.into(),
            },
        }
    }
}

#[tonic::async_trait]
impl ContainerRuntime for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    async fn version(&self) -> Result<String, RuntimeError> {
        let call = "GET /version";
        let version = self
            .within(call, QUICK, self.client().await?.version())
            .await?;
        version.version.ok_or_else(|| RuntimeError::Malformed {
            call: call.to_owned(),
            why: "expected the field Version, found none".to_owned(),
        })
    }

    async fn process(&self) -> Result<u32, RuntimeError> {
        let unreachable = |source: std::io::Error| RuntimeError::Unreachable {
            at: self.socket.clone(),
            source: source.into(),
        };
        let socket = tokio::net::UnixStream::connect(&self.socket);
        let peer = socket.await.and_then(|socket| socket.peer_cred());
        let pid = peer.map_err(unreachable)?.pid();
        // 0 for a process that this process's namespace of process ids does not have.
        pid.and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid != 0)
            .ok_or_else(|| RuntimeError::Refused {
                message:
                    "its process is not to be seen from here: the agent has to run with hostPID"
                        .to_owned(),
            })
    }

    async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let call = "GET /containers/json";
        let options = ListContainersOptions {
            all: true,
            ..Default::default()
        };
        let client = self.client().await?;
        let found = self
            .within(call, QUICK, client.list_containers(Some(options)))
            .await?;
        found.into_iter().map(container).collect()
    }

    async fn inspect(&self, id: &ContainerId) -> Result<Reading<Bytes>, RuntimeError> {
        let path = format!("/containers/{id}/json");
        let bytes = raw::collect(&self.socket, &path, INSPECT_LIMIT, QUICK).await?;
        Ok(Reading {
            api_call: format!("GET {path}"),
            bytes,
        })
    }

    async fn writable_size(&self, id: &ContainerId) -> Result<u64, RuntimeError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Sized {
            // The engine leaves it out for a container that wrote nothing.
            #[serde(default)]
            size_rw: u64,
        }
        let path = format!("/containers/{id}/json?size=1");
        // The engine walks the whole writable layer.
        let bytes = raw::collect(&self.socket, &path, INSPECT_LIMIT, SLOW).await?;
        let sized: Sized =
            serde_json::from_slice(&bytes).map_err(|error| RuntimeError::Malformed {
                call: format!("GET {path}"),
                why: error.to_string(),
            })?;
        Ok(sized.size_rw)
    }

    async fn changes(
        &self,
        id: &ContainerId,
    ) -> Result<BoxStream<'static, Result<Change, RuntimeError>>, RuntimeError> {
        let path = format!("/containers/{id}/changes");
        // The engine compares the whole writable layer with the image before it answers.
        let body = raw::open(&self.socket, &path, SLOW).await?;
        Ok(changes::parse(body, format!("GET {path}")).boxed())
    }

    async fn export(&self, id: &ContainerId) -> Result<Reading<ByteStream>, RuntimeError> {
        let client = self.client().await?;
        let call = line(&client, "GET", &format!("/containers/{id}/export"));
        let body = client.export_container(id.as_str());
        self.reading(call, body).await
    }

    async fn commit(
        &self,
        id: &ContainerId,
        commit: &Commit,
    ) -> Result<Done<String>, RuntimeError> {
        let options = CommitContainerOptions {
            container: Some(id.to_string()),
            repo: Some(commit.reference.repository().to_owned()),
            tag: Some(commit.reference.tag().to_owned()),
            comment: Some(commit.message.clone()),
            author: Some(commit.author.clone()),
            pause: commit.pause,
            changes: None,
        };
        // In the body, not as a "LABEL" instruction: that would need quoting, and a label with a
        // newline could smuggle in another instruction. The engine merges the rest of the
        // container's configuration in.
        let config = ContainerConfig {
            labels: Some(commit.labels.clone()),
            ..ContainerConfig::default()
        };
        let client = self.client().await?;
        let call = with_query(line(&client, "POST", "/commit"), &options);
        let body = serde_json::to_string(&config).unwrap_or_default();
        let made = self
            .within(&call, SLOW, client.commit_container(options, config))
            .await?;
        Ok(Done {
            api_call: format!("{call} {body}"),
            answer: made.id,
        })
    }

    async fn image(&self, reference: &ImageReference) -> Result<Option<Image>, RuntimeError> {
        let call = format!("GET /images/{reference}/json");
        let client = self.client().await?;
        let found = match self
            .within(&call, QUICK, client.inspect_image(&reference.to_string()))
            .await
        {
            Ok(found) => found,
            Err(RuntimeError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let id = found.id.ok_or_else(|| RuntimeError::Malformed {
            call,
            why: "expected the field Id, found none".to_owned(),
        })?;
        Ok(Some(Image {
            id,
            labels: found
                .config
                .and_then(|config| config.labels)
                .unwrap_or_default(),
            size: found
                .size
                .and_then(|size| u64::try_from(size).ok())
                .unwrap_or(0),
        }))
    }

    async fn save(&self, reference: &ImageReference) -> Result<Reading<ByteStream>, RuntimeError> {
        let client = self.client().await?;
        let call = line(&client, "GET", &format!("/images/{reference}/get"));
        let body = client.export_image(&reference.to_string());
        self.reading(call, body).await
    }

    async fn pause(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let client = self.client().await?;
        let call = format!("POST /containers/{id}/pause");
        self.within(&call, QUICK, client.pause_container(id.as_str()))
            .await
    }

    async fn unpause(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let client = self.client().await?;
        let call = format!("POST /containers/{id}/unpause");
        self.within(&call, QUICK, client.unpause_container(id.as_str()))
            .await
    }

    async fn remove_image(&self, reference: &ImageReference) -> Result<Done<bool>, RuntimeError> {
        let client = self.client().await?;
        let name = reference.to_string();
        // Without it the engine would also delete untagged parents, and the parent is the suspect's
        // own base image.
        let options = RemoveImageOptions {
            noprune: true,
            ..Default::default()
        };
        let api_call = with_query(
            line(&client, "DELETE", &format!("/images/{name}")),
            &options,
        );
        let removed = client.remove_image(&name, Some(options), None);
        let answer = match self.within(&api_call, SLOW, removed).await {
            Ok(_) => true,
            Err(RuntimeError::NotFound { .. }) => false,
            Err(error) => return Err(error),
        };
        Ok(Done { api_call, answer })
    }
}

/// The line of a request as bollard sends it: the API's version before the path.
fn line(client: &Client, method: &str, path: &str) -> String {
    format!("{method} /v{}{path}", client.client_version())
}

/// With its query, encoded as bollard does.
fn with_query(line: String, options: &impl serde::Serialize) -> String {
    match serde_urlencoded::to_string(options) {
        Ok(query) => format!("{line}?{query}"),
        Err(_) => line,
    }
}

/// The engine's own refusal of a call.
fn answered(call: &str, status: u16, message: String) -> RuntimeError {
    match status {
        404 => RuntimeError::NotFound { message },
        409 => RuntimeError::Refused { message },
        _ => RuntimeError::Failed {
            call: call.to_owned(),
            status,
            message,
        },
    }
}

fn container(summary: ContainerSummary) -> Result<Container, RuntimeError> {
    let name = summary
        .names
        .and_then(|names| names.into_iter().next())
        .unwrap_or_default();
    let created = summary
        .created
        .and_then(|seconds| u64::try_from(seconds).ok())
        .unwrap_or(0);
    Ok(Container {
        id: ContainerId::parse(&summary.id.unwrap_or_default())?,
        name: name.trim_start_matches('/').to_owned(),
        image: summary.image.unwrap_or_default(),
        image_id: summary.image_id.unwrap_or_default(),
        state: match summary.state {
            Some(ContainerSummaryStateEnum::CREATED) => State::Created,
            Some(ContainerSummaryStateEnum::RUNNING) => State::Running,
            Some(ContainerSummaryStateEnum::PAUSED) => State::Paused,
            Some(ContainerSummaryStateEnum::RESTARTING) => State::Restarting,
            Some(ContainerSummaryStateEnum::EXITED) => State::Exited,
            Some(ContainerSummaryStateEnum::DEAD) => State::Dead,
            Some(ContainerSummaryStateEnum::REMOVING) => State::Removing,
            _ => State::Unknown,
        },
        created: SystemTime::UNIX_EPOCH + Duration::from_secs(created),
        labels: summary.labels.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_docker_list_any_answer_is_read_or_refused() {
        let seed = br#"[{"Id":"4e5e2d6fd6a8a7d5a3b7cbb2b0b7d6a1b2c3d4e5f60718293a4b5c6d7e8f9012","Names":["/k8s_app_web_shop_u1_0"],"Image":"sha256:feed","ImageID":"sha256:feed","Command":"sh","Created":1769828645,"Ports":[],"Labels":{"io.kubernetes.container.name":"app"},"State":"running","Status":"Up 2 hours","HostConfig":{"NetworkMode":"default"},"NetworkSettings":{"Networks":{}},"Mounts":[]}]"#;
        impound_fuzz::run("docker-list", &[seed.to_vec()], |_, bytes| {
            let Ok(all) = serde_json::from_slice::<Vec<ContainerSummary>>(&bytes) else {
                return;
            };
            for one in all
                .into_iter()
                .filter_map(|summary| container(summary).ok())
            {
                assert_eq!(one.id.to_string().len(), 64);
            }
        });
    }
}
