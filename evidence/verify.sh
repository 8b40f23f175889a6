#!/bin/bash
# Checks a collection of Impound evidence without our program, for readers who don't want to trust it:
#
#   verify.sh [--countersigned-by PUBLIC-KEY.pem]… [--timestamp-ca ROOT.pem] DIRECTORY PUBLIC-KEY.pem|evidence-keys.json…
#
# Needs bash, openssl, jq, GNU coreutils 8.31 or later, findutils, diffutils, grep, sed and awk.
#
# Every collection holds this script, and its SHA-256 is in the signed manifest. Whoever could change the
# collection could change its copy of the script too: take the script from the project, or read it.
#
# Checks the signature over the manifest by one of the keys, that manifest.json is what was signed and has
# the one form that a manifest can have, size, SHA-256 and chunk tree of every file it names, that a tar
# which it calls complete goes to its end, that there is no other file, that the custody log and its signed
# head are those that the manifest was made over, that the log records every file as the manifest does,
# counter-signatures, and that the outcome is not called better than it is. With the root certificate of the
# time-stamping authority also what that says of the log's head. What `impound verify` checks besides is in
# FORMATS.md, with every format. A counter-signature that was taken away leaves no trace: say whose you
# expect.
#
# Exit: 0 intact and complete, 1 not intact, 2 not checked, 3 intact, but something asked for is missing.
set -euo pipefail
# `split --filter` runs $SHELL, whatever that is.
export LC_ALL=C SHELL=/bin/sh

fail() { echo "NOT INTACT: $*" >&2; exit 1; }
unchecked() { echo "$*" >&2; exit 2; }

for tool in awk base64 basenc cat cmp comm cut date find grep head jq mkdir mktemp mv od openssl realpath rm \
    sed sh sha256sum sort split stat tail tr wc xargs; do
    command -v "$tool" > /dev/null || unchecked "this needs $tool: install it"
done
vouching=()
authority=
while [ $# -ge 2 ]; do
    case $1 in
        --countersigned-by) vouching+=("$2") ;;
        --timestamp-ca)
            authority=$(realpath "$2")
            [ -f "$authority" ] || unchecked "$2 is no file" ;;
        *) break ;;
    esac
    shift 2
done
[ $# -ge 2 ] || unchecked "usage: $0 [--countersigned-by PUBLIC-KEY.pem]… [--timestamp-ca ROOT.pem] DIRECTORY PUBLIC-KEY.pem|evidence-keys.json…"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/keys" "$work/times" "$work/vouching"
# key PEM NAME WHERE: notes a key, and sets $id.
key() {
    id=$(openssl pkey -pubin -in "$1" -outform DER 2> /dev/null | sha256sum | cut -c 1-64)
    openssl pkey -pubin -in "$1" -out "$work/$3/$id" 2> /dev/null || unchecked "$2 is no public key"
}
for given in "${@:2}"; do
    # evidence-keys.json: keys, and when each was in use.
    if jq -ce '.keys[]' "$given" > "$work/ring" 2> /dev/null; then
        while IFS= read -r listed; do
            jq -r .public_key <<< "$listed" > "$work/pem"
            key "$work/pem" "a key in $given" keys
            [ "$id" = "$(jq -r .key_id <<< "$listed")" ] || unchecked "$given: key $id is listed as another"
            jq -r '.valid_from // "", .valid_until // ""' <<< "$listed" > "$work/times/$id"
        done < "$work/ring"
    else
        key "$given" "$given" keys
    fi
done
for given in ${vouching[@]+"${vouching[@]}"}; do key "$given" "$given" vouching; done
cd "$1"

# What is there: plain files only, with names that evidence can have, and those of the format whole.
others=$(find . ! -type f ! -type d -print -quit)
[ -z "$others" ] || fail "${others#./}: links, pipes and devices are no evidence"
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
    local pem=$work/keys/$hint
    [ -f "$pem" ] || pem=$work/vouching/$hint
    [ -f "$pem" ] || return 0
    # DSSE signs a header with the lengths, then the payload.
    { printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(wc -c < "$work/payload")"; cat "$work/payload"; } > "$work/signed"
    signed "$work/sig" "$work/signed" "$pem" || fail "$1: its signature does not fit key $hint"
}

bundle manifest.sigstore.json
case $hint in *[!0-9a-f]* | '') fail "manifest.sigstore.json: names no key" ;; esac
[ -f "$work/keys/$hint" ] || fail "manifest.sigstore.json: is signed with key $hint, which is none of those given"
signer=$hint
cmp -s "$work/payload" manifest.json || fail "manifest.json: is not what was signed"

