//! The command line: commands, options, their help.

mod isolation;
mod sweep;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use impound_evidence::{CaseId, CollectionName, EvidencePath};
use impound_proto::identity::IdentityError;
use impound_proto::pki::Responder;
use impound_proto::{Namespaces, NodeName};
pub(crate) use isolation::Isolation;
pub(crate) use sweep::{Select, Sweep, SweepChange, SweepStart, SweepTargets};

use crate::extract::Pattern;

/// Contain a suspect pod and take its evidence off the node, provably intact.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = EXITS,
    after_long_help = LONG
)]
pub(crate) struct Impound {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The exit codes, at the end of every help.
macro_rules! exits {
    () => {
        "\
Exit codes:
  0  done; evidence is intact and complete
  1  failed, or evidence is not intact
  2  the command line or a local file is wrong; of evidence: not checked, as no --identity given opens it
  3  evidence is intact, but something that was asked for is missing (partial)
  4  the controller refused
  5  the controller, or what it needs (the agent, the store, the Kubernetes API), could not be reached
  6  no such pod, node, quarantine, collection or file
130  interrupted; what was asked for goes on in the cluster"
    };
}

const EXITS: &str = exits!();

const LONG: &str = concat!(
    exits!(),
    "\n\n\
Examples:
  # See what would be done, then do it and follow it until the evidence is sealed
  impound quarantine web-5d4f-x7 -n shop --case INC-7 --reason \"shell in container\" --dry-run
  impound quarantine web-5d4f-x7 -n shop --case INC-7 --reason \"shell in container\" --wait

  # Copy the evidence and check it, trusting nothing but the public key
  impound evidence get INC-7 web-5d4f-x7
  impound verify INC-7/web-5d4f-x7 --key evidence.pub"
);

/// How the controller is reached, and how answers are shown.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// The controller's gRPC address
    #[arg(
        long,
        global = true,
        env = "IMPOUND_CONTROLLER",
        value_name = "HOST:PORT",
        help_heading = "Connection"
    )]
    pub(crate) controller: Option<String>,
    /// Directory with your tls.crt, tls.key and controller-ca.crt
    #[arg(long, global = true, env = "IMPOUND_TLS_DIR", value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Connection")]
    pub(crate) tls_dir: Option<PathBuf>,
    /// Instead of a certificate: file with a Kubernetes token of the audience impound.dev/controller. The TLS
    /// directory then needs controller-ca.crt only
    #[arg(long, global = true, env = "IMPOUND_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Connection")]
    pub(crate) token_file: Option<PathBuf>,
    /// How answers are shown
    #[arg(
        long,
        short,
        global = true,
        value_name = "FORMAT",
        default_value = "table",
        help_heading = "Output"
    )]
    pub(crate) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Text for people
    Table,
    /// Text for people, more columns
    Wide,
    /// One JSON document; progress goes to standard error
    Json,
    /// One YAML document; progress goes to standard error
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Contain a pod, move its neighbours away, collect its evidence
    Quarantine(Quarantine),
    /// Undo a quarantine
    Release(Release),
    /// Collect a pod's evidence without containing it
    Collect(Collect),
    /// Collect the evidence of many pods: by namespace, labels, node, image or owner
    #[command(subcommand, arg_required_else_help = true)]
    Sweep(Sweep),
    /// Show a quarantine or collection: steps, checks, warnings
    Status(Status),
    /// List quarantines or collections
    List(List),
    /// Follow a quarantine or collection until it is over
    Watch(Watch),
    /// Show or check who did what to a case's evidence, and when
    #[command(subcommand, arg_required_else_help = true)]
    Custody(Custody),
    /// List, copy, check or sign evidence
    #[command(subcommand, arg_required_else_help = true)]
    Evidence(Evidence),
    /// List the containers on a node as its runtime sees them
    Containers(Containers),
    /// Install Impound in a cluster
    Install(Install),
    /// Take Impound out of a cluster; evidence and records stay
    Uninstall(Uninstall),
    /// Look at a live installation: what works, what does not, and what to do about it
    Doctor(Doctor),
    /// Check a copy of evidence, offline
    Verify(Verify),
    /// Make one HTML file of a copy of evidence, for people, offline
    Report(Report),
    /// Issue the certificates and keys of an installation
    #[command(subcommand, arg_required_else_help = true)]
    Pki(Pki),
    /// Print a completion script for a shell
    Completion(Completion),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound quarantine pod/web-5d4f-x7 -n shop --case INC-7 --reason \"shell in container\" --wait
  impound quarantine web-5d4f-x7 -n shop --case INC-7 --reason \"shell in container\" --dry-run

