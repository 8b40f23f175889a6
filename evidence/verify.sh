#!/bin/bash
# Checks a collection of Impound evidence without our program, for readers who don't want to trust it:
#
#   verify.sh [--countersigned-by PUBLIC-KEY.pem]… [--timestamp-ca ROOT.pem] DIRECTORY PUBLIC-KEY.pem|evidence-keys.json…
#
# Needs bash 4.4 or later, openssl, jq, and GNU coreutils 8.31 or later (sha256sum and its like), nothing else.
#
# Every collection holds this script, and its SHA-256 is in the signed manifest. Whoever could change the
# collection could change its copy of the script too: take the script from the project, or read it.
#
# Checks the signature over the manifest by one of the keys, that manifest.json is what was signed and has
# the one form that a manifest can have, size, SHA-256 and chunk tree of every file it names, that a tar
# which it calls complete goes to its end (unless it is encrypted: it says so), that there is no other file, that the custody log and its signed
# head are those that the manifest was made over, that the log records every file as the manifest does,
# counter-signatures, and that the outcome is not called better than it is. With the root certificate of the
# time-stamping authority also what that says of the log's head. What `impound verify` checks besides is in
# FORMATS.md, with every format. A counter-signature that was taken away leaves no trace: say whose you
# expect.
#
# Exit: 0 intact and complete, 1 not intact, 2 not checked, 3 intact, but something asked for is missing.
set -eEuo pipefail
# Every name in a directory is seen, and a command that fails in $(…) is one that fails. Unsetting comes first,
# as it turns dotglob off.
unset GLOBIGNORE CDPATH
shopt -s inherit_errexit globstar dotglob nullglob
# `split --filter` runs $SHELL, whatever that is.
export LC_ALL=C SHELL=$BASH

said= line= work=
fail() { said=yes; echo "NOT INTACT: ${*//[[:cntrl:]]/?}" >&2; exit 1; }
unchecked() { said=yes; echo "${*//[[:cntrl:]]/?}" >&2; exit 2; }
# Whatever ends this without a word about the evidence has not checked it, and is no verdict.
leave() {
    trap - ERR EXIT
    [ -z "$work" ] || rm -rf "$work"
    [ -n "$said" ] || { echo "NOT CHECKED: line $line of this script failed with $1: is there room in ${TMPDIR:-/tmp}?" >&2; exit 2; }
}
trap 'line=$LINENO' ERR
trap 'leave $?' EXIT

for tool in base64 basenc cat cut date head jq mkdir mktemp mv od openssl realpath rm sha256sum split stat tail tr wc; do
    command -v "$tool" > /dev/null || unchecked "this needs $tool: install it"
done
vouching=()
authority=
while [ $# -ge 2 ]; do
    case $1 in
        --countersigned-by) vouching+=("$2") ;;
        --timestamp-ca)
            authority=$(realpath "$2" 2> /dev/null) && [ -f "$authority" ] && [ -r "$authority" ] ||
                unchecked "$2: is no file that can be read"
            openssl x509 -in "$authority" -noout 2> /dev/null || unchecked "$2: is no certificate in PEM" ;;
        *) break ;;
    esac
    shift 2