# One form only: JSON as jq prints it (DEL as it is or escaped: versions of jq differ), each object with the
# fields that it can have in their order, none of them null.
delete() { sed 's/\\u007f/\x7f/g' "$@"; }
jq -e '[._type, .predicateType] == ["https://in-toto.io/Statement/v1", "https://impound.dev/evidence/v1"]' manifest.json > /dev/null 2>&1 ||
    fail "manifest.json: is no in-toto Statement v1 with an Impound manifest of version 1"
jq . manifest.json 2> /dev/null | delete | cmp -s - <(delete manifest.json) || fail "manifest.json: is not in the one form that a manifest has"
jq -e 'def has_only($names): keys_unsorted as $keys | ($names | split(" ")) as $all | $all - ($all - $keys) == $keys;
    def build: has_only("name version executable_sha256");
    def pod: has_only("namespace name uid");
    has_only("_type subject predicateType predicate") and
    all(.subject[]; has_only("name digest") and (.digest | has_only("sha256"))) and
    (.predicate | has_only("case collection outcome requested_by claimed requester_certificate_sha256 reason created controller cluster node pod quarantine agents containers artifacts missing alterations omissions storage custody timestamp") and
        (.controller | build) and (.node | has_only("name uid boot_id")) and (.pod | pod) and
        (.custody | has_only("size root")) and (.storage // {} | has_only("write_once reason")) and .claimed != false and
        (.timestamp // {} | has_only("token none") and (.token // {} | has_only("sha256 authority")) and (.none // {} | has_only("reason"))) and
        all(.agents[]; has_only("identity certificate_sha256 version executable_sha256 runtime runtime_version clock_offset_ms")) and
        all(.containers[]; has_only("role pod name id attempt image image_id image_digest state created") and (.pod | pod)) and
        all(.missing[]; has_only("path reason")) and
        all(.alterations[]; has_only("kind source_id api_call effect artifacts started finished")) and
        all(.artifacts[]; .derived_from != [] and
            has_only("path size sha256 chunk_root media_type method api_call source_id derived_from consistency completeness omissions started finished clock_offset_ms received_started received_finished receipt") and
            (.completeness | has_only("state reasons")) and
            (.receipt // {} | has_only("location version lock verified") and (.lock // {} | has_only("mode until hold"))))) and
    all(..; . != null)' manifest.json > /dev/null 2>&1 || fail "manifest.json: has fields that no manifest has, or in another order"

# Paths hold no spaces, backslashes or control characters and stay below the directory, or nothing is opened.
jq -er '.predicate.artifacts[] | [.sha256, .path, .size, .chunk_root // "-", .receipt.location // "-", .completeness.state] | join(" ")' manifest.json > "$work/artifacts"
cut -d ' ' -f 2 "$work/artifacts" > "$work/paths"
if grep -qvE '^[!-~]+$' "$work/paths" || grep -qE '^/|(^|/)\.\.?(/|$)|//|/$|\\' "$work/paths"; then
    fail "manifest.json: names a path that no evidence can have"
fi
jq -e '.subject == [.predicate.artifacts[] | { name: .path, digest: { sha256 } }]
    and (.predicate.artifacts | map(.path) | . == unique)' manifest.json > /dev/null ||
    fail "manifest.json: its subjects and its artifacts are not the same files, each once and in order"

# RFC 6962's Merkle Tree Hash. Leaves are hashed behind a byte 0, nodes behind a byte 1; pairs are joined
# level by level, and one that is left over moves up as it is.
bytes() { printf %s "$1" | tr a-f A-F | basenc --decode --base16; }
# What is hashed lies in files, a few thousand at a time, as one sha256sum hashes many. Prints the hashes of
# those in $work/parts in the order of their names, and removes them.
mkdir "$work/parts"
hashed() {
    find "$work/parts" -type f -print0 | sort -z | xargs -0 -r sha256sum | cut -c 1-64
    find "$work/parts" -type f -delete
}
# Counts $n up to a few thousand files, then hashes them.
next() { [ $((n += 1)) -lt 10004096 ] || { hashed; n=10000000; }; }
# Reads leaf hashes, one a line; prints the root.
tree() {
    cat > "$work/level"
    [ -s "$work/level" ] || { sha256sum < /dev/null | cut -c 1-64; return; }
    local count n left right
    while count=$(wc -l < "$work/level"); [ "$count" -gt 1 ]; do
        sed 's/../\\x&/g' "$work/level" | {
            n=10000000
            while read -r left && read -r right; do
                printf "\\x01$left$right" > "$work/parts/$n"
                next
            done
            hashed
        } > "$work/next"
        [ $((count % 2)) -eq 0 ] || tail -n 1 "$work/level" >> "$work/next"
        mv "$work/next" "$work/level"
    done
    cat "$work/level"
}
# Reads lines; prints the root of the tree over them.
root() {
    {
        local n=10000000 line
        while IFS= read -r line; do
            printf '\0%s' "$line" > "$work/parts/$n"
            next
        done
        hashed
    } | tree
}
# Prints the root of the tree over the chunks of 1 MiB of a file of so many bytes. One chunk is a leaf and a root.
# shellcheck disable=SC2016
chunks() {
    if [ "$2" -gt 0 ] && [ "$2" -le 1048576 ]; then printf '\0' | cat - "$1" | sha256sum | cut -c 1-64
    else split -b 1048576 --filter='{ printf "\0"; cat; } | sha256sum' "$1" | cut -c 1-64 | tree; fi
}

# ends FILE: walks a tar from header to header, as od prints its blocks in hexadecimal. Prints "ended" if it
# comes to two zero blocks and nothing but zeros behind them, else what is wrong.
ends() {
    tar=$1 awk '
        function lost(why) { print why; exit }
        # Reads on at a block; od ends when nobody reads it any more.
        function seek(block) {
            if (command) close(command)
            command = sprintf("exec od -An -v -tx1 -w512 -j %.0f \"./$tar\" 2> /dev/null", block * 512)
            position = block
        }
        # The next block, which must be a whole one, in $0.
        function read_on() {
            if ((command | getline) <= 0 || length($0) != 1536) return 0
            position++
            return 1
        }
        function byte(at) { return substr($0, 3 * at + 2, 2) }
        # Octal digits between spaces and zeros, or base 256 behind a byte 0x80; else -1.
        function number(at, end,    value, digit) {
            value = 0
            if (byte(at) == "80") { while (++at < end) value = value * 256 + values[byte(at)]; return value }
            while (at < end && byte(at) == "20") at++
            while (at < end && (digit = byte(at)) ~ /^3[0-7]$/) { value = value * 8 + substr(digit, 2); at++ }
            while (at < end && byte(at) ~ /^[02]0$/) at++
            return at == end ? value : -1
        }
        # Whether the checksum fits; some old writers summed signed bytes.
        function checked(    at, sum, high, stated) {
            sum = 8 * 32; high = 0
            for (at = 0; at < 512; at++) if (at < 148 || at > 155) { sum += values[byte(at)]; high += (byte(at) >= "80") }
            stated = number(148, 156)
            return stated == sum || stated == sum - 256 * high
        }
        # The size in records "<length> <key>=<value>\n" of so many bytes, or -1.
        function size_in(text, bytes,    at, from, count, digit, found) {
            found = -1
            for (at = 0; at < bytes; at += count) {
                count = 0
                for (from = at; (digit = substr(text, 3 * from + 2, 2)) ~ /^3[0-9]$/; from++) count = count * 10 + substr(digit, 2)
                if (digit != "20" || from == at || count <= from - at + 1 || at + count > bytes || substr(text, 3 * (at + count) - 1, 2) != "0a")
                    lost("a PAX header has something else than records")
                # " size="
                if (substr(text, 3 * from + 1, 18) != " 20 73 69 7a 65 3d") continue
                if (found != -1 || from + 6 == at + count - 1) lost("a PAX header gives the size twice, or none")
                found = 0
                for (from += 6; from < at + count - 1; from++) {
                    if ((digit = substr(text, 3 * from + 2, 2)) !~ /^3[0-9]$/) lost("a PAX header gives a size that is no number")
                    found = found * 10 + substr(digit, 2)
                }
            }
            return found
        }
        BEGIN {
            for (at = 0; at < 256; at++) values[sprintf("%02x", at)] = at
            zero = sprintf("%512s", ""); gsub(/ /, " 00", zero)
            seek(0)
            pax = -1
            while (read_on() && $0 != zero) {
                magic = substr($0, 3 * 257 + 1, 24)
                if (!checked() || (magic != " 75 73 74 61 72 00 30 30" && magic != " 75 73 74 61 72 20 20 00" && magic !~ /^( 00)+$/))
                    lost("something else stands where a header should be")
                flag = byte(156); size = number(124, 136)
                if (size < 0) lost("a header has no size")
                blocks = int((size + 511) / 512)
                if (flag == "58" || flag == "67" && pending || flag == "78" && second)
                    lost("an extension header stands where readers read it differently")
                if (flag == "78" || flag == "67") {
                    if (size > 1048576) lost("a PAX header has more than a mebibyte")
                    for (text = ""; blocks > 0 && read_on(); blocks--) text = text $0
                    if (blocks > 0) lost("it breaks off inside a PAX header")
                    given = size_in(text, size)
                    if (flag == "78") { pax = given; pending = second = 1 }
                    else if (given != -1) lost("a global PAX header sets a size")
                    continue
                }
                if (flag == "4c" || flag == "4b") pending = 1
                else {
                    if (pax != -1) { size = pax; blocks = int((size + 511) / 512) }
                    pax = -1; pending = second = 0
                    for (at = 99; at > 0 && byte(at) == "00"; at--);
                    if (size > 0 && (flag ~ /^3[1-6]$/ || flag == "00" && byte(at) == "2f"))
                        lost("a link, directory or device has contents, which readers read differently")
                    if (flag == "53" && byte(482) != "00") do if (!read_on()) lost("it breaks off inside a sparse map"); while (byte(504) != "00")
                }
                # Reading on is as fast as another od for so many blocks; the last one must be there.
                if (blocks > 40) { seek(position + blocks - 1); blocks = 1 }
                for (; blocks > 0; blocks--) if (!read_on()) lost("it breaks off inside a member")
            }
            if ($0 != zero || pending) lost("it breaks off without the two zero blocks that end a tar")
            if (!read_on() || $0 != zero) lost("it has one zero block, where two end a tar")
            while ((command | getline) > 0) if ($0 ~ /[1-9a-f]/) lost("more bytes follow its end")
            print "ended"
        }
    ' || true
}

while read -r sha256 path size chunk_root location state; do
    [ -f "$path" ] || fail "$path: is in the manifest and not there"
    [ "$(stat -c %s "$path")" = "$size" ] || fail "$path: expected $size bytes, got $(stat -c %s "$path")"
    [ "$(sha256sum < "$path" | cut -c 1-64)" = "$sha256" ] || fail "$path: was changed: it has not the SHA-256 of the manifest"
    [ "$(chunks "$path" "$size")" = "$chunk_root" ] || fail "$path: has not the chunk tree of the manifest"
    [ "$location" != - ] || fail "$path: has no receipt of the store"
    if [ "$state" = complete ] && [[ $path == *.tar ]]; then
        ended=$(ends "$path")
        [ "$ended" = ended ] || fail "$path: is recorded as complete and is not: $ended"
    fi
done < "$work/artifacts"

# The token of a time-stamping authority, if the manifest names one.
stamp=$(jq -r '.predicate.timestamp.token.sha256 // ""' manifest.json)
if [ -n "$stamp" ]; then
    [ -f custody.checkpoint.tst ] || fail "custody.checkpoint.tst: is in the manifest and not there"
    [ "$(sha256sum < custody.checkpoint.tst | cut -c 1-64)" = "$stamp" ] ||
        fail "custody.checkpoint.tst: was changed: it has not the SHA-256 of the manifest"
fi

# No file and no empty directory besides, but for counter-signatures of exactly this manifest.
countersigned=
{ cat "$work/paths"; printf '%s\n' manifest.json manifest.sigstore.json custody.jsonl custody.checkpoint ${stamp:+custody.checkpoint.tst}; } | sort > "$work/expected"
find . -type f -print0 | tr '\n\0' '?\n' | sed 's|^\./||' | sort > "$work/there"
while IFS= read -r path; do
    [[ $path =~ ^signatures/([0-9a-f]{64})\.sigstore\.json$ ]] || fail "$path: is there and not in the manifest"
    id=${BASH_REMATCH[1]}
    bundle "$path"
    [ "$hint" = "$id" ] || fail "$path: is named after another key than it is signed with"
    cmp -s "$work/payload" manifest.json || fail "$path: vouches for another manifest"
    if [ -f "$work/keys/$id" ] || [ -f "$work/vouching/$id" ]; then countersigned="$countersigned; countersigned with $id"; else
        countersigned="$countersigned; NOT CHECKED: a signature with $id, whose key was not given"; fi
done < <(comm -13 "$work/expected" "$work/there")
empty=$(find . -mindepth 1 -type d -empty -print -quit)
[ -z "$empty" ] || fail "${empty#./}: is an empty directory, and no evidence"
for pem in "$work"/vouching/*; do
    [ ! -f "$pem" ] || [ -f "signatures/${pem##*/}.sigstore.json" ] ||
        fail "signatures/${pem##*/}.sigstore.json: is not there, and its key was to have vouched for this"
done

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
jq -ne 'reduce inputs.seq as $seq (0; if . == $seq then . + 1 else -1 end) >= 0' custody.jsonl > /dev/null 2>&1 ||
    fail "custody.jsonl: its entries are not numbered as they stand"
# Each as often as anybody likes, but none that the manifest has otherwise.
jq -ne --slurpfile manifest manifest.json '$manifest[0].predicate as $manifest |
    [inputs | select(.event == "stored" and (.collection // $manifest.collection) == $manifest.collection) | .artifact] |
    unique == ($manifest.artifacts | unique)' custody.jsonl > /dev/null ||
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
    ((.artifacts | map({ key: .path, value: .completeness.state }) | from_entries) as $state |
    all(.missing[].path; $state[.] == null) and (.outcome == "partial" or
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
outcome=$(jq -r .predicate.outcome manifest.json)
echo "intact; the manifest calls the collection $outcome, signed with $signer$countersigned$stamped"
[ "$outcome" = complete ] || exit 3