Without --wait the command returns as soon as the request is recorded. Interrupting --wait does not
stop the quarantine: `impound watch` goes on showing it, `impound release` undoes it.")]
pub(crate) struct Quarantine {
    #[command(flatten)]
    pub(crate) pod: PodArgument,
    #[command(flatten)]
    pub(crate) cause: Cause,
    /// Show every API call that would be made, in order, and change nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Follow containment and collection until the evidence is sealed
    #[arg(long, short)]
    pub(crate) wait: bool,
    /// Leave the other pods of the node where they are
    #[arg(long)]
    pub(crate) keep_neighbours: bool,
    /// Also evict pods that no controller would recreate; they are lost
    #[arg(long)]
    pub(crate) evict_unmanaged: bool,
    /// Also evict pods with emptyDir volumes; the volumes' data is lost
    #[arg(long)]
    pub(crate) delete_emptydir_data: bool,
    /// Also change NetworkPolicies that allow the suspect traffic, so that they no longer select it; undone
    /// by the release
    #[arg(long)]
    pub(crate) exclude_from_policies: bool,
    /// Contain only, collect nothing
    #[arg(long)]
    pub(crate) no_collect: bool,
    /// Pause each container while its image is made, unless a probe of the pod restarts what stands still
    #[arg(long)]
    pub(crate) pause: bool,
    /// Pause the pod's containers while they are exported, for no longer than their probes stand
    #[arg(long)]
    pub(crate) freeze: bool,
    /// Encrypt the evidence to this age recipient (age1…, a public key), besides those of the controller's
    /// configuration; may be given several times
    #[arg(long, value_name = "RECIPIENT")]
    pub(crate) encrypt_to: Vec<String>,
    #[command(flatten)]
    pub(crate) isolation: Isolation,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound release web-5d4f-x7 -n shop --reason \"false alarm, see INC-7\"
  impound release web-5d4f-x7 -n shop --reason \"false alarm\" --yes --wait
  impound release web-5d4f-x7 -n shop --dry-run

Says what will happen and asks before it does it; --yes answers for scripts. Refused while the evidence
is not sealed, unless --force. When the pod's labels are put back, its owner adopts it again and may
delete one of its pods, perhaps this one.

Without --wait the command returns as soon as the release is recorded. Interrupting --wait does not stop
the release: `impound watch` goes on showing it.")]
pub(crate) struct Release {
    #[command(flatten)]
    pub(crate) name: NameArgument,
    /// Why, for the custody log
    #[arg(long, value_name = "TEXT", value_parser = reason, required_unless_present = "dry_run")]
    pub(crate) reason: Option<String>,
    /// Also when the evidence is not sealed
    #[arg(long)]
    pub(crate) force: bool,
    /// Show every API call that would be made, in order, and change nothing
    #[arg(long, conflicts_with_all = ["yes", "wait"])]
    pub(crate) dry_run: bool,
    /// Follow until everything is undone
    #[arg(long, short)]
    pub(crate) wait: bool,
    /// Don't ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound collect web-5d4f-x7 -n shop --case INC-7 --reason \"baseline of a sister pod\" --wait")]
pub(crate) struct Collect {
    #[command(flatten)]
    pub(crate) pod: PodArgument,
    #[command(flatten)]
    pub(crate) cause: Cause,
    /// The collection's name [default: from the pod's name and the time]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<CollectionName>,
    /// Pause each container while its image is made, unless a probe of the pod restarts what stands still
    #[arg(long)]
    pub(crate) pause: bool,
    /// Pause the pod's containers while they are exported, for no longer than their probes stand
    #[arg(long)]
    pub(crate) freeze: bool,
    /// Encrypt the evidence to this age recipient (age1…, a public key), besides those of the controller's
    /// configuration; may be given several times
    #[arg(long, value_name = "RECIPIENT")]
    pub(crate) encrypt_to: Vec<String>,
    /// Follow until the evidence is sealed
    #[arg(long, short)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound status web-5d4f-x7 -n shop
  impound status collection/web-5d4f-x7 -n shop -o json")]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) name: NameArgument,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound list
  impound list collections --case INC-7 -o wide")]
pub(crate) struct List {
    /// What to list
    #[arg(default_value = "quarantines")]
    pub(crate) kind: Kind,
    /// Only in this namespace [default: all]
    #[arg(long, short, value_name = "NS")]
    pub(crate) namespace: Option<String>,
    /// Only of this case
    #[arg(long, value_name = "ID")]
    pub(crate) case: Option<CaseId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Pods that are or were contained
    Quarantines,
    /// Evidence that is or was collected
    Collections,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound watch web-5d4f-x7 -n shop
  impound watch collection/web-5d4f-x7 -n shop")]
pub(crate) struct Watch {
    #[command(flatten)]
    pub(crate) name: NameArgument,
    /// Go on when it is over, until interrupted
    #[arg(long)]
    pub(crate) follow: bool,
}

/// The cluster, as for kubectl.
#[derive(Debug, Args)]
pub(crate) struct Cluster {
    /// kubectl's configuration [default: as kubectl finds it]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context in it [default: the current one]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound install --agent-image registry.example.org/impound/agent@sha256:… \\
                  --controller-image registry.example.org/impound/controller@sha256:…
  impound install --agent-image … --controller-image … --print | kubectl diff --server-side -f -

Applies deploy/kustomize/base of this version with kubectl (server-side), in the namespace impound. For anything
else (an object store, one replica, isolation at the node) use an overlay or the Helm chart in deploy/. Exit code 3 if
Secrets that the pods mount are still missing; it says how they are made.")]
pub(crate) struct Install {
    #[command(flatten)]
    pub(crate) cluster: Cluster,
    /// The agent's image, by digest
    #[arg(long, value_name = "IMAGE", value_parser = image)]
    pub(crate) agent_image: String,
    /// The controller's image, by digest
    #[arg(long, value_name = "IMAGE", value_parser = image)]
    pub(crate) controller_image: String,
    /// Print the manifests and do nothing
    #[arg(long)]
    pub(crate) print: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound uninstall

Refused while a quarantine is in force. Deletes the admission policies first, then everything that `install` applied
but the namespace with the evidence's volume and the Secrets, and the custom resource definitions with the
records of all quarantines.")]
pub(crate) struct Uninstall {
    #[command(flatten)]
    pub(crate) cluster: Cluster,
    /// Also while quarantines are in force: pods keep their labels, nodes stay cordoned
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound doctor
  impound doctor -o json | jq '.[] | select(.state != \"ok\")'
  impound doctor --network

Looks at versions, the controller's rights, the admission policies, certificates, the store (written to, and whether
it was seen to be write-once), and at each node's agent: its version, runtime, clock and certificate. Changes
nothing. Exit code 1 if something failed; warnings alone are 0. Needs the role viewer in all namespaces.

With --network also whether NetworkPolicies are enforced, by trying: kubectl makes some pods of the agent's image, one
of which listens and the others connect to it, first allowed by a policy, then not, then again. That takes a minute or
two; pods and policies are deleted then, also after an interruption. Your own rights are used, not the controller's.")]
pub(crate) struct Doctor {
    /// Also try whether NetworkPolicies are enforced; makes pods and policies, and deletes them again
    #[arg(long)]
    pub(crate) network: bool,
    /// Namespace of the installation, where --network makes them
    #[arg(long, default_value = "impound", value_name = "NAME")]
    pub(crate) namespace: String,
    #[command(flatten)]
    pub(crate) cluster: Cluster,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Evidence {
    /// List the evidence of a case
    #[command(
        after_help = "Examples:\n  impound evidence ls INC-7\n  impound evidence ls INC-7 web-5d4f-x7 -o wide"
    )]
    Ls(EvidenceLs),
    /// Copy evidence out of the store, checking every SHA-256
    #[command(after_help = "\
Examples:
  impound evidence get INC-7 web-5d4f-x7
  impound evidence get INC-7 web-5d4f-x7 manifest.json before/pod.json --to /mnt/case
  impound evidence get INC-7 web-5d4f-x7 --identity key.txt

Run it again after an interruption: it goes on where it stopped. Files that are there already are
checked and never overwritten; only the custody log may grow.")]
    Get(EvidenceGet),
    /// Have the controller re-read and check a whole collection in the store
    #[command(after_help = "\
Examples:
  impound evidence verify INC-7 web-5d4f-x7

This trusts the controller. `impound verify` checks a copy without trusting anybody.")]
    Verify(EvidenceVerify),
    /// Put every object of a sealed collection in the store under a legal hold
    #[command(after_help = "\
Examples:
  impound evidence hold INC-7 web-5d4f-x7 --reason 'court order 12/2026'

For custodians, and stores that lock objects. Nobody removes what is under a legal hold before it is lifted,
also not when its retention has ended.")]
    Hold(EvidenceHold),
    /// Lift the legal hold of a collection
    #[command(after_help = "\
Examples:
  impound evidence unhold INC-7 web-5d4f-x7 --reason 'case closed'")]
    Unhold(EvidenceHold),
    /// Unpack the file systems and writable layers in a copy of evidence, safely
    #[command(after_help = "\
Examples:
  impound evidence extract INC-7/web-5d4f-x7 --key evidence.pub --to /mnt/case/files
  impound evidence extract INC-7/web-5d4f-x7 --key evidence.pub --to out --path etc --path 'tmp/**'
  impound evidence extract export.tar --unverified --to out

A collection is verified first, and each tar's SHA-256 again while it is unpacked, below
TO/<name of the tar>/ (of a layer: TO/layer-<container>-<short id>/), which must be new or empty. Nothing is
written outside of it or through links. Devices, pipes and links that lead elsewhere are left out. Files are
yours, mode 600, and keep their modification times and holes; no set-id bits, owners, extended attributes or
right to execute: those are in the tar. What a container deleted of its image is noted. What was
left out or changed, and why, is in TO/<name of the tar>.extraction.jsonl. Exit code 3 if anything was
left out.")]
    Extract(EvidenceExtract),
    /// Vouch for a copy of evidence with a key of your own
    #[command(after_help = "\
Examples:
  impound evidence sign INC-7/web-5d4f-x7 --key evidence.pub --with ada.key
  impound verify INC-7/web-5d4f-x7 --key evidence.pub --key ada.pub

The collection is verified first; one that is not intact is not signed. The signature is a Sigstore bundle
over the same manifest, written to signatures/<key id>.sigstore.json; nothing else changes.
A key: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ada.key")]
    Sign(EvidenceSign),
}

/// `custody …`
#[derive(Debug, Subcommand)]
pub(crate) enum Custody {
    /// Print the entries of a custody log
    #[command(after_help = "\
Examples:
  impound custody show INC-7
  impound custody show INC-7/web-5d4f-x7 -o json

A directory is read there: a collection, or a copy of the case's log (`impound evidence get INC-7
custody`). Anything else is a case, whose log is asked for.")]
    Show(CustodyShow),
    /// Check a custody log, and prove what is in it
    #[command(after_help = "\
Examples:
  impound custody verify INC-7 --key evidence.pub
  impound custody verify INC-7 --key evidence.pub --consistency INC-7/web-5d4f-x7/custody.checkpoint
  impound custody verify INC-7/custody --key evidence.pub --inclusion 12 -o json

Keep a checkpoint where nobody who can write to the store can change it: --consistency then shows that
the log only grew since. A proof is a list of hashes as RFC 9162 defines it; whoever has the checkpoint
checks it without the log.")]
    Verify(CustodyVerify),
}

#[derive(Debug, Args)]
pub(crate) struct CustodyShow {
    /// Case, or directory with a custody log
    #[arg(value_name = "CASE|DIR")]
    pub(crate) of: String,
}

#[derive(Debug, Args)]
pub(crate) struct CustodyVerify {
    /// Case, or directory with a custody log
    #[arg(value_name = "CASE|DIR")]
    pub(crate) of: String,
    /// Public key, or list of keys, that must have signed; may be given several times
    #[arg(long = "key", value_name = "FILE", required = true, value_hint = ValueHint::FilePath)]
    pub(crate) keys: Vec<PathBuf>,
    /// Prove that this entry is in the log
    #[arg(long, value_name = "NUMBER")]
    pub(crate) inclusion: Option<u64>,
    /// Prove that the log begins with what this checkpoint was of
    #[arg(long, value_name = "OLD_CHECKPOINT", value_hint = ValueHint::FilePath)]
    pub(crate) consistency: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct EvidenceSign {
    /// The collection's directory, the one that holds manifest.json
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Public key, or list of keys, that must have signed it already; may be given several times
    #[arg(long = "key", value_name = "FILE", required = true, value_hint = ValueHint::FilePath)]
    pub(crate) keys: Vec<PathBuf>,
    /// Your EC P-256 secret key, PKCS#8 PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) with: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct EvidenceExtract {
    /// A collection's directory, the one that holds manifest.json, or a single tar
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: PathBuf,
    /// Directory to extract below
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) to: PathBuf,
    /// Public key that must have signed, PEM; may be given several times
    #[arg(long = "key", value_name = "FILE", required_unless_present = "unverified", value_hint = ValueHint::FilePath)]
    pub(crate) keys: Vec<PathBuf>,
    /// Secret key that opens encrypted evidence: a file as age-keygen writes it; may be given several times
    #[arg(long = "identity", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) identities: Vec<PathBuf>,
    /// Extract what nobody vouches for: a single tar, or a collection that is not intact
    #[arg(long, conflicts_with = "keys")]
    pub(crate) unverified: bool,
    /// Only this path and what is below it; * and ? stay within a name, ** does not; may be given
    /// several times
    #[arg(long = "path", value_name = "GLOB")]
    pub(crate) paths: Vec<Pattern>,
    /// Also the layers of saved images, each into a directory of its own
    #[arg(long)]
    pub(crate) images: bool,
    /// Most bytes of all files of one tar, holes included, e.g. 500M
    #[arg(long, value_name = "N", default_value = "64G", value_parser = size)]
    pub(crate) max_bytes: u64,
    /// Most entries of one tar
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    pub(crate) max_entries: u64,
    /// Most bytes to write for each byte of a tar, holes not counted: stops bombs
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) max_ratio: u64,
}

#[derive(Debug, Args)]
pub(crate) struct EvidenceLs {
    /// The case
    pub(crate) case: CaseId,
    /// Only this collection
    pub(crate) collection: Option<CollectionName>,
}

#[derive(Debug, Args)]
pub(crate) struct EvidenceGet {
    /// The case
    pub(crate) case: CaseId,
    /// The collection [default: all of the case, each in a directory of its own]
    pub(crate) collection: Option<CollectionName>,
    /// Only these files [default: the whole collection]
    pub(crate) paths: Vec<EvidencePath>,
    /// Where to [default: CASE/COLLECTION in the working directory]; without a collection DIR/CASE/COLLECTION
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) to: Option<PathBuf>,
    /// Also decrypt what is encrypted, to TO.plain beside the copy: with this secret key, a file as age-keygen writes it;
    /// may be given several times
    #[arg(long = "identity", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) identities: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct EvidenceHold {
    /// Case
    pub(crate) case: CaseId,
    /// Collection
    pub(crate) collection: CollectionName,
    /// Why; goes into the custody log
    #[arg(long)]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct EvidenceVerify {
    /// The case
    pub(crate) case: CaseId,
    /// The collection
    pub(crate) collection: CollectionName,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound containers k8s-worker2
  impound containers k8s-worker2 -o wide

Asks the node's agent, so it also shows containers that Kubernetes does not know of: started by hand, of
pods that are gone, or earlier attempts that have ended.")]
pub(crate) struct Containers {
    /// The node
    pub(crate) node: NodeName,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound verify INC-7/web-5d4f-x7 --key evidence.pub
  impound verify /mnt/case --key evidence-2026.pub --key evidence-2025.pub -o json

Needs no network. Get the public key from who runs the controller, not from where the evidence came
from. Checks the signature, every file's SHA-256, that nothing was added or left out, the custody
log, and that every tar has its end. Of encrypted files it says that what is in them was not checked, unless
--identity opens them; with one that does not the exit code is 2, if nothing else is wrong.")]
pub(crate) struct Verify {
    /// The collection's directory, the one that holds manifest.json
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Public key that must have signed, PEM, or evidence-keys.json, the list of all that were in use;
    /// may be given several times
    #[arg(long = "key", value_name = "FILE", required = true, value_hint = ValueHint::FilePath)]
    pub(crate) keys: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) besides: Besides,
    /// Name everything that is wrong, not only the first thing
    #[arg(long)]
    pub(crate) all: bool,
}

/// Who else is to vouch for a collection, and since when it exists.
#[derive(Debug, Args)]
pub(crate) struct Besides {
    /// Public key of somebody who must have vouched for it besides; may be given several times
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) countersigned_by: Vec<PathBuf>,
    /// Root certificate of the time-stamping authority, PEM: what it says of the evidence is checked, too
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) timestamp_ca: Option<PathBuf>,
    /// Secret key that opens encrypted evidence: a file as age-keygen writes it; may be given several times
    #[arg(long = "identity", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) identities: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  impound report INC-7/web-5d4f-x7 --key evidence.pub --to INC-7.html

The collection is verified first, and the report says with which key and with what result; the exit
code is that of `impound verify`. The page loads nothing and runs nothing, and prints well. It is an
aid to reading and not signed: anybody who has the collection can make it again.")]
pub(crate) struct Report {
    /// The collection's directory, the one that holds manifest.json
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Public key that must have signed, PEM; may be given several times [default: none, and the
    /// report says that nothing is verified]
    #[arg(long = "key", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) keys: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) besides: Besides,
    /// File to write, which must not be there yet
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) to: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Pki {
    /// Write every certificate and key that is not there yet; nothing is overwritten
    #[command(after_help = "\
Examples:
  impound pki init pki --node worker1 --node worker2 --responder ada:responder \\
      --responder lab:custodian --controller-address impound.example.com

Roles: a viewer reads state, a responder also contains, collects and releases, a custodian also reads
evidence. Keep DIR/ca and DIR/signing away from the cluster's nodes. Run it again to add a node or a
responder.")]
    Init(PkiInit),
    /// Replace the key that evidence is signed with; the old public key is kept
    #[command(after_help = "\
Examples:
  impound pki rotate-signing-key pki

DIR/signing/evidence-keys.json then lists every public key with the time that it was in use: give it to
`impound-controller --evidence-keys` and to everybody who verifies, as --key. Restart the controller
with the new DIR/signing/evidence.key. The old secret key is destroyed.")]
    RotateSigningKey(PkiRotate),
}

#[derive(Debug, Args)]
pub(crate) struct PkiRotate {
    /// The directory that `pki init` wrote
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct PkiInit {
    /// Where to
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// A node that runs an agent; may be given several times
    #[arg(long = "node", value_name = "NAME")]
    pub(crate) nodes: Vec<NodeName>,
    /// A person or platform, its role (viewer, responder, custodian), and the namespaces it may act in if not in
    /// all, e.g. bob:responder:shop,payments; may be given several times
    #[arg(long = "responder", value_name = "NAME:ROLE[:NAMESPACE,...]")]
    pub(crate) responders: Vec<ResponderArgument>,
    /// DNS name or IP address of the controller; may be given several times
    #[arg(long = "controller-address", value_name = "HOST")]
    pub(crate) controller_addresses: Vec<String>,
    /// Days that certificates below the CAs are valid [default: 90]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=825))]
    pub(crate) days: Option<u16>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(impound completion bash)

It completes `impound`. kubectl, 1.26 or later, completes `kubectl impound` with a program that it finds in PATH as
kubectl_complete-impound, which is kubectl-impound under that name:
  ln -s kubectl-impound \"$(dirname \"$(command -v kubectl-impound)\")/kubectl_complete-impound\"")]
pub(crate) struct Completion {
    /// The shell
    pub(crate) shell: Shell,
}

/// A pod and its namespace.
#[derive(Debug, Args)]
pub(crate) struct PodArgument {
    /// The pod, as NAME or pod/NAME
    #[arg(value_name = "POD", value_parser = pod_name)]
    pub(crate) pod: String,
    /// The pod's namespace
    #[arg(long, short, value_name = "NS", default_value = "default")]
    pub(crate) namespace: String,
    /// Only if the pod has this metadata.uid
    #[arg(
        long,
        value_name = "UID",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) uid: String,
}

/// Case and reason, for the custody log.
#[derive(Debug, Args)]
pub(crate) struct Cause {
    /// The case: 1 to 63 letters, digits, '-', '_' or '.'
    #[arg(long, value_name = "ID")]
    pub(crate) case: CaseId,
    /// Why, for the custody log
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub(crate) reason: String,
}

/// A quarantine or collection.
#[derive(Debug, Args)]
pub(crate) struct NameArgument {
    /// Name of a quarantine or of its pod; collection/NAME for a collection
    #[arg(value_name = "NAME")]
    pub(crate) name: Reference,
    /// Its namespace
    #[arg(long, short, value_name = "NS", default_value = "default")]
    pub(crate) namespace: String,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    Quarantine(String),
    Collection(String),
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = "expected NAME, pod/NAME, quarantine/NAME or collection/NAME";
        match text.split_once('/') {
            None => Ok(Self::Quarantine(object_name(text)?)),
            Some(("pod" | "pods" | "po" | "quarantine" | "quarantines", name)) => {
                Ok(Self::Quarantine(object_name(name)?))
            }
            Some(("collection" | "collections", name)) => Ok(Self::Collection(object_name(name)?)),
            Some(_) => Err(known.to_owned()),
        }
    }
}

/// `NAME:ROLE[:NAMESPACE,...]`
#[derive(Clone, Debug)]
pub(crate) struct ResponderArgument(pub(crate) Responder);

impl FromStr for ResponderArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let (Some(name), Some(role), namespaces, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(
                "expected NAME:ROLE or NAME:ROLE:NAMESPACE,..., the role one of viewer, responder, custodian"
                    .to_owned(),
            );
        };
        let wrong = |error: IdentityError| error.to_string();
        Ok(Self(Responder {
            name: name.parse().map_err(wrong)?,
            role: role.parse().map_err(wrong)?,
            namespaces: match namespaces {
                Some(list) => Namespaces::only(list.split(',')).map_err(wrong)?,
                None => Namespaces::All,
            },
        }))
    }
}

fn pod_name(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        None => object_name(text),
        Some(("pod" | "pods" | "po", name)) => object_name(name),
        Some((kind, _)) => Err(format!(
            "expected a pod, got a {kind:?}; name the pod itself"
        )),
    }
}

/// What can stand in a manifest; the kubelet checks the rest.
fn image(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "./:@_-".contains(c);
    if text.is_empty() || !text.chars().all(allowed) {
        return Err(
            "expected the name of an image, e.g. registry.example.org/impound/agent@sha256:…"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

/// Only what can't be a name at all; the controller checks the rest.
fn object_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['/', ' ']) {
        return Err("expected the name of an object, without '/' and spaces".to_owned());
    }
    Ok(text.to_owned())
}

/// Bytes, with K, M, G or T for powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (text.get(..at), 10),
        Some((at, 'M')) => (text.get(..at), 20),
        Some((at, 'G')) => (text.get(..at), 30),
        Some((at, 'T')) => (text.get(..at), 40),
        _ => (Some(text), 0),
    };
    let number = digits.and_then(|digits| digits.parse::<u64>().ok());
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "expected a number of bytes like 1000000, 500M or 64G".to_owned())
}

fn reason(text: &str) -> Result<String, String> {
    match text.trim().chars().count() {
        1..=1024 => Ok(text.trim().to_owned()),
        n => Err(format!("expected 1 to 1024 characters, got {n}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Impound::command().debug_assert();
    }

    #[test]
    fn a_pod_may_be_given_as_kubectl_does() {
        assert_eq!(pod_name("web"), Ok("web".to_owned()));
        assert_eq!(pod_name("pod/web"), Ok("web".to_owned()));
        assert!(
            pod_name("deployment/web")
                .unwrap_err()
                .contains("name the pod itself")
        );
        assert!(pod_name("pod/").is_err());
        assert_eq!(
            "pod/web".parse(),
            Ok(Reference::Quarantine("web".to_owned()))
        );
        assert_eq!(
            "collection/c".parse(),
            Ok(Reference::Collection("c".to_owned()))
        );
        assert!("node/x".parse::<Reference>().is_err());
    }

    #[test]
    fn every_command_has_an_example_in_its_help() {
        for command in Impound::command().get_subcommands() {
            let own = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let below = command
                .get_subcommands()
                .all(|sub| sub.get_after_help().is_some());
            let has = own.contains("Examples:") || (command.has_subcommands() && below);
            assert!(has, "{}", command.get_name());
        }
    }
}