done
[ $# -ge 2 ] || unchecked "usage: $0 [--countersigned-by PUBLIC-KEY.pem]… [--timestamp-ca ROOT.pem] DIRECTORY PUBLIC-KEY.pem|evidence-keys.json…"
work=$(mktemp -d)
work=$(realpath "$work")
mkdir "$work/keys" "$work/times" "$work/vouching"
# Reads bytes; prints their SHA-256.
sum() { sha256sum | cut -c 1-64; }
# same FILE: whether what is read is what the file has.
same() {
    local one other
    one=$(sum) && other=$(sum < "$1") && [ "$one" = "$other" ]
}
# key PEM NAME WHERE: notes a key, and sets $id.
key() {
    [ -f "$1" ] && [ -r "$1" ] || unchecked "$2: is no file that can be read"
    openssl pkey -pubin -in "$1" -out "$work/pem" 2> /dev/null || unchecked "$2: is no public key in PEM"
    [[ $(openssl pkey -pubin -in "$work/pem" -noout -text) == *prime256v1* ]] || unchecked "$2: is no key of the curve P-256"
    id=$(openssl pkey -pubin -in "$work/pem" -outform DER | sum)
    mv "$work/pem" "$work/$3/$id"
}
for given in "${@:2}"; do
    # evidence-keys.json: keys, and when each was in use.
    if jq -e 'has("keys")' "$given" > /dev/null 2>&1; then
        jq -ce '.keys[]' "$given" > "$work/ring" 2> /dev/null || unchecked "$given: lists no key"
        while IFS= read -r listed; do
            jq -r .public_key <<< "$listed" > "$work/listed" 2> /dev/null || unchecked "$given: lists something else than keys"
            key "$work/listed" "a key in $given" keys
            [ "$id" = "$(jq -r .key_id <<< "$listed")" ] || unchecked "$given: key $id is listed as another"
            jq -r '.valid_from // "", .valid_until // ""' <<< "$listed" > "$work/times/$id"
        done < "$work/ring"
    else
        key "$given" "$given" keys
    fi
done
for given in ${vouching[@]+"${vouching[@]}"}; do key "$given" "$given" vouching; done
cd -- "$1" 2> /dev/null && [ -r . ] || unchecked "$1: is no directory that can be read"

# What is there: plain files only, with names that evidence can have, and those of the format whole.
there=()
empty=
for path in **; do
    if [ -f "$path" ] && [ ! -L "$path" ]; then there+=("$path")
    elif [ -d "$path" ] && [ ! -L "$path" ]; then
        [ -r "$path" ] && [ -x "$path" ] || fail "$path: can't be read"
        inside=("$path"/*)
        [ ${#inside[@]} -gt 0 ] || empty=${empty:-$path}
    else fail "$path: links, pipes and devices are no evidence"; fi
done
for file in manifest.json manifest.sigstore.json custody.jsonl custody.checkpoint; do
    [ -f "$file" ] || fail "$file: is not there"
done

# sign SIGNATURE TEXT KEY: an ECDSA signature in DER. Of the two that fit alike only the one whose s is at
# most half the curve's order is good, so that nobody without the key makes another good file.
signed() {
    openssl dgst -sha256 -verify "$3" -signature "$1" "$2" > /dev/null 2>&1 || return 1
    local s text half=7FFFFFFF800000007FFFFFFFFFFFFFFFDE737D56D38BCF4279DCE5617E3192A8
    while IFS= read -r text; do
        [[ $text != *INTEGER*:* ]] || s=${text##*:}
    done < <(openssl asn1parse -inform DER -in "$1" 2> /dev/null)
    printf -v s %64s "$s"
    [[ ! ${s// /0} > $half ]]
}

# unbase64 TEXT FILE: only the one spelling of the bytes.
unbase64() { printf %s "$1" | base64 -d > "$2" 2> /dev/null && [ "$(base64 -w 0 < "$2")" = "$1" ]; }

# bundle FILE: a Sigstore bundle with a DSSE envelope. Sets $hint, leaves the payload in $work/payload.
# Fails if it has another form than we write, or if the key it names is there and did not sign it.
bundle() {
    jq . "$1" 2> /dev/null | same "$1" || fail "$1: was edited or re-formatted"
    jq -e '[.mediaType, .dsseEnvelope.payloadType] == ["application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.in-toto+json"]
        and (keys == ["dsseEnvelope", "mediaType", "verificationMaterial"])
        and (.verificationMaterial | keys == ["publicKey"]) and (.verificationMaterial.publicKey | keys == ["hint"])
        and (.dsseEnvelope | keys == ["payload", "payloadType", "signatures"])
        and (.dsseEnvelope.signatures | length == 1) and (.dsseEnvelope.signatures[0] | keys == ["sig"])' "$1" > /dev/null 2>&1 ||
        fail "$1: is no bundle with one signature over an in-toto Statement"
    hint=$(jq -r .verificationMaterial.publicKey.hint "$1")
    jq -j .dsseEnvelope.payload "$1" > "$work/base64"
    base64 -d < "$work/base64" > "$work/payload" 2> /dev/null &&
        base64 -w 0 < "$work/payload" | same "$work/base64" || fail "$1: its payload is not base64"
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
same manifest.json < "$work/payload" || fail "manifest.json: is not what was signed"

# One form only: JSON as jq prints it (DEL as it is or escaped: versions of jq differ), each object with the
# fields that it can have in their order, none of them null.
printed() {
    jq . manifest.json 2> /dev/null | same manifest.json && return
    local ours theirs
    ours=$(jq . manifest.json 2> /dev/null && printf x) && theirs=$(tr -d '\0' < manifest.json && printf x) &&
        [ "${ours//\\u007f/$'\x7f'}" = "${theirs//\\u007f/$'\x7f'}" ]
}
jq -e '[._type, .predicateType] == ["https://in-toto.io/Statement/v1", "https://impound.dev/evidence/v1"]' manifest.json > /dev/null 2>&1 ||
    fail "manifest.json: is no in-toto Statement v1 with an Impound manifest of version 1"
printed || fail "manifest.json: is not in the one form that a manifest has"
jq -e 'def has_only($names): keys_unsorted as $keys | ($names | split(" ")) as $all | $all - ($all - $keys) == $keys;
    def build: has_only("name version executable_sha256");
    def pod: has_only("namespace name uid");
    has_only("_type subject predicateType predicate") and
    all(.subject[]; has_only("name digest") and (.digest | has_only("sha256"))) and
    (.predicate | has_only("case collection outcome requested_by claimed requester_certificate_sha256 reason created controller cluster node pod quarantine agents containers artifacts missing alterations omissions storage encrypted_to custody timestamp") and
        (.controller | build) and (.node | has_only("name uid boot_id")) and (.pod | pod) and
        (.custody | has_only("size root")) and (.storage // {} | has_only("write_once reason")) and .claimed != false and .encrypted_to != [] and
        (.timestamp // {} | has_only("token none") and (.token // {} | has_only("sha256 authority")) and (.none // {} | has_only("reason"))) and
        all(.agents[]; has_only("identity certificate_sha256 version executable_sha256 runtime runtime_version clock_offset_ms")) and
        all(.containers[]; has_only("role pod name id attempt image image_id image_digest state created") and (.pod | pod)) and
        all(.missing[]; has_only("path reason")) and
        all(.alterations[]; has_only("kind source_id api_call effect artifacts started finished")) and
        all(.artifacts[]; .derived_from != [] and
            has_only("path size sha256 chunk_root stored media_type method api_call source_id derived_from consistency completeness omissions started finished clock_offset_ms received_started received_finished receipt") and
            (.stored // {} | has_only("path size sha256 encoding")) and
            (.completeness | has_only("state reasons")) and
            (.receipt // {} | has_only("location version lock verified") and (.lock // {} | has_only("mode until hold"))))) and
    all(..; . != null)' manifest.json > /dev/null 2>&1 || fail "manifest.json: has fields that no manifest has, or in another order"

# Paths hold no spaces, backslashes or control characters and stay below the directory, or nothing is opened. Nor has any
# other word that is read of an artifact a space in it: each is where it is looked for.
# What is encrypted lies in a file of its own name, size and SHA-256.
jq -e 'all(.predicate.artifacts[]; all(.path, .stored.path // "-", .sha256, .stored.sha256 // "-", .chunk_root // "-", .completeness.state;
        type == "string" and test("\\A[!-~]+\\z"))
    and all(.size, .stored.size // 0; type == "number"))
    and all(.predicate.encrypted_to // [] | .[]; type == "string" and test("\\Aage1[02-9ac-hj-np-z]{58}\\z"))' manifest.json > /dev/null ||
    fail "manifest.json: names a path that no evidence can have, or a digest, size, state or public key that is none"
jq -er '.predicate.artifacts[] | (.stored // .) as $file |
    [$file.sha256, $file.path, $file.size, .chunk_root // "-", (if .receipt.location then "+" else "-" end), .completeness.state,
        (if .stored == null then "plain" elif .stored.encoding == ["age"] then "age" else "other" end)] | join(" ")' manifest.json > "$work/artifacts"
declare -A known=()
while read -r sha256 path size chunk_root location state form; do
    case /$path/ in *[!!-~]* | *//* | */./* | */../* | *\\*) fail "manifest.json: names a path that no evidence can have" ;; esac
    known[/$path]=yes
done < "$work/artifacts"
jq -e '.subject == [.predicate.artifacts[] | { name: .path, digest: { sha256 } }]
    and (.predicate.artifacts | map(.path) | . == unique)' manifest.json > /dev/null ||
    fail "manifest.json: its subjects and its artifacts are not the same files, each once and in order"
jq -e '.predicate | all(.artifacts[]; . as $of | .stored == null or (.stored.encoding == ["age"] and .stored.path == $of.path + ".age"))
    and ([.artifacts[] | .path, (.stored.path // empty)] | length == (unique | length))' manifest.json > /dev/null ||
    fail "manifest.json: says that something is stored in a form that nothing can have"

# RFC 6962's Merkle Tree Hash. Leaves are hashed behind a byte 0, nodes behind a byte 1; pairs are joined
# level by level, and one that is left over moves up as it is.
bytes() { printf %s "$1" | tr a-f A-F | basenc --decode --base16; }
# What is hashed lies in files, a few thousand at a time, as one sha256sum hashes many. Prints the hashes of
# those in $work/parts in the order of their names, and removes them.
mkdir "$work/parts"
hashed() (
    cd "$work/parts"
    parts=(*)
    [ ${#parts[@]} -gt 0 ] || exit 0
    sha256sum "${parts[@]}" | cut -c 1-64
    rm "${parts[@]}"
)
# Counts $n up to a few thousand files, then hashes them.
next() { [ $((n += 1)) -lt 10004096 ] || { hashed; n=10000000; }; }
# Reads leaf hashes, one a line; prints the root.
tree() {
    cat > "$work/level"
    [ -s "$work/level" ] || { sha256sum < /dev/null | cut -c 1-64; return; }
    local count n left right pair at text
    while count=$(wc -l < "$work/level"); [ "$count" -gt 1 ]; do
        {
            n=10000000
            while read -r left && read -r right; do
                pair=$left$right text=
                for ((at = 0; at < 128; at += 2)); do text+=\\x${pair:at:2}; done
                printf "\\x01$text" > "$work/parts/$n"
                next
            done
            hashed
        } < "$work/level" > "$work/next"
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
    if [ "$2" -gt 0 ] && [ "$2" -le 1048576 ]; then { printf '\0'; cat "$1"; } | sum
    else split -b 1048576 --filter='{ printf "\0"; cat; } | sha256sum' "$1" | cut -c 1-64 | tree; fi
}

# ends FILE: walks a tar from header to header, as od prints its blocks in hexadecimal. Prints "ended" if it
# comes to two zero blocks and nothing but zeros behind them, else what is wrong.
ends() (
    set +eu -f
    trap - ERR
    tar=./$1 lines=() from=0 position=0 pax=-1 pending=0 second=0 global=0
    # od fills a last block that is not whole up with zeros.
    whole=$(($(stat -c %s "$tar") / 512))
    printf -v zero %1024s ''
    zero=${zero// /0}
    lost() { echo "$1"; exit; }
    # Reads on: sets $block to the next block, which must be a whole one. 128 of them are printed at a time: skipping
    # fewer would cost more than printing them.
    read_on() {
        local at=$((position - from)) IFS=$'\n'
        block=
        ((position < whole)) || return 1
        if ((at >= ${#lines[@]})); then
            lines=($(od -An -v -tx8 --endian=big -w512 -j $((position * 512)) -N 65536 "$tar" 2> /dev/null))
            from=$position at=0
        fi
        block=${lines[at]// /}
        ((position += 1, ${#block} == 1024))
    }
    # number HEXADECIMAL: octal digits between spaces and zeros, or base 256 behind a byte 0x80; else -1. Sets $value.
    number() {
        local at
        value=-1
        if [[ $1 == 80* ]]; then
            [[ ${1:2} =~ ^0*([0-9a-f]{0,13})$ ]] && value=$((0x0${BASH_REMATCH[1]}))
        elif [[ $1 =~ ^(20)*((3[0-7])*)(20|00)*$ ]]; then
            value=0
            for ((at = 1; at < ${#BASH_REMATCH[2]}; at += 2)); do value=$((8 * value + ${BASH_REMATCH[2]:at:1})); done
        fi
    }
    # Whether the header's checksum fits. Eight bytes are summed at once, in four pairs; some old writers summed signed ones.
    checked() {
        local mask=0x00ff00ff00ff00ff pairs=0 at high=0 text
        for text in ${lines[position - 1 - from]}; do ((pairs += (0x$text & mask) + (0x$text >> 8 & mask))); done
        # Its own field counts as spaces.
        text=0x${block:296:16}
        ((pairs -= (text & mask) + (text >> 8 & mask)))
        ((pairs = 8 * 32 + (pairs & 0xffff) + (pairs >> 16 & 0xffff) + (pairs >> 32 & 0xffff) + (pairs >> 48)))
        number "${block:296:16}"
        ((value == pairs)) && return
        for ((at = 0; at < 1024; at += 2)); do [[ ${block:at:1} == [89a-f] && ($at -lt 296 || $at -ge 312) ]] && ((high++)); done
        ((value >= 0 && value == pairs - 256 * high))
    }
    # size_in BYTES: reads records "<length> <key>=<value>\n" of so many bytes, and sets $given to the size in them, or -1.
    # Bash takes the longer for a piece of a text the longer the whole is: $part has no more than a few blocks.
    size_in() {
        local left=$1 end=$((position + ($1 + 511) / 512)) part= at=0 count digits rest record
        given=-1
        ((end <= whole)) || lost "it breaks off inside a PAX header"
        for ((; left > 0; left -= count)); do
            while ((${#part} - at < 96 && position < end)); do
                read_on || lost "it can't be read"
                part=${part:at}$block at=0
            done
            count=0 digits=0
            record=${part:at:96}
            while [[ ${record:2*digits} == 3[0-9]* ]]; do ((count = 10 * count + ${record:2*digits+1:1}, digits++)); done
            # What follows the space, with the newline.
            rest=$((count - digits - 1))
            [[ $digits -gt 0 && $digits -lt 20 && ${record:2*digits:2} == 20 && $count -gt 0 && $rest -gt 0 && $count -le $left ]] ||
                lost "a PAX header has something else than records"
            record=${record:2*digits+2:2*rest}
            # "size=", and a newline at the end.
            if [[ $record == 73697a653d* ]]; then
                [[ $given == -1 && $rest -gt 6 ]] || lost "a PAX header gives the size twice, or none"
                record=${record:10} record=${record%0a}
                [[ $rest -le 25 && $record =~ ^(30)*((3[0-9])*)$ && ${#BASH_REMATCH[2]} -le 32 ]] ||
                    lost "a PAX header gives a size that is no number"
                record=${BASH_REMATCH[2]} given=0
                for ((digits = 1; digits < ${#record}; digits += 2)); do given=$((10 * given + ${record:digits:1})); done
                digits=$((count - rest - 1))
            fi
            # The key's "=", 3d, may be blocks further on.
            ((at += 2 * (digits + 1)))
            until [[ ${part:at:2*(rest-1)} =~ ^(..)*3d ]]; do
                ((rest -= (${#part} - at) / 2, rest > 1)) || lost "a PAX header has something else than records"
                read_on || lost "it can't be read"
                part=$block at=0
            done
            # To the last byte, over blocks that nobody need read.
            ((at += 2 * (rest - 1)))
            if ((at >= ${#part})); then
                ((position += (at - ${#part}) / 1024, at = (at - ${#part}) % 1024))
                read_on || lost "it can't be read"
                part=$block
            fi
            [ "${part:at:2}" = 0a ] || lost "a PAX header has something else than records"
            ((at += 2))
        done
    }
    while read_on && [ "$block" != "$zero" ]; do
        checked && [[ ${block:514:16} =~ ^(7573746172003030|7573746172202000|0{16})$ ]] ||
            lost "something else stands where a header should be"
        flag=${block:312:2}
        number "${block:248:24}"
        size=$value
        ((size >= 0)) || lost "a header has no size"
        # A global header is 67, a member's own 78, Solaris's 58.
        [[ $flag == 58 || $flag == 67 && $pending == 1 || $flag == 78 && $second == 1 ]] &&
            lost "an extension header stands where readers read it differently"
        if [[ $flag == 67 || $flag == 78 ]]; then
            ((size <= 1048576)) || lost "a PAX header has more than a mebibyte"
            size_in "$size"
            if [ "$flag" = 78 ]; then pax=$given pending=1 second=1
            else
                ((given == -1)) || lost "a global PAX header sets a size"
                global=1
            fi
            continue
        fi
        # Long names of GNU are 4b and 4c.
        if [[ $flag == 4[bc] ]]; then pending=1
        else
            ((pax == -1)) || size=$pax
            if ((size > 0)); then
                [[ $flag == 3[1-6] ]] && lost "a link, directory or device has contents, which readers read differently"
                # An old file, 00, is a directory if its name ends with a slash, 2f: its own, up to the first zero, the one
                # that ustar's prefix makes of none, or any that an extension header gives it.
                [[ $flag == 00 ]] && { ((pending || global)) || [[ ${block:0:200} =~ ^(0[1-9a-f]|[1-9a-f].)*2f(00.*)?$ ||
                    ${block:0:2}${block:514:16} == 007573746172003030 && ${block:690:2} != 00 ]]; } &&
                    lost "an old file that may be a directory by its name has contents, which readers read differently"
            fi
            pax=-1 pending=0 second=0
            # The map of a sparse file, 53, may go on in blocks of its own.
            if [[ $flag == 53 && ${block:964:2} != 00 ]]; then
                while read_on || lost "it breaks off inside a sparse map"; [ "${block:1008:2}" != 00 ]; do :; done
            fi
        fi
        # The last block of what the header announces must be there.
        ((size == 0)) || { ((position += (size - 1) / 512)); read_on || lost "it breaks off inside a member"; }
    done
    [ "$block" = "$zero" ] && [ "$pending" = 0 ] || lost "it breaks off without the two zero blocks that end a tar"
    read_on && [ "$block" = "$zero" ] || lost "it has one zero block, where two end a tar"
    [ "$(tail -c +$((position * 512 + 1)) "$tar" | tr -d '\0' | head -c 1 | wc -c)" = 0 ] || lost "more bytes follow its end"
    echo ended
)

# encrypted FILE SIZE: whether it begins as an age file does: version, X25519 recipients, MAC, and has room for what follows.
encrypted() {
    local key='[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]' text=age-encryption.org/v1$'\n' line body recipients=0
    head -c 16384 "$1" > "$work/head"
    {
        IFS= read -r line && [ "$line" = age-encryption.org/v1 ] || return 1
        while IFS= read -r line || return 1; [[ $line =~ ^-\>\ X25519\ $key$ ]]; do
            IFS= read -r body && [[ $body =~ ^$key$ ]] || return 1
            text+=$line$'\n'$body$'\n' recipients=$((recipients + 1))
        done
        [ "$recipients" -gt 0 ] && [[ $line =~ ^---\ $key$ ]] || return 1
        text+=$line$'\n'
    } < "$work/head"
    # Byte for byte: what is read here has no zeros. A nonce and the tag of a chunk are the least that follows.
    head -c ${#text} "$1" > "$work/header"
    printf %s "$text" | same "$work/header" && [ "$2" -ge $((${#text} + 32)) ]
}

closed=0
while read -r sha256 path size chunk_root location state form; do
    [ -f "$path" ] || fail "$path: is in the manifest and not there"
    [ -r "$path" ] || fail "$path: can't be read"
    got=$(stat -c %s "./$path")
    [ "$got" = "$size" ] || fail "$path: expected $size bytes, got $got"
    got=$(sum < "$path")
    [ "$got" = "$sha256" ] || fail "$path: was changed: it has not the SHA-256 of the manifest"
    got=$(chunks "./$path" "$size")
    [ "$got" = "$chunk_root" ] || fail "$path: has not the chunk tree of the manifest"
    [ "$location" != - ] || fail "$path: has no receipt of the store"
    if [ "$form" = age ]; then
        closed=$((closed + 1))
        encrypted "./$path" "$size" || fail "$path: is recorded as encrypted and is no age file"
    fi
    if [ "$state" = complete ] && [[ $path == *.tar ]]; then
        got=$(ends "$path")
        [ "$got" = ended ] || fail "$path: is recorded as complete and is not: $got"
    fi
done < "$work/artifacts"

# The token of a time-stamping authority, if the manifest names one.
stamp=$(jq -r '.predicate.timestamp.token.sha256 // ""' manifest.json)
if [ -n "$stamp" ]; then
    [ -f custody.checkpoint.tst ] || fail "custody.checkpoint.tst: is in the manifest and not there"
    [ "$(sum < custody.checkpoint.tst)" = "$stamp" ] ||
        fail "custody.checkpoint.tst: was changed: it has not the SHA-256 of the manifest"
fi

# No file and no empty directory besides, but for counter-signatures of exactly this manifest.
countersigned=
for path in manifest.json manifest.sigstore.json custody.jsonl custody.checkpoint ${stamp:+custody.checkpoint.tst}; do known[/$path]=yes; done
for path in ${there[@]+"${there[@]}"}; do
    [ -z "${known[/$path]-}" ] || continue
    [[ $path =~ ^signatures/([0-9a-f]{64})\.sigstore\.json$ ]] || fail "$path: is there and not in the manifest"
    id=${BASH_REMATCH[1]}
    bundle "$path"
    [ "$hint" = "$id" ] || fail "$path: is named after another key than it is signed with"
    same manifest.json < "$work/payload" || fail "$path: vouches for another manifest"
    if [ -f "$work/keys/$id" ] || [ -f "$work/vouching/$id" ]; then countersigned="$countersigned; countersigned with $id"; else
        countersigned="$countersigned; NOT CHECKED: a signature with $id, whose key was not given"; fi
done
[ -z "$empty" ] || fail "$empty: is an empty directory, and no evidence"
for pem in "$work"/vouching/*; do
    [ -f "signatures/${pem##*/}.sigstore.json" ] ||
        fail "signatures/${pem##*/}.sigstore.json: is not there, and its key was to have vouched for this"
done

# The custody log's head is a signed note: three lines, an empty line, "— origin base64(key id, signature)".
{ read -r origin; read -r entries; read -r head; } < custody.checkpoint || fail "custody.checkpoint: is no signed note"
printf '%s\n%s\n%s\n' "$origin" "$entries" "$head" > "$work/text"
note=$(tail -n 1 custody.checkpoint | cut -d ' ' -f 3)
unbase64 "$note" "$work/note" || fail "custody.checkpoint: its signature is not base64"
{ cat "$work/text"; printf '\n— %s %s\n' "$origin" "$note"; } | same custody.checkpoint ||
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
tr -d '\0' < custody.jsonl | same custody.jsonl && [ -z "$(tail -c 1 custody.jsonl)" ] ||
    fail "custody.jsonl: is no text of whole lines"
[ "$(wc -l < custody.jsonl)" = "$entries" ] ||
    fail "custody.jsonl: has $(wc -l < custody.jsonl) entries, and $entries were signed"
got=$(root < custody.jsonl)
[ "$(bytes "$got" | base64)" = "$head" ] || fail "custody.jsonl: its entries are not those that were signed"
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
    dated=
    while IFS= read -r text; do
        [[ $text != 'Time stamp: '* ]] || dated=${text#*: }
    done < <(openssl ts -reply -token_in -in custody.checkpoint.tst -text 2> /dev/null)
    at=$(date -u -d "$dated" +%s 2> /dev/null) && [ -n "$dated" ] || fail "custody.checkpoint.tst: is no token of a time-stamping authority"
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
            (sub("\\.partial-[1-9][0-9]*$"; "") | [$state[.], $state[sub("(\\.age)+$"; "")]] | index("complete") != null))))' manifest.json > /dev/null ||
    fail "manifest.json: calls the collection complete, and something is missing or incomplete"

# Of a collection that is encrypted only what checks it is plain, and what was cut off when it was encrypted already.
wrong=$(jq -r '.predicate | (.encrypted_to // [] | length > 0) as $encrypted |
    first(.artifacts[] | (.stored.encoding // [] | index("age") != null) as $closed |
        if $closed and ($encrypted | not) then "\(.path): is encrypted, and the manifest names nobody who can read it"
        elif $encrypted and ($closed or .method == "program" or .stored == null and .completeness.state == "incomplete" and
            (.path | test("\\.age\\.partial-[1-9][0-9]*$")) | not) then "\(.path): is not encrypted, and yet the manifest says that the collection is"
        else empty end)' manifest.json)
[ -z "$wrong" ] || fail "$wrong"

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
unopened=
[ "$closed" = 0 ] || unopened="; NOT CHECKED: what is in $closed encrypted files, only that they are those that were signed; impound verify --identity does"
outcome=$(jq -r .predicate.outcome manifest.json)
echo "intact; the manifest calls the collection $outcome, signed with $signer$countersigned$stamped$unopened"
said=yes
[ "$outcome" = complete ] || exit 3
