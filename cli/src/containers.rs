//! `impound containers`: what a node's runtime runs, also behind Kubernetes' back.

use impound_proto::controller::v1 as wire;

use crate::arguments::Containers;
use crate::client::{Client, answer, request};
use crate::failure::{Exit, Failure};
use crate::human;
use crate::output::{Output, Table};
use crate::view;

pub(crate) async fn list(
    client: &Client,
    output: &mut Output,
    wanted: Containers,
) -> Result<Exit, Failure> {
    let asked = wire::ListContainersRequest {
        node: wanted.node.to_string(),
    };
    let response = answer(client.grpc().list_containers(request(asked)).await)?;
    let views: Vec<_> = response
        .containers
        .iter()
        .map(view::Container::from)
        .collect();
    output.document(&views, |wide| table(&response, wide))?;
    Ok(Exit::Ok)
}

fn table(response: &wire::ListContainersResponse, wide: bool) -> String {
    let mut head = vec![
        "NAMESPACE",
        "POD",
        "CONTAINER",
        "ATTEMPT",
        "STATE",
        "ID",
        "KUBERNETES",
    ];
    if wide {
        head.extend(["CREATED", "NAME", "IMAGE"]);
    }
    let mut table = Table::new(&head);
    let mut unknown = 0;
    for c in &response.containers {
        // Nobody needs the pause containers unless they ask for everything; an unknown one shows.
        if c.sandbox && c.known_to_kubernetes && !wide {
            continue;
        }
        let known = if c.known_to_kubernetes {
            "known"
        } else {
            "UNKNOWN"
        };
        unknown += usize::from(!c.known_to_kubernetes);
        let name = match (c.container_name.as_str(), c.sandbox) {
            (_, true) => "(sandbox)",
            ("", _) => c.name.as_str(),
            (name, _) => name,
        };
        let id = if wide {
            c.id.as_str()
        } else {
            c.id.get(..12).unwrap_or(&c.id)
        };
        let attempt = c.attempt.to_string();
        let mut row: Vec<String> = [
            &c.pod_namespace,
            &c.pod_name,
            name,
            &attempt,
            &c.state,
            id,
            known,
        ]
        .map(str::to_owned)
        .into();
        if wide {
            row.extend([
                human::date(c.created.as_ref()),
                c.name.clone(),
                c.image.clone(),
            ]);
        }
        table.row(row);
    }
    let mut text = table.to_string();
    if unknown > 0 {
        text.push_str(&format!(
            "\n{unknown} unknown to Kubernetes: started behind the API's back, or their pod is gone.\n"
        ));
    }
    text
}
