//! Pods as a kubelet makes them with Docker: a sandbox that owns the network namespace, and a
//! container in it. They share one bridge network with IPv4 and IPv6, where the host is [`HOST`] and
//! [`HOST6`].

use std::process::{Command, Output};

use impound_proto::agent::v1::PodSelector;

use crate::engine::{Container, attempt, docker, foreign_image, line, unique};

/// The host in the pods' network.
pub const HOST: &str = "10.213.77.1";
pub const HOST6: &str = "fd00:213:77::1";

/// Made once and kept, as the image is: making and removing one changes the host's rules, which the
/// tests compare.
const NETWORK: &str = "impound-agent-test";

/// The port that every pod of these tests answers on.
pub const PORT: u16 = 8080;

/// What a container runs unless told otherwise: sends back what it gets, on all addresses.
const ECHO: &str = "exec /bin/busybox nc -ll -p 8080 -e /bin/cat";

/// A pod that is removed when the test ends.
pub struct Pod {
    pub selector: PodSelector,
    pub sandbox: Container,
    pub app: Container,
}

impl Pod {
    /// A pod whose container echoes on [`PORT`].
    pub fn start(name: &str) -> Self {
        Self::with(name, NETWORK, &[])
    }

    /// The same in the network of this name, with options of `docker create` for the container.
    pub fn with(name: &str, network: &str, options: &[&str]) -> Self {
        require();
        let name = unique(name);
        let selector = PodSelector {
            namespace: "shop".to_owned(),
            uid: format!("uid-of-{name}"),
            name,
        };
        let sandbox = create(&selector, "POD", "podsandbox", network, &[], "sleep 3600");
        docker(&["start", &sandbox.id]);
        let shared = format!("container:{}", sandbox.id);
        let app = create(&selector, "app", "container", &shared, options, ECHO);
        docker(&["start", &app.id]);
        Self {
            selector,
            sandbox,
            app,
        }
    }

    /// Another container of the pod, in this network.
    pub fn container(&self, name: &str, network: &str) -> Container {
        let container = create(&self.selector, name, "container", network, &[], ECHO);
        docker(&["start", &container.id]);
        container
    }

    pub fn address(&self) -> String {
        self.network("IPAddress")
    }

    pub fn address6(&self) -> String {
        self.network("GlobalIPv6Address")
    }

    /// Runs a program of busybox in the pod's container.
    pub fn exec(&self, args: &[&str]) -> Output {
        let all = [&["exec", &self.app.id, "/bin/busybox"], args].concat();
        attempt(&all)
    }

    /// Runs a program of the host in the pod's network namespace.
    pub fn inside(&self, program: &[&str]) -> String {
        let pid = line(docker(&[
            "inspect",
            "-f",
            "{{.State.Pid}}",
            &self.sandbox.id,
        ]));
        let namespace = format!("--net=/proc/{pid}/ns/net");
        run("nsenter", &[&[namespace.as_str()], program].concat())
    }

    fn network(&self, field: &str) -> String {
        let format = format!("{{{{range .NetworkSettings.Networks}}}}{{{{.{field}}}}}{{{{end}}}}");
        line(docker(&["inspect", "-f", &format, &self.sandbox.id]))
    }
}

/// All rules of the host, without counts.
pub fn host_rules() -> String {
    run("nft", &["--stateless", "list", "ruleset"])
}

/// What `program` prints. Fails with what to install, or with what it says.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| {
        panic!("cannot run {program} ({error}): install nftables and util-linux, e.g. `apt-get install nftables`")
    });
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn require() {
    crate::engine::require();
    let lock = std::fs::File::create(std::env::temp_dir().join("impound-agent-test.lock")).unwrap();
    lock.lock().unwrap();
    if !attempt(&["network", "inspect", NETWORK]).status.success() {
        let v4 = ["--subnet", "10.213.77.0/24", "--gateway", HOST];
        let v6 = ["--ipv6", "--subnet", "fd00:213:77::/64", "--gateway", HOST6];
        docker(&[&["network", "create"], v4.as_slice(), &v6, &[NETWORK]].concat());
    }
}

fn create(
    pod: &PodSelector,
    name: &str,
    kind: &str,
    network: &str,
    options: &[&str],
    script: &str,
) -> Container {
    let PodSelector {
        namespace,
        name: pod,
        uid,
    } = pod;
    let full = format!("k8s_{name}_{pod}_{namespace}_{uid}_0");
    let labels = [
        format!("io.kubernetes.docker.type={kind}"),
        format!("io.kubernetes.container.name={name}"),
        format!("io.kubernetes.pod.name={pod}"),
        format!("io.kubernetes.pod.namespace={namespace}"),
        format!("io.kubernetes.pod.uid={uid}"),
    ];
    let mut args = vec!["create", "--name", &full, "--network", network];
    for label in &labels {
        args.extend(["--label", label]);
    }
    args.extend_from_slice(options);
    args.extend([foreign_image(), "/bin/sh", "-c", script]);
    Container {
        id: line(docker(&args)),
    }
}
