#!/bin/sh
# Checks a collection of Impound evidence with openssl, jq and coreutils only, for readers who don't
# want to trust our program:  verify.sh DIRECTORY PUBLIC-KEY.pem
#
# Checks the signature over the manifest, that manifest.json is what was signed, the SHA-256 of every
# file the manifest names, that there is no other file, the signature of the custody log's head, that
# the log has the Merkle root that was signed, and that the outcome is not called better than it is. It doesn't look into tars; `impound verify` does.
set -eu

fail() { echo "NOT INTACT: $*" >&2; exit 1; }

[ $# -eq 2 ] || { echo "usage: $0 DIRECTORY PUBLIC-KEY.pem" >&2; exit 2; }
for tool in openssl jq sha256sum base64 basenc cmp find; do
    command -v "$tool" > /dev/null || { echo "this needs $tool: install it" >&2; exit 2; }
done
key=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$1"

# Of the two signatures that fit alike only the one whose s is at most half the curve's order is good.
low_s() {
    s=$(openssl asn1parse -inform DER -in "$1" | sed -n 's/.*INTEGER *://p' | tail -n 1)
    half=7FFFFFFF800000007FFFFFFFFFFFFFFFDE737D56D38BCF4279DCE5617E3192A8
    printf '%64s\n%s\n' "$s" "$half" | tr ' ' 0 | LC_ALL=C sort -c 2> /dev/null
}

# DSSE: the signature is over a header with the lengths, then the payload.
bundle=manifest.sigstore.json
jq -er .dsseEnvelope.payload "$bundle" | base64 -d > "$work/payload" || fail "$bundle can't be read"
jq -er '.dsseEnvelope.signatures[0].sig' "$bundle" | base64 -d > "$work/sig" || fail "$bundle has no signature"
{
    printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(wc -c < "$work/payload")"
    cat "$work/payload"
} > "$work/signed"
openssl dgst -sha256 -verify "$key" -signature "$work/sig" "$work/signed" > /dev/null 2>&1 ||
    fail "the signature over the manifest does not fit the key"
low_s "$work/sig" || fail "the signature over the manifest is not the one with low s"
id=$(openssl pkey -pubin -in "$key" -outform DER | sha256sum | cut -c 1-64)
jq -e --arg id "$id" '.verificationMaterial.publicKey.hint == $id' "$bundle" > /dev/null ||
    fail "the bundle names another key"
cmp -s "$work/payload" manifest.json || fail "manifest.json is not what was signed"

# Paths hold no spaces or control characters and stay below the directory, or nothing is opened.
jq -er '.subject[] | .digest.sha256 + "  " + .name' manifest.json > "$work/sums"
if LC_ALL=C grep -qvE '^[0-9a-f]{64}  [!-~]+$' "$work/sums" ||
    cut -c 67- "$work/sums" | grep -qE '^/|(^|/)\.\.?(/|$)'; then
    fail "the manifest names a path that no evidence can have"
fi
others=$(find . ! -type f ! -type d) && [ -z "$others" ] || fail "links or devices among the evidence: $others"
sha256sum --check --strict --quiet "$work/sums" || fail "a file is missing or was changed"

# No file besides.
{
    cut -c 67- "$work/sums"
    printf '%s\n' manifest.json "$bundle" custody.jsonl custody.checkpoint
} | LC_ALL=C sort > "$work/expected"
find . -type f | sed 's|^\./||' | LC_ALL=C sort > "$work/there"
cmp -s "$work/expected" "$work/there" ||
    fail "other files than the manifest's: $(LC_ALL=C comm -3 "$work/expected" "$work/there" | tr -d '\t' | head -n 1)"

# The custody log's head is a signed note: three lines, empty line, signature behind 4 bytes of key id.
[ "$(wc -l < custody.checkpoint)" -eq 5 ] && [ -z "$(sed -n 4p custody.checkpoint)" ] ||
    fail "the custody log's head has another form than text and one signature"
sed '/^$/,$d' custody.checkpoint > "$work/text"
tail -n 1 custody.checkpoint | cut -d ' ' -f 3 | base64 -d | tail -c +5 > "$work/sig"
openssl dgst -sha256 -verify "$key" -signature "$work/sig" "$work/text" > /dev/null 2>&1 ||
    fail "the signature over the custody log's head does not fit the key"
low_s "$work/sig" || fail "the signature over the custody log's head is not the one with low s"
[ "$(sed -n 2p "$work/text")" = "$(wc -l < custody.jsonl)" ] ||
    fail "the custody log has another number of entries than was signed"

# Its entries: RFC 6962's Merkle Tree Hash over the lines, leaves hashed behind a byte 0, nodes behind a byte 1.
# Pairs are joined level by level; one that is left over moves up as it is.
sha256() { sha256sum | cut -c 1-64; }
bytes() { printf %s "$1" | tr a-f A-F | basenc --decode --base16; }
root() {
    while IFS= read -r line; do { printf '\000'; printf %s "$line"; } | sha256; done > "$work/level"
    while [ "$(wc -l < "$work/level")" -gt 1 ]; do
        while read -r left; do
            if read -r right; then { printf '\001'; bytes "$left"; bytes "$right"; } | sha256; else echo "$left"; fi
        done < "$work/level" > "$work/next"
        mv "$work/next" "$work/level"
    done
    cat "$work/level"
}
[ "$(bytes "$(root < custody.jsonl)" | base64)" = "$(sed -n 3p "$work/text")" ] ||
    fail "the custody log's entries are not those that were signed"
covered=$(jq -r .predicate.custody.size manifest.json)
[ "$(head -n "$covered" custody.jsonl | root)" = "$(jq -r .predicate.custody.root manifest.json)" ] ||
    fail "the custody log does not begin as the manifest says"
[ "$(sed -n 1p "$work/text")" = "$(jq -r '"impound.dev/" + .predicate.case + "/" + .predicate.collection' manifest.json)" ] ||
    fail "the custody log is of another collection"

# The outcome is complete only if nothing is missing and everything is complete, but for a broken
# attempt <path>.partial-<n> beside the complete <path>.
jq -e '.predicate | .outcome == "partial" or
    ((.artifacts | map({ key: .path, value: .completeness.state }) | from_entries) as $state |
        .missing == [] and all($state | to_entries[] | select(.value != "complete").key;
            test("\\.partial-[1-9][0-9]*$") and
            $state[sub("\\.partial-[1-9][0-9]*$"; "")] == "complete"))' manifest.json > /dev/null ||
    fail "the manifest calls the collection complete, and something is missing or incomplete"

echo "intact; the manifest calls the collection $(jq -r .predicate.outcome manifest.json)"
