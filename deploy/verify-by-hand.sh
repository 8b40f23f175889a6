#!/bin/bash
# Checks a collection of evidence with openssl, jq and sha256sum, and nothing of Impound's: what
# `impound verify` checks except the contents of the tars.
#
# Usage: deploy/verify-by-hand.sh COLLECTION-DIRECTORY evidence.pub
# Prints one line per check and ends with 0 only if all hold.
set -euo pipefail
[ $# = 2 ] || { echo "usage: $0 COLLECTION-DIRECTORY PUBLIC-KEY-FILE" >&2; exit 2; }
key=$(realpath "$2")
cd "$1"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad() { echo "WRONG: $*" >&2; exit 1; }

# 1. The bundle holds the manifest, and the key signed it. What is signed is the DSSE pre-authentication
#    encoding: "DSSEv1", length and text of the payload's type, length and bytes of the payload.
jq -r .dsseEnvelope.payload manifest.sigstore.json | base64 -d >"$work/payload"
cmp -s "$work/payload" manifest.json || bad "manifest.json is not what manifest.sigstore.json holds"
type=$(jq -r .dsseEnvelope.payloadType manifest.sigstore.json)
[ "$type" = application/vnd.in-toto+json ] || bad "the payload's type is $type"
{ printf 'DSSEv1 %d %s %d ' ${#type} "$type" "$(wc -c <"$work/payload")"; cat "$work/payload"; } >"$work/signed"
jq -r '.dsseEnvelope.signatures[0].sig' manifest.sigstore.json | base64 -d >"$work/sig"
openssl dgst -sha256 -verify "$key" -signature "$work/sig" "$work/signed" >/dev/null || bad "manifest.json is not signed by $key"
echo "manifest.json is signed by the given key"

# 2. Every file that the manifest names is there with its digest and size, and no other file is.
jq -r '.subject[] | "\(.digest.sha256)  \(.name)"' manifest.json >"$work/digests"
sha256sum --quiet --strict -c "$work/digests" || bad "a file is not what the manifest says (see above)"
jq -r '.predicate.artifacts[] | "\(.size) \(.path)"' manifest.json | while read -r size path; do
    [ "$(stat -c %s "$path")" = "$size" ] || bad "$path does not have $size bytes"
done
{ cut -c67- "$work/digests"; printf '%s\n' manifest.json manifest.sigstore.json custody.jsonl custody.checkpoint; } | sort >"$work/expected"
find . ! -type d -printf '%P\n' | sort >"$work/found"
diff "$work/expected" "$work/found" >"$work/diff" || bad "other files than the manifest names (< missing, > extra):
$(grep '^[<>]' "$work/diff")"
echo "$(wc -l <"$work/digests") files have the digests and sizes in the manifest, and there are no others"

# 3. The custody log: the checkpoint is signed, and its Merkle root (RFC 6962) is that of the lines.
sed '/^$/,$d' custody.checkpoint >"$work/text"
tail -n 1 custody.checkpoint | cut -d ' ' -f 3 | base64 -d | tail -c +5 >"$work/sig"
openssl dgst -sha256 -verify "$key" -signature "$work/sig" "$work/text" >/dev/null || bad "custody.checkpoint is not signed by $key"
hash() { sha256sum | cut -c1-64; }
bytes() { printf '%b' "$(sed 's/../\\x&/g' <<<"$1")"; }
mapfile -t leaves < <(while IFS= read -r line; do { printf '\0'; printf %s "$line"; } | hash; done <custody.jsonl)
# Root over the leaves from $1 to before $2.
root() {
    local from=$1 to=$2 half=1
    if [ $((to - from)) = 1 ]; then echo "${leaves[$from]}"; return; fi
    while [ $((half * 2)) -lt $((to - from)) ]; do half=$((half * 2)); done
    { printf '\1'; bytes "$(root "$from" $((from + half)))"; bytes "$(root $((from + half)) "$to")"; } | hash
}
[ "$(sed -n 2p custody.checkpoint)" = "${#leaves[@]}" ] || bad "custody.checkpoint is about another number of lines than the ${#leaves[@]} there are"
[ "$(sed -n 3p custody.checkpoint | base64 -d | od -An -v -tx1 | tr -d ' \n')" = "$(root 0 ${#leaves[@]})" ] || bad "custody.jsonl is not the log that custody.checkpoint signs"
size=$(jq -r .predicate.custody.size manifest.json)
[ "$size" -le "${#leaves[@]}" ] && [ "$(jq -r .predicate.custody.root manifest.json)" = "$(root 0 "$size")" ] || bad "custody.jsonl does not begin with the $size lines that the manifest signs"
echo "custody.jsonl (${#leaves[@]} lines) is the log that was signed"
echo "outcome: $(jq -r .predicate.outcome manifest.json); missing: $(jq '.predicate.missing | length' manifest.json)"
