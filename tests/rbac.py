"""Compares what the controller may do in the Kubernetes API with what it did.

  rbac.py RENDERED CALLS

RENDERED is a file of rendered manifests, CALLS a directory with request logs of kube-memory (JSON lines). Both
ways: a call that no rule grants would be refused on a real cluster; a rule that no call used is privilege that
nobody needs. Run by `tests/manifests.sh --calls DIR`.
"""

import json
import pathlib
import sys
from urllib.parse import parse_qs, urlsplit

import yaml

# What a test calls itself that borrows the controller's identity.
TEST = "impound-test"
# As kube-memory knows the controller in the tests and in the demo.
USERS = {"impound", "system:serviceaccount:impound:impound-controller"}
ROLES = [("ClusterRole", "impound-controller"), ("ClusterRole", "impound-reviews"), ("ClusterRole", "impound-callers"), ("Role", "impound-controller")]
ROLES += [("ClusterRole", "impound-pod-certificates"), ("Role", "impound-pod-certificates")]
# Writing a certificate into a kubelet's request needs a right that is no call: to sign for the signer that it names.
SIGNED = ("certificates.k8s.io", "podcertificaterequests/status", "patch")
SIGN, SIGNER = ("certificates.k8s.io", "signers", "sign"), "impound.dev/agent"
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


def called(record):
    """(group, resource, verb, name) of a request; None for discovery."""
    url = urlsplit(record["path"])
    parts = url.path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, rest = "", parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, rest = parts[1], parts[3:]
    else:
        return None
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    resource, name = rest[0], rest[1] if len(rest) > 1 else None
    if len(rest) > 2:
        resource += "/" + rest[2]
    if record["method"] == "GET":
        watches = parse_qs(url.query).get("watch", ["false"])[0] in ("true", "1")
        verb = "watch" if watches else "get" if name else "list"
        # RBAC knows an object by name here as well.
        for selector in parse_qs(url.query).get("fieldSelector", []):
            if selector.startswith("metadata.name="):
                name = selector.removeprefix("metadata.name=")
    elif record["method"] == "DELETE":
        verb = "delete" if name else "deletecollection"
    else:
        verb = VERBS[record["method"]]
    return group, resource, verb, name


def granted(documents):
    """(group, resource, verb) -> names it is limited to, None for any. No role grants one twice; two may grant the same,
    as what each is for is turned on for itself."""
    rights = {}
    for one in documents:
        if one and (one["kind"], one["metadata"]["name"]) in ROLES:
            of_role = set()
            for rule in one["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        for verb in rule["verbs"]:
                            right = (group, resource, verb)
                            assert right not in of_role and "*" not in right, f"{right} is granted twice or to all"
                            of_role.add(right)
                            names, before = rule.get("resourceNames"), rights.get(right, [])
                            rights[right] = None if names is None or before is None else before + names
    return rights


def main():
    rendered, calls = sys.argv[1:]
    rights = granted(yaml.safe_load_all(pathlib.Path(rendered).read_text()))
    made, requests, logs = {}, 0, sorted(pathlib.Path(calls).glob("*.jsonl"))
    for log in logs:
        for line in log.read_text().splitlines():
            record = json.loads(line)
            call = called(record) if record["user"] in USERS and record["user_agent"] != TEST else None
            if call:
                requests += 1
                made.setdefault(call[:3], set()).add(call[3])
                if call[:3] == SIGNED and "certificateChain" in record["body"]["status"]:
                    made.setdefault(SIGN, set()).add(SIGNER)
    missing = [
        f"{verb} {resource}.{group or 'core'} {'' if name is None else name}: called, not granted"
        for (group, resource, verb), names in sorted(made.items())
        for name in sorted(names, key=str)
        if (group, resource, verb) not in rights
        or (rights[group, resource, verb] is not None and name not in rights[group, resource, verb])
    ]
    unused = [
        f"{verb} {resource}.{group or 'core'}: granted, never called"
        for (group, resource, verb) in sorted(rights)
        if (group, resource, verb) not in made
    ]
    for problem in missing[:50] + unused:
        print(f"  NOT SO  {problem}")
    print(
        f"RBAC: {len(rights)} rights against {requests} calls of the controller in {len(logs)} logs, "
        f"{len(missing)} not granted, {len(unused)} not used"
    )
    sys.exit(1 if missing or unused or not requests else 0)


main()
