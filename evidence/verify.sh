#!/bin/bash
# Checks a collection of Impound evidence with bash, openssl, jq and coreutils only, for readers who don't
# want to trust our program:
#
#   verify.sh [--timestamp-ca ROOT.pem] DIRECTORY PUBLIC-KEY.pem|evidence-keys.json…
#
# Every collection holds this script, and its SHA-256 is in the signed manifest. Whoever could change the
# collection could change its copy of the script too: take the script from the project, or read it.
#
# Checks the signature over the manifest by one of the keys, that manifest.json is what was signed, size,
# SHA-256 and chunk tree of every file the manifest names, that there is no other file, that the custody
# log and its signed head are those that the manifest was made over, that the log records every file as the
# manifest does, counter-signatures, and that the outcome is not called better than it is. With the root
# certificate of the time-stamping authority also what that says of the log's head. `impound verify` also looks
# into tars. Exit: 0 intact, 1 not intact, 2 not checked. FORMATS.md explains every format.
set -euo pipefail
export LC_ALL=C

fail() { echo "NOT INTACT: $*" >&2; exit 1; }

authority=
if [ "${1:-}" = --timestamp-ca ] && [ $# -ge 2 ]; then
    authority=$(realpath "$2")
    [ -f "$authority" ] || { echo "$2 is no file" >&2; exit 2; }
    shift 2
fi
[ $# -ge 2 ] || { echo "usage: $0 [--timestamp-ca ROOT.pem] DIRECTORY PUBLIC-KEY.pem|evidence-keys.json…" >&2; exit 2; }
for tool in openssl jq sha256sum base64 basenc cmp find split; do
    command -v "$tool" > /dev/null || { echo "this needs $tool: install it" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/keys" "$work/times"
# key PEM NAME: notes a key, and sets $id.
key() {
    id=$(openssl pkey -pubin -in "$1" -outform DER 2> /dev/null | sha256sum | cut -c 1-64)
    openssl pkey -pubin -in "$1" -out "$work/keys/$id" 2> /dev/null || { echo "$2 is no public key" >&2; exit 2; }
}
for given in "${@:2}"; do
    # evidence-keys.json: keys, and when each was in use.
    if jq -ce '.keys[]' "$given" > "$work/ring" 2> /dev/null; then
        while IFS= read -r listed; do
            jq -r .public_key <<< "$listed" > "$work/pem"
            key "$work/pem" "a key in $given"
            [ "$id" = "$(jq -r .key_id <<< "$listed")" ] || { echo "$given: key $id is listed as another" >&2; exit 2; }
            jq -r '.valid_from // "", .valid_until // ""' <<< "$listed" > "$work/times/$id"
        done < "$work/ring"
    else
        key "$given" "$given"
    fi
done
cd "$1"

# What is there: plain files only, with names that evidence can have, and those of the format whole.
others=$(find . ! -type f ! -type d -print -quit)
[ -z "$others" ] || fail "${others#./}: links and devices are no evidence"
for file in manifest.json manifest.sigstore.json custody.jsonl custody.checkpoint; do
    [ -f "$file" ] || fail "$file: is not there"
done

# sign SIGNATURE TEXT KEY: an ECDSA signature in DER. Of the two that fit alike only the one whose s is at
# most half the curve's order is good, so that nobody without the key makes another good file.
signed() {
    openssl dgst -sha256 -verify "$3" -signature "$1" "$2" > /dev/null 2>&1 || return 1
    local s half=7FFFFFFF800000007FFFFFFFFFFFFFFFDE737D56D38BCF4279DCE5617E3192A8
    s=$(openssl asn1parse -inform DER -in "$1" | sed -n 's/.*INTEGER *://p' | tail -n 1)
    printf '%64s\n%s\n' "$s" "$half" | tr ' ' 0 | sort -c 2> /dev/null
}

# unbase64 TEXT FILE: only the one spelling of the bytes.
unbase64() { printf %s "$1" | base64 -d > "$2" 2> /dev/null && [ "$(base64 -w 0 < "$2")" = "$1" ]; }

# bundle FILE: a Sigstore bundle with a DSSE envelope. Sets $hint, leaves the payload in $work/payload.
# Fails if it has another form than we write, or if the key it names is there and did not sign it.
bundle() {
    jq . "$1" 2> /dev/null | cmp -s - "$1" || fail "$1: was edited or re-formatted"
    jq -e '[.mediaType, .dsseEnvelope.payloadType] == ["application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.in-toto+json"]
        and (keys == ["dsseEnvelope", "mediaType", "verificationMaterial"])
        and (.verificationMaterial | keys == ["publicKey"]) and (.verificationMaterial.publicKey | keys == ["hint"])
        and (.dsseEnvelope | keys == ["payload", "payloadType", "signatures"])
        and (.dsseEnvelope.signatures | length == 1) and (.dsseEnvelope.signatures[0] | keys == ["sig"])' "$1" > /dev/null 2>&1 ||
        fail "$1: is no bundle with one signature over an in-toto Statement"
    hint=$(jq -r .verificationMaterial.publicKey.hint "$1")
    jq -j .dsseEnvelope.payload "$1" > "$work/base64"
    base64 -d < "$work/base64" > "$work/payload" 2> /dev/null &&
        base64 -w 0 < "$work/payload" | cmp -s - "$work/base64" || fail "$1: its payload is not base64"
    unbase64 "$(jq -r '.dsseEnvelope.signatures[0].sig' "$1")" "$work/sig" || fail "$1: its signature is not base64"
    [ -f "$work/keys/$hint" ] || return 0
    # DSSE signs a header with the lengths, then the payload.
    { printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(wc -c < "$work/payload")"; cat "$work/payload"; } > "$work/signed"
    signed "$work/sig" "$work/signed" "$work/keys/$hint" || fail "$1: its signature does not fit key $hint"
}

bundle manifest.sigstore.json
case $hint in *[!0-9a-f]* | '') fail "manifest.sigstore.json: names no key" ;; esac
[ -f "$work/keys/$hint" ] || fail "manifest.sigstore.json: is signed with key $hint, which is none of those given"
signer=$hint
cmp -s "$work/payload" manifest.json || fail "manifest.json: is not what was signed"

# Paths hold no spaces or control characters and stay below the directory, or nothing is opened.
jq -er '.predicate.artifacts[] | [.sha256, .path, .size, .chunk_root // "-", .receipt.location // "-"] | join(" ")' manifest.json > "$work/artifacts"
cut -d ' ' -f 2 "$work/artifacts" > "$work/paths"
if grep -qvE '^[!-~]+$' "$work/paths" || grep -qE '^/|(^|/)\.\.?(/|$)|//|/$' "$work/paths"; then
    fail "manifest.json: names a path that no evidence can have"
fi
jq -e '.subject == [.predicate.artifacts[] | { name: .path, digest: { sha256 } }]
    and (.predicate.artifacts | map(.path) | . == unique)' manifest.json > /dev/null ||
    fail "manifest.json: its subjects and its artifacts are not the same files, each once and in order"

# RFC 6962's Merkle Tree Hash. Leaves are hashed behind a byte 0, nodes behind a byte 1; pairs are joined
# level by level, and one that is left over moves up as it is.
bytes() { printf %s "$1" | tr a-f A-F | basenc --decode --base16; }
hashed() { find "$work/parts" -type f -print0 | sort -z | xargs -0 sha256sum | cut -c 1-64; rm -rf "$work/parts"; }
# Reads leaf hashes, one a line; prints the root.
tree() {
    cat > "$work/level"
    [ -s "$work/level" ] || { sha256sum < /dev/null | cut -c 1-64; return; }
    local count n left right
    while count=$(wc -l < "$work/level"); [ "$count" -gt 1 ]; do
        mkdir "$work/parts"
        n=10000000
        sed 's/../\\x&/g' "$work/level" | while read -r left && read -r right; do
            printf "\\x01$left$right" > "$work/parts/$((n += 1))"
        done
        hashed > "$work/next"
        [ $((count % 2)) -eq 0 ] || tail -n 1 "$work/level" >> "$work/next"
        mv "$work/next" "$work/level"
    done
    cat "$work/level"
}
# Reads lines; prints the root of the tree over them.
root() {
    local n=10000000 line
    mkdir "$work/parts"
    while IFS= read -r line; do printf '\0%s' "$line" > "$work/parts/$((n += 1))"; done
    hashed | tree
}
# Prints the root of the tree over a file's chunks of 1 MiB.
# shellcheck disable=SC2016
chunks() { split -b 1048576 --filter='{ printf "\0"; cat; } | sha256sum' "$1" | cut -c 1-64 | tree; }

while read -r sha256 path size chunk_root location; do
    [ -f "$path" ] || fail "$path: is in the manifest and not there"
    [ "$(stat -c %s "$path")" = "$size" ] || fail "$path: expected $size bytes, got $(stat -c %s "$path")"
    [ "$(sha256sum < "$path" | cut -c 1-64)" = "$sha256" ] || fail "$path: was changed: it has not the SHA-256 of the manifest"
    [ "$(chunks "$path")" = "$chunk_root" ] || fail "$path: has not the chunk tree of the manifest"
    [ "$location" != - ] || fail "$path: has no receipt of the store"
done < "$work/artifacts"

# The token of a time-stamping authority, if the manifest names one.
stamp=$(jq -r '.predicate.timestamp.token.sha256 // ""' manifest.json)
if [ -n "$stamp" ]; then
    [ -f custody.checkpoint.tst ] || fail "custody.checkpoint.tst: is in the manifest and not there"
    [ "$(sha256sum < custody.checkpoint.tst | cut -c 1-64)" = "$stamp" ] ||
        fail "custody.checkpoint.tst: was changed: it has not the SHA-256 of the manifest"
fi

# No file besides, but for counter-signatures of exactly this manifest.
countersigned=
{ cat "$work/paths"; printf '%s\n' manifest.json manifest.sigstore.json custody.jsonl custody.checkpoint ${stamp:+custody.checkpoint.tst}; } | sort > "$work/expected"
find . -type f -print0 | tr '\n\0' '?\n' | sed 's|^\./||' | sort > "$work/there"
while IFS= read -r path; do
    [[ $path =~ ^signatures/([0-9a-f]{64})\.sigstore\.json$ ]] || fail "$path: is there and not in the manifest"
    id=${BASH_REMATCH[1]}
    bundle "$path"
    [ "$hint" = "$id" ] || fail "$path: is named after another key than it is signed with"
    cmp -s "$work/payload" manifest.json || fail "$path: vouches for another manifest"
    if [ -f "$work/keys/$id" ]; then countersigned="$countersigned; countersigned with $id"; else
        countersigned="$countersigned; NOT CHECKED: a signature with $id, whose key was not given"; fi
done < <(comm -13 "$work/expected" "$work/there")

# The custody log's head is a signed note: three lines, an empty line, "— origin base64(key id, signature)".
{ read -r origin; read -r entries; read -r head; } < custody.checkpoint || fail "custody.checkpoint: is no signed note"
printf '%s\n%s\n%s\n' "$origin" "$entries" "$head" > "$work/text"
note=$(tail -n 1 custody.checkpoint | cut -d ' ' -f 3)
unbase64 "$note" "$work/note" || fail "custody.checkpoint: its signature is not base64"
{ cat "$work/text"; printf '\n— %s %s\n' "$origin" "$note"; } | cmp -s - custody.checkpoint ||
    fail "custody.checkpoint: has another form than text and one signature"
tail -c +5 "$work/note" > "$work/sig"
by=
for key in "$work"/keys/*; do
    id=${key##*/}
    [ "$(head -c 4 "$work/note" | base64)" = "$(bytes "${id:0:8}" | base64)" ] && signed "$work/sig" "$work/text" "$key" && by=$id
done
[ -n "$by" ] || fail "custody.checkpoint: its signature does not fit the key"
[ "$origin" = "$(jq -r '"impound.dev/" + .predicate.case' manifest.json)" ] ||
    fail "custody.checkpoint: is of another case"
[ "$entries" = "$(jq -r .predicate.custody.size manifest.json)" ] &&
    [ "$(base64 -d <<< "$head" | sha256sum)" = "$(bytes "$(jq -r .predicate.custody.root manifest.json)" | sha256sum)" ] ||
    fail "custody.checkpoint: is not the head that the manifest was made over"

# Its entries, and that they record what was stored as the manifest does.
tr -d '\0' < custody.jsonl | cmp -s - custody.jsonl && [ -z "$(tail -c 1 custody.jsonl)" ] ||
    fail "custody.jsonl: is no text of whole lines"
[ "$(wc -l < custody.jsonl)" = "$entries" ] ||
    fail "custody.jsonl: has $(wc -l < custody.jsonl) entries, and $entries were signed"
[ "$(bytes "$(root < custody.jsonl)" | base64)" = "$head" ] || fail "custody.jsonl: its entries are not those that were signed"
jq -se '[.[].seq] == [range(length)]' custody.jsonl > /dev/null 2>&1 || fail "custody.jsonl: its entries are not numbered as they stand"
jq -se --slurpfile manifest manifest.json '$manifest[0].predicate as $manifest |
    [.[] | select(.event == "stored" and (.collection // $manifest.collection) == $manifest.collection) | .artifact] as $stored |
    all($stored[]; . != null) and ($stored | unique_by(.path)) == $manifest.artifacts and
    all($stored[]; . as $one | $manifest.artifacts | any(. == $one))' custody.jsonl > /dev/null ||
    fail "custody.jsonl: does not record what was stored as the manifest does"

# What the authority says, by its certificate as it was then: openssl checks the token's digest of the head,
# its signature, and that its certificate is for time-stamping and led to the root at the time that it says.
stamped=
if [ -n "$stamp" ]; then
    said=$(openssl ts -reply -token_in -in custody.checkpoint.tst -text 2> /dev/null | sed -n "s/^Time stamp: //p") || true
    at=$(date -u -d "$said" +%s 2> /dev/null) && [ -n "$said" ] || fail "custody.checkpoint.tst: is no token of a time-stamping authority"
    time=$(date -u -d "@$at" +%Y-%m-%dT%H:%M:%SZ)
    stamped="; NOT CHECKED: a timestamp of $time, whose authority's certificate was not given"
    if [ -n "$authority" ]; then
        openssl ts -verify -token_in -in custody.checkpoint.tst -data custody.checkpoint -CAfile "$authority" \
            -attime "$at" > /dev/null 2> "$work/why" || fail "custody.checkpoint.tst: is not what the given authority would sign of this head"
        stamped="; dated $time by the authority"
    fi
elif [ -n "$authority" ]; then
    echo "WARNING: custody.checkpoint.tst: is not there to be checked: $(jq -r '.predicate.timestamp | if . == null then "no authority was asked" else "the authority gave none" end' manifest.json)"
fi

# The outcome is complete only if nothing is missing and everything is complete, but for a broken
# attempt <path>.partial-<n> beside the complete <path>.
jq -e '.predicate | all(.artifacts[].completeness; .state != "incomplete" or (.reasons | length > 0)) and
    ([.missing[].path] - [.artifacts[].path] == [.missing[].path]) and (.outcome == "partial" or
    ((.artifacts | map({ key: .path, value: .completeness.state }) | from_entries) as $state |
        .missing == [] and all($state | to_entries[] | select(.value != "complete").key;
            test("\\.partial-[1-9][0-9]*$") and
            $state[sub("\\.partial-[1-9][0-9]*$"; "")] == "complete")))' manifest.json > /dev/null ||
    fail "manifest.json: calls the collection complete, and something is missing or incomplete"

# Odd, and no more: whoever has a key writes whatever time they like.
if [ -f "$work/times/$signer" ]; then
    { read -r from; read -r until; } < "$work/times/$signer"
    created=$(jq -r .predicate.created manifest.json)
    says="WARNING: manifest.json: says it was made at $created, and key $signer was"
    if [ -n "$from" ] && [[ "$created" < "$from" ]]; then
        echo "$says not in use before $from"
    elif [ -n "$until" ] && [[ "$created" > "$until" ]]; then
        echo "$says out of use from $until on"
    fi
fi
echo "intact; the manifest calls the collection $(jq -r .predicate.outcome manifest.json), signed with $signer$countersigned$stamped"
