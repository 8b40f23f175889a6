//! Every RPC of the agent, and which part of it may do the work: the one list that the front forwards
//! by and that the parts serve by. What is not in it goes nowhere.

/// A process that works for the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reads containers out of the runtime.
    Collector,
    /// Sets and looks at tables in network namespaces.
    Isolator,
}

/// RPCs of `impound.agent.v1.Agent`, by the last part of their path.
const METHODS: [(&str, Part); 15] = [
    ("Info", Part::Collector),
    ("ListContainers", Part::Collector),
    ("InspectContainer", Part::Collector),
    ("Diff", Part::Collector),
    ("Export", Part::Collector),
    ("Layer", Part::Collector),
    ("Commit", Part::Collector),
    ("SaveImage", Part::Collector),
    ("RemoveImage", Part::Collector),
    ("Freeze", Part::Collector),
    ("Thaw", Part::Collector),
    ("Isolate", Part::Isolator),
    ("InspectIsolation", Part::Isolator),
    ("LiftIsolation", Part::Isolator),
    ("ProbeIsolation", Part::Isolator),
];

/// The part that a path such as "/impound.agent.v1.Agent/Export" is for; `None`: for nobody.
pub(crate) fn part_of(path: &str) -> Option<Part> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    if service != impound_proto::agent::v1::agent_server::SERVICE_NAME {
        return None;
    }
    METHODS
        .iter()
        .find_map(|(name, part)| (*name == method).then_some(*part))
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Collector => "collector",
            Self::Isolator => "isolator",
        })
    }
}

#[cfg(test)]
mod tests {
    use impound_proto::agent::v1::FILE_DESCRIPTOR_SET;
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_rpc_of_the_contract_has_exactly_one_part_and_nothing_else_has() {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let mut contract: Vec<String> = set
            .file
            .iter()
            .filter(|file| file.package() == "impound.agent.v1")
            .flat_map(|file| &file.service)
            .flat_map(|service| &service.method)
            .map(|method| method.name().to_owned())
            .collect();
        let mut listed: Vec<String> = METHODS.iter().map(|(name, _)| (*name).to_owned()).collect();
        contract.sort();
        listed.sort();
        assert_eq!(listed, contract, "put a new RPC into METHODS");
        for path in [
            "",
            "/",
            "Export",
            "/Export",
            "/impound.agent.v1.Agent",
            "/impound.agent.v1.Agent/",
            "/impound.agent.v1.Agent/export",
            "/impound.agent.v1.Agent/Export/",
            "/impound.agent.v1.Agent/../Export",
            "//impound.agent.v1.Agent/Export",
            "/impound.agent.v2.Agent/Export",
            "/impound.agent.v1.Agent/Export?x",
            "/grpc.health.v1.Health/Check",
        ] {
            assert_eq!(part_of(path), None, "{path}");
        }
        assert_eq!(
            part_of("/impound.agent.v1.Agent/Export"),
            Some(Part::Collector)
        );
        assert_eq!(
            part_of("/impound.agent.v1.Agent/Isolate"),
            Some(Part::Isolator)
        );
    }
}
