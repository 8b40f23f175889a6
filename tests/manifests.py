"""Renders deploy/chart with Helm itself and checks what comes out.

Run by tests/manifests.sh, which brings what this imports. Prints one line a check and ends with the number of
failures; nothing is skipped.

  --write   renders deploy/kustomize/base anew instead of comparing it
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml
from helm_python.chart import Chart
from helm_python.errors import HelmError

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/chart"
KUSTOMIZE = ROOT / "deploy/kustomize"
VERSIONS = ["1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36"]
OVERLAYS = ["small", "production", "static-certificates", "pod-certificates"]
# Volumes with a podCertificate are known since 1.34, and served with our version of the API since 1.35.
SINCE = {"pod-certificates": "1.35"}

passed = failed = 0


def check(claim, problems):
    """`problems` is empty if the claim holds."""
    global passed, failed
    if problems:
        failed += 1
        print(f"  NOT SO  {claim}")
        for problem in problems:
            print(f"          {problem}")
    else:
        passed += 1
        print(f"  ok  {claim}")


def values(preset):
    return yaml.safe_load((CHART / "presets" / f"{preset}.yaml").read_text())


def merged(first, second):
    both = dict(first)
    for key, value in second.items():
        both[key] = merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


def rendered(chart, given):
    """The text of each template that renders to something, by file name."""
    texts = chart.render(given, name="impound", namespace="impound")
    return {
        name.rsplit("/", 1)[1]: text.strip() + "\n"
        for name, text in sorted(texts.items())
        if name.endswith(".yaml") and any(yaml.safe_load_all(text))
    }


def documents(text):
    return [one for one in yaml.safe_load_all(text) if one]


def objects(chart, given):
    found = [one for text in rendered(chart, given).values() for one in documents(text)]
    return by_name(found + crds())


def crds():
    return [one for file in sorted((CHART / "crds").glob("*.yaml")) for one in documents(file.read_text())]


def by_name(found):
    named = {}
    for one in found:
        meta = one["metadata"]
        key = f"{one['kind']} {meta.get('namespace', '-')}/{meta['name']}"
        assert key not in named, f"{key} is there twice"
        named[key] = one
    return named


def base_files(chart):
    note = "# Rendered from deploy/chart by `tests/manifests.sh --write`. Do not edit.\n"
    texts = rendered(chart, values("kustomize-base"))
    # The namespace first: kubectl applies in this order.
    order = sorted(texts, key=lambda name: (name != "namespace.yaml", name))
    return {
        "crds.yaml": note + "".join("---\n" + file.read_text() for file in sorted((CHART / "crds").glob("*.yaml"))),
        "impound.yaml": note + "".join("---\n" + texts[name] for name in order),
    }


def kustomized(directory):
    done = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True)
    assert done.returncode == 0, f"kubectl kustomize {directory}: {done.stderr}"
    assert not done.stderr, f"kubectl kustomize {directory} warns: {done.stderr}"
    return by_name(documents(done.stdout))


def differences(left, right, path=""):
    """Where two objects differ; lists of named things and of volume mounts have no order."""
    if isinstance(left, dict) and isinstance(right, dict):
        return [
            one
            for key in sorted(set(left) | set(right))
            for one in (
                differences(left[key], right[key], f"{path}.{key}")
                if key in left and key in right
                else [f"{path}.{key} is only in the {'chart' if key in left else 'overlay'}"]
            )
        ]
    if isinstance(left, list) and isinstance(right, list):
        key = next((k for k in ("mountPath", "name") if all(isinstance(one, dict) and k in one for one in left + right)), None)
        if key and len({one[key] for one in left}) == len(left):
            return differences({one[key]: one for one in left}, {one[key]: one for one in right}, path)
    return [] if left == right else [f"{path}: {left!r} in the chart, {right!r} in the overlay"]


def overlay_matches(chart, name, directory, given):
    ours = objects(chart, given)
    theirs = kustomized(directory)
    problems = [f"{key} is only in the chart" for key in ours if key not in theirs]
    problems += [f"{key} is only in the overlay" for key in theirs if key not in ours]
    for key in ours:
        if key in theirs:
            problems += [f"{key}{one}" for one in differences(ours[key], theirs[key])]
    check(f"overlay {name} is the chart with that preset ({len(theirs)} objects)", problems)
    return theirs


def valid(name, found):
    for version in VERSIONS[VERSIONS.index(SINCE.get(name, VERSIONS[0])) :]:
        problems = []
        for key, one in found.items():
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{key}: {'.'.join(map(str, error.path))}: {error.message[:300]}")
            except kubernetes_validate.SchemaNotFoundError as error:
                problems.append(f"{key}: {error}")
        check(f"{name}: {len(found)} objects are what Kubernetes {version} knows, and have nothing else in them", problems)


def containers(found):
    for key, one in found.items():
        spec = one.get("spec", {}).get("template", {}).get("spec")
        for container in (spec or {}).get("containers", []):
            yield f"{key} {container['name']}", spec, container


def confined(name, found):
    """What every container is denied, and who may have what."""
    problems = []
    added = {"isolator": ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"], "collector": ["SYS_PTRACE", "DAC_READ_SEARCH"]}
    hosts = {"front": {"tls"} if name == "static-certificates" else set(), "collector": {"runtime", "images", "state"}, "isolator": {"runtime"}, "controller": set()}
    for where, spec, container in containers(found):
        def want(is_so, what):
            if not is_so:
                problems.append(f"{where}: {what}")

        own = container["name"]
        context = container["securityContext"]
        pod = spec.get("securityContext", {})
        want(context["readOnlyRootFilesystem"] is True, "its root file system can be written")
        want(context["allowPrivilegeEscalation"] is False, "it may gain privilege")
        want(not context.get("privileged"), "it is privileged")
        want(context["capabilities"]["drop"] == ["ALL"], "it keeps capabilities")
        has = context["capabilities"].get("add", [])
        # Layers may be left out.
        want(has == added.get(own, []) or (own == "collector" and not has), "it has other capabilities than it needs")
        want(context.get("seccompProfile", {}).get("type") == "RuntimeDefault", "no seccomp profile")
        want("memory" in container["resources"]["limits"], "no memory limit")
        root = context.get("runAsUser", pod.get("runAsUser")) == 0
        want(root == (own in ("collector", "isolator")), "it runs as the wrong user")
        want(root or context.get("runAsNonRoot", pod.get("runAsNonRoot")), "it may run as root")
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        on_host = {volume["name"] for volume in spec["volumes"] if "hostPath" in volume}
        want(mounted & on_host == hosts[own], f"it mounts {mounted & on_host} of the host")
        want(not any("SECRET" in one.get("value", "") or "PRIVATE" in one.get("value", "") for one in container.get("env", [])), "a secret in its environment")
    for key, one in found.items():
        spec = one.get("spec", {}).get("template", {}).get("spec")
        if spec:
            looks = any("SYS_PTRACE" in container["securityContext"]["capabilities"].get("add", []) for container in spec["containers"])
            for field in ("hostNetwork", "hostIPC"):
                if spec.get(field):
                    problems.append(f"{key}: {field}")
            if bool(spec.get("hostPID")) != looks:
                problems.append(f"{key}: hostPID is for who looks at processes, and for nobody else")
            token = spec.get("automountServiceAccountToken")
            if token != (one["kind"] == "Deployment"):
                problems.append(f"{key}: automountServiceAccountToken is {token}")
    check(f"{name}: every container has the privileges of agent/PRIVILEGES.md and no other", problems)


def refused(chart):
    wrong = {
        "an unknown value": {"agent": {"prot": 7443}},
        "a port out of range": {"agent": {"port": 70000}},
        "a digest that is none": {"images": {"agent": {"digest": "latest"}}},
        "an object store without a url": {"store": {"type": "url"}},
        "a store of another kind": {"store": {"type": "tape"}},
        "no replica": {"controller": {"replicas": 0}},
        "a relative path": {"runtime": {"socket": "docker.sock"}},
        "text instead of a switch": {"isolation": {"enabled": "yes"}},
        "pod certificates of less than an hour": {"certificates": {"agents": "podCertificate", "issued": {"minutes": 30}}},
        "traces to where TLS or a password is expected": {"traces": {"endpoint": "https://otel:4317"}},
    }
    accepted = []
    for what, given in wrong.items():
        try:
            chart.validate_schema(given)
            chart.render(given, name="impound", namespace="impound")
            accepted.append(what)
        except HelmError:
            pass
    check(f"the values schema refuses {len(wrong)} kinds of wrong values", accepted)
    known = json.loads((CHART / "values.schema.json").read_text())["properties"]
    default = yaml.safe_load((CHART / "values.yaml").read_text())

    def unknown(schema, tree, path=""):
        for key, value in tree.items():
            if key not in schema:
                yield f"{path}{key} is not in the schema"
            elif isinstance(value, dict) and "properties" in schema[key]:
                yield from unknown(schema[key]["properties"], value, f"{path}{key}.")

    check("every value that there is by default is described in the schema", list(unknown(known, default)))


def pinned(chart):
    """Images named by the digests that deploy/build-images.sh writes, with Helm and with kustomize."""
    digests = {name: "sha256:" + character * 64 for name, character in (("agent", "a"), ("controller", "c"))}
    given = {"images": {name: {"repository": f"registry.example/{name}", "digest": digest} for name, digest in digests.items()}}
    component = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "images": [{"name": f"impound/{name}", "newName": f"registry.example/{name}", "digest": digest} for name, digest in digests.items()],
    }
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory) / "kustomize"
        shutil.copytree(KUSTOMIZE, copy)
        for name, text in (("images", component), ("pinned", {"resources": ["../base"], "components": ["../images"]})):
            (copy / name).mkdir()
            (copy / name / "kustomization.yaml").write_text(yaml.safe_dump(text))
        for tool, found in (("Helm", objects(chart, given)), ("kustomize", kustomized(copy / "pinned"))):
            images = [container["image"] for _, _, container in containers(found)]
            problems = [image for image in images if not any(image.startswith(f"registry.example/{name}") and image.endswith(f"@{digest}") for name, digest in digests.items())]
            check(f"with the digests that deploy/build-images.sh writes, {tool} names all {len(images)} images by digest", problems if images else ["there are none"])


def dockerfile():
    """deploy/Dockerfile makes what deploy/build-images.sh makes: the same programs, in images with nothing else."""
    stages, problems = {}, []
    defaults = {}
    for line in (ROOT / "deploy/Dockerfile").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "ARG" and not stages:
            name, _, value = rest.partition("=")
            defaults["${" + name + "}"] = value
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = [("FROM", defaults.get(base, base))]
        elif word and not word.startswith("#") and stages:
            stages[name].append((word, rest))

    def want(is_so, what):
        if not is_so:
            problems.append(what)

    channel = next(line.split('"')[1] for line in (ROOT / "rust-toolchain.toml").read_text().splitlines() if line.startswith("channel"))
    want(list(stages) == ["build", "agent", "controller"], f"stages {list(stages)}")
    build = stages.get("build", [])
    want(build[:1] == [("FROM", f"rust:{channel}-bookworm")], f"built from {build[:1]}, and rust-toolchain.toml says {channel}")
    want(("RUN", "deploy/build-programs.sh /out") in build, "the programs come from elsewhere than deploy/build-programs.sh")
    for name in ("agent", "controller"):
        stage = dict(stages.get(name, []))
        want(stage.get("FROM") == "scratch", f"{name}: FROM {stage.get('FROM')}")
        want(stage.get("USER") == "65532:65532", f"{name}: USER {stage.get('USER')}")
        want(stage.get("ENTRYPOINT") == f'["/impound-{name}"]', f"{name}: ENTRYPOINT {stage.get('ENTRYPOINT')}")
        copied = [rest.split()[-1] for word, rest in stages.get(name, []) if word == "COPY"]
        certificates = ["/etc/ssl/certs/ca-certificates.crt"] if name == "controller" else []
        want(copied == [f"/impound-{name}", "/sbom.cdx.json"] + certificates, f"{name}: holds {copied}")
        want(set(stage) <= {"FROM", "COPY", "USER", "ENTRYPOINT"}, f"{name}: {sorted(stage)}")
    ignored = (ROOT / ".dockerignore").read_text().split()
    want({"target", ".git"} <= set(ignored), f".dockerignore names {ignored}: builds and history would go along")
    check("deploy/Dockerfile makes images FROM scratch, without root, of what deploy/build-programs.sh builds", problems)


def stands_alone(found):
    """Names that objects refer to each other by."""
    problems = []
    names = set(found)
    for key, one in found.items():
        if one["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            target = one["roleRef"]
            space = one["metadata"].get("namespace", "-") if target["kind"] == "Role" else "-"
            if f"{target['kind']} {space}/{target['name']}" not in names:
                problems.append(f"{key} refers to a role that is not there")
            for subject in one["subjects"]:
                if f"{subject['kind']} {subject['namespace']}/{subject['name']}" not in names:
                    problems.append(f"{key} refers to a subject that is not there")
        spec = one.get("spec", {}).get("template", {}).get("spec")
        if spec and f"ServiceAccount impound/{spec['serviceAccountName']}" not in names:
            problems.append(f"{key} runs as a service account that is not there")
        selector = one.get("spec", {}).get("selector", {})
        selector = selector.get("matchLabels", selector) if isinstance(selector, dict) else {}
        if one["kind"] in ("Service", "PodDisruptionBudget", "DaemonSet", "Deployment"):
            pods = [other["spec"]["template"]["metadata"]["labels"] for other in found.values() if "template" in other.get("spec", {})]
            if sum(selector.items() <= labels.items() for labels in pods) != 1:
                problems.append(f"{key} does not select the pods of exactly one workload")
    check("roles, accounts and selectors refer to what is there", problems)


def main():
    chart = Chart.load(CHART)
    files = base_files(chart)
    if "--write" in sys.argv[1:]:
        for name, text in files.items():
            (KUSTOMIZE / "base" / name).write_text(text)
            print(f"wrote deploy/kustomize/base/{name}")
        return
    stale = [f"deploy/kustomize/base/{name}: run tests/manifests.sh --write" for name, text in files.items() if (KUSTOMIZE / "base" / name).read_text() != text]
    check("deploy/kustomize/base is what the chart renders to", stale)
    refused(chart)
    pinned(chart)
    dockerfile()
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory) / "kustomize"
        shutil.copytree(KUSTOMIZE, copy)
        def with_component(name):
            (copy / name).mkdir()
            (copy / name / "kustomization.yaml").write_text(f"resources: [../base]\ncomponents: [../components/{name}]\n")
            return copy / name
        sets = {"base": (copy / "base", values("kustomize-base"))}
        sets |= {name: (copy / "overlays" / name, values(name)) for name in OVERLAYS}
        sets["isolation"] = (with_component("isolation"), merged(values("kustomize-base"), {"isolation": {"enabled": True}}))
        tokens = merged(values("kustomize-base"), {"access": {"kubernetesTokens": True}})
        sets["kubernetes-tokens"] = (with_component("kubernetes-tokens"), tokens)
        traced = {"traces": {"endpoint": "http://otel-collector.monitoring.svc:4317"}}
        sets["traces"] = (with_component("traces"), merged(values("kustomize-base"), traced))
        for name, (path, given) in sets.items():
            found = overlay_matches(chart, name, path, given)
            valid(name, found)
            confined(name, found)
            stands_alone(found)
            if len(sys.argv) > 1:
                target = pathlib.Path(sys.argv[1]) / f"{name}.yaml"
                target.write_text(yaml.safe_dump_all(found.values()))
    monitored = objects(chart, {"podMonitor": {"enabled": True}})
    ports = {port["name"] for port in monitored["Deployment impound/impound-controller"]["spec"]["template"]["spec"]["containers"][0]["ports"]}
    monitor = monitored["PodMonitor impound/impound-controller"]["spec"]["podMetricsEndpoints"][0]
    check("the PodMonitor scrapes a port that the controller has", [] if monitor["port"] in ports else [f"{monitor['port']} is not in {ports}"])
    # For Helm, the namespace is there before.
    valid("chart", objects(chart, {}))
    print(f"\nmanifests: {passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
