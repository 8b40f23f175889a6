#!/bin/bash
# Evidence is checked by programs that are not ours: a Sigstore verifier from npm (@sigstore/verify, with a
# public key that it is given), a JSON Schema validator from PyPI (jsonschema), openssl and jq (verify.sh),
# what is encrypted is decrypted by age, and what is made for analysis is read by those that it is for: mactime of The Sleuth Kit, sha256sum and
# md5sum over what GNU tar extracts, the rules of Timesketch's importer. The report on it is looked at by axe
# (axe-core from npm) in chromium, for whoever can't see or hold a mouse.
#
# Usage: tests/independent.sh [COLLECTION PUBLIC-KEY.pem]     default: evidence/tests/real
#   IMPOUND_CACHE=DIR   where those programs are kept between runs (default ~/.cache/impound)
#   IMPOUND_CHANGES=N   how many random changes are made to the collection (default 120)
#   IMPOUND_BIN=DIR     where impound is (default: target/debug)
set -Eeuo pipefail
{
REPOSITORY=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
COLLECTION=$(realpath "${1:-$REPOSITORY/evidence/tests/real/collection}")
KEY=$(realpath "${2:-$REPOSITORY/evidence/tests/real/evidence.pub}")
TOOLS=${IMPOUND_CACHE:-$HOME/.cache/impound}/independent
mkdir -p "$TOOLS"

say() { printf '    %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
for tool in node npm python3 openssl jq mactime chromium age; do
    command -v "$tool" > /dev/null || fail "this needs $tool: apt-get install nodejs npm python3-venv openssl jq sleuthkit chromium age"
done
IMPOUND=${IMPOUND_BIN:-${CARGO_TARGET_DIR:-$REPOSITORY/target}/debug}/impound
[ -x "$IMPOUND" ] || fail "this needs $IMPOUND: cargo build -p impound-cli, or say where it is with IMPOUND_BIN"

# The last versions that run on Debian 12's Node 18.
[ -d "$TOOLS/node_modules/@sigstore/verify" ] ||
    npm install --prefix "$TOOLS" --no-audit --no-fund --silent @sigstore/verify@2.1.1 @sigstore/bundle@3.1.0
[ -d "$TOOLS/node_modules/axe-core" ] || npm install --prefix "$TOOLS" --no-audit --no-fund --silent axe-core@4.14.1
if [ ! -x "$TOOLS/venv/bin/python" ]; then
    python3 -m venv "$TOOLS/venv"
    "$TOOLS/venv/bin/pip" install --quiet jsonschema==4.23.0
fi

AGE=$REPOSITORY/evidence/tests/age
age -d -i "$AGE/key.txt" "$AGE/ours.age" | cmp - <(seq 1 25000) || fail "age: reads something else out of what was encrypted here"
say "age: what was encrypted here is decrypted"

cat > "$TOOLS/verify.js" <<'JS'
const fs = require('fs'), crypto = require('crypto'), path = require('path');
const { bundleFromJSON } = require('@sigstore/bundle');
const { Verifier, toSignedEntity, toTrustMaterial } = require('@sigstore/verify');
const [dir, pem, file] = process.argv.slice(2);
const key = crypto.createPublicKey(fs.readFileSync(pem));
const id = crypto.createHash('sha256').update(key.export({ type: 'spki', format: 'der' })).digest('hex');
const trust = toTrustMaterial(
  { mediaType: '', certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] },
  (hint) => { if (hint !== id) throw new Error(`no key ${hint}`); return { publicKey: key, validFor: () => true }; });
const bundle = bundleFromJSON(JSON.parse(fs.readFileSync(file)));
// No transparency log and no timestamp authority is asked: the evidence is checked offline.
new Verifier(trust, { tlogThreshold: 0, ctlogThreshold: 0, tsaThreshold: 0 }).verify(toSignedEntity(bundle));
// The verifier vouches for the payload; the files are ours to compare.
const payload = bundle.content.dsseEnvelope.payload;
if (!payload.equals(fs.readFileSync(path.join(dir, 'manifest.json')))) throw new Error('manifest.json is not what was signed');
for (const { name, digest } of JSON.parse(payload).subject) {
  const got = crypto.createHash('sha256').update(fs.readFileSync(path.join(dir, name))).digest('hex');
  if (got !== digest.sha256) throw new Error(`${name} was changed`);
}
JS
sigstore() { NODE_PATH=$TOOLS/node_modules node "$TOOLS/verify.js" "$COLLECTION" "$KEY" "$1" 2> "$TOOLS/said"; }
sigstore "$COLLECTION/manifest.sigstore.json" || fail "@sigstore/verify: $(grep -m 1 -oE '^[A-Za-z]*Error: .*' "$TOOLS/said")"
say "@sigstore/verify: the bundle is signed with the key, and every file is what the Statement says"

# And it notices: a signature of which one bit is another.
jq '.dsseEnvelope.signatures[0].sig |= (.[0:40] + (if .[40:41] == "A" then "B" else "A" end) + .[41:])' \
    "$COLLECTION/manifest.sigstore.json" > "$TOOLS/forged.json"
if sigstore "$TOOLS/forged.json"; then fail "@sigstore/verify takes a signature that was changed"; fi
say "@sigstore/verify: a changed signature is refused: $(grep -m 1 -oE '^[A-Za-z]*Error: .*' "$TOOLS/said")"

"$TOOLS/venv/bin/python" - "$REPOSITORY/evidence/schema" "$COLLECTION" <<'PY' || fail "the published schemas"
import copy, json, pathlib, sys
from jsonschema import Draft202012Validator
schemas, collection = map(pathlib.Path, sys.argv[1:])
def validator(name):
    schema = json.loads((schemas / name).read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)
manifest = json.loads((collection / 'manifest.json').read_text())
of_manifest, of_entry = validator('manifest.schema.json'), validator('custody-entry.schema.json')
of_manifest.validate(manifest)
entries = [json.loads(line) for line in (collection / 'custody.jsonl').read_text().splitlines()]
for entry in entries:
    of_entry.validate(entry)
# A schema that took anything would prove nothing.
def refused(what, change):
    wrong = copy.deepcopy(manifest)
    change(wrong['predicate'])
    assert not of_manifest.is_valid(wrong), f'the schema takes {what}'
artifact = lambda predicate: predicate['artifacts'][0]
for what, change in {
    'a manifest without a node': lambda it: it.pop('node'),
    'an unknown field': lambda it: it.update(note='x'),
    'an unknown field of an artifact': lambda it: artifact(it).update(note='x'),
    'a hash in capitals': lambda it: artifact(it).update(sha256=artifact(it)['sha256'].upper().replace('0', 'F')),
    'a receipt without a location': lambda it: artifact(it)['receipt'].pop('location'),
    'incomplete without reasons': lambda it: artifact(it).update(completeness={'state': 'incomplete'}),
    'incomplete for no reason': lambda it: artifact(it).update(completeness={'state': 'incomplete', 'reasons': []}),
    'a path with a space': lambda it: artifact(it).update(path='a b'),
    'a time without a zone': lambda it: it.update(created='2026-01-31T03:04:05.678901'),
}.items():
    refused(what, change)
assert not of_entry.is_valid({**entries[0], 'event': 'seen'})
print(f'    jsonschema: the manifest and {len(entries)} custody entries are what the published schemas say')
PY

"$REPOSITORY/evidence/verify.sh" "$COLLECTION" "$KEY" > "$TOOLS/said" || fail "verify.sh"
say "verify.sh: $(cat "$TOOLS/said")"

# What README.md and FORMATS.md tell people to type, as it is there, where they say.
PLACE=$(mktemp -d)
trap 'rm -rf "$PLACE"' EXIT
mkdir "$PLACE/INC-7"
cp -r "$COLLECTION" "$PLACE/INC-7/web-5d4f-x7"
cp "$KEY" "$PLACE/evidence.pub"
typed=0
by_hand() {
    sed -n "/^$2/,/^\`\`\`/p" "$REPOSITORY/$1" | sed '/^```/d' > "$TOOLS/typed"
    [ -s "$TOOLS/typed" ] || fail "$1 has no block that begins with $2"
    (cd "$PLACE" && PATH=$(dirname "$IMPOUND"):$PATH bash -euo pipefail "$TOOLS/typed") > "$TOOLS/said" 2>&1 || fail "$1, \`$2…\`: $(tail -n 1 "$TOOLS/said")"
    typed=$((typed + $(wc -l < "$TOOLS/typed")))
}
by_hand README.md 'impound verify INC-7'
by_hand README.md 'cd INC-7'
by_hand evidence/FORMATS.md 'bash INC-7'
by_hand evidence/FORMATS.md 'of=INC-7'
"$REPOSITORY/evidence/verify.sh" "$PLACE/INC-7/web-5d4f-x7" "$PLACE/evidence.pub" > "$TOOLS/said" || fail "checking by hand changed the collection: $(cat "$TOOLS/said")"
say "README.md and FORMATS.md: $typed lines do as they are there, and leave the collection as it was"

# Single changes at random to this collection: the program that people run finds each and names the file, and the
# script does of some. Evidence's own tests do so ten thousand times with the library that it runs.
CHANGES=${IMPOUND_CHANGES:-120} SCRIPTED=4
RANDOM=4711
GOOD=$PLACE/INC-7/web-5d4f-x7 BAD=$PLACE/changed
mapfile -t FILES < <(cd "$GOOD" && find . -type f -size +0 ! -path './signatures/*' -printf '%P\n' | sort)
mapfile -t ARTIFACTS < <(jq -r '.predicate.artifacts[] | select(.size > 0) | .path' "$GOOD/manifest.json")
openssl ecparam -name prime256v1 -genkey -noout -out "$PLACE/other.key"
# below N: a number.
below() { echo $(((RANDOM << 30 | RANDOM << 15 | RANDOM) % $1)); }
one_of() { shift $((1 + $(below $(($# - 1))))); echo "$1"; }
# own FILE: a copy that is not a link to the good one.
own() { cp "$BAD/$1" "$PLACE/own" && mv -f "$PLACE/own" "$BAD/$1"; }
# change KIND: changes $BAD, and prints the files one of which is to be named.
change() {
    local file other at byte size lines
    file=$(one_of - "${FILES[@]}")
    case $1 in
        flip)
            own "$file"
            at=$(below "$(stat -c %s "$BAD/$file")")
            byte=$(od -An -tu1 -j "$at" -N 1 "$BAD/$file")
            printf "\\x$(printf %02x $((byte ^ 1 << $(below 8))))" | dd of="$BAD/$file" bs=1 seek="$at" conv=notrunc status=none ;;
        drop) rm "$BAD/$file" ;;
        add) file=$(one_of - planted artifacts/x.json before/a signatures/x) && mkdir -p "$(dirname "$BAD/$file")" && echo x > "$BAD/$file" ;;
        rename) mv "$BAD/$file" "$BAD/$file.7" && echo "$file.7" ;;
        swap)
            file=$(one_of - "${ARTIFACTS[@]}")
            for other in "${ARTIFACTS[@]}"; do cmp -s "$GOOD/$file" "$GOOD/$other" || [ "$(below 8)" != 0 ] || break; done
            ! cmp -s "$GOOD/$file" "$GOOD/$other" || other=$(printf '%s\n' "${ARTIFACTS[@]}" | grep -m 1 -F /diff.txt)
            mv "$BAD/$file" "$PLACE/own" && mv "$BAD/$other" "$BAD/$file" && mv "$PLACE/own" "$BAD/$other"
            echo "$other" ;;
        cut) own "$file" && size=$(stat -c %s "$BAD/$file") && truncate -s "$(below "$size")" "$BAD/$file" ;;
        lengthen) own "$file" && echo >> "$BAD/$file" ;;
        log)
            file=custody.jsonl
            own $file
            lines=$(wc -l < "$GOOD/$file")
            at=$((1 + $(below $((lines - 1)))))
            case $(below 3) in
                0) sed -i "${at}d" "$BAD/$file" ;;
                1) head -n "$at" "$GOOD/$file" > "$BAD/$file" ;;
                *) sed -i "${at}{h;d};$((at + 1))G" "$BAD/$file" ;;
            esac ;;
        time) file=$(one_of - manifest.json custody.jsonl) && own "$file" && sed -i "0,/T[0-9][0-9]:/s//T99:/" "$BAD/$file" ;;
        sign)
            file=manifest.sigstore.json
            own $file
            { printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(wc -c < "$GOOD/manifest.json")"; cat "$GOOD/manifest.json"; } > "$PLACE/signed"
            jq --arg sig "$(openssl dgst -sha256 -sign "$PLACE/other.key" "$PLACE/signed" | base64 -w 0)" \
                '.dsseEnvelope.signatures[0].sig = $sig' "$GOOD/$file" > "$BAD/$file" ;;
    esac
    echo "$file"
}
for n in $(seq "$CHANGES"); do
    rm -rf "$BAD" && cp -al "$GOOD" "$BAD"
    kind=$(one_of - flip flip flip drop add rename swap cut lengthen log time sign)
    change "$kind" > "$PLACE/names"
    said=$("$IMPOUND" verify "$BAD" --key "$KEY" 2>&1) && code=0 || code=$?
    [ "$code" = 1 ] && grep -qFf "$PLACE/names" <<< "$said" || fail "$kind of $(paste -sd ' ' "$PLACE/names"): impound verify ends with $code and says $said"
    [ "$n" -le "$SCRIPTED" ] || continue
    said=$("$REPOSITORY/evidence/verify.sh" "$BAD" "$KEY" 2>&1) && code=0 || code=$?
    [ "$code" = 1 ] && grep -qFf "$PLACE/names" <<< "$said" || fail "$kind of $(paste -sd ' ' "$PLACE/names"): verify.sh ends with $code and says $said"
done
rm -rf "$BAD"
say "impound verify: finds $CHANGES random changes and names the file each time, verify.sh $SCRIPTED of them"

# Every body file, by mactime: a line at least for each of its lines, and the file that was dropped at its time.
files=0
while IFS= read -r -d '' body; do
    mactime -d -y -z UTC -b "$body" > "$TOOLS/timeline" || fail "mactime: $body"
    [ "$(grep -c '"/' "$TOOLS/timeline")" -ge "$(wc -l < "$body")" ] || fail "mactime reads less than $body has"
    added=$(jq -r 'select(.kind == "A" and .file.type == "file") | "\(.file.mtime[0:19])Z \(.path)"' "${body%.bodyfile}.changes.jsonl" | head -n 1)
    [ -z "$added" ] || grep -qE "^${added%% *},.*\"${added#* }\"" "$TOOLS/timeline" || fail "mactime has no $added of $body"
    files=$((files + 1))
done < <(find "$COLLECTION/artifacts" -name '*.bodyfile' -print0)
say "mactime: reads $files body files"

# The hash lists, in the directory that their tar is extracted to. Devices and owners need root and no hashes.
lists=0
while IFS= read -r -d '' list; do
    case $list in *.sha256) sum=sha256sum ;; *) sum=md5sum ;; esac
    rm -rf "$TOOLS/extracted" && mkdir "$TOOLS/extracted"
    tar --warning=no-unknown-keyword --no-same-owner -C "$TOOLS/extracted" -xf "${list%.hashes.*}" 2> "$TOOLS/said" ||
        grep -q mknod "$TOOLS/said" || fail "tar -x ${list%.hashes.*}: $(head -n 1 "$TOOLS/said")"
    (cd "$TOOLS/extracted" && "$sum" --check --strict --quiet "$list") || fail "$sum -c $list"
    lists=$((lists + 1))
done < <(find "$COLLECTION/artifacts" -name '*.hashes.*' -print0)
rm -rf "$TOOLS/extracted"
say "sha256sum and md5sum: $lists lists are what tar extracts"

# A collection may have none. Timesketch's importer: message, datetime and timestamp_desc in each line, timestamp in microseconds of the same time.
[ ! -f "$COLLECTION/timeline.jsonl" ] || "$TOOLS/venv/bin/python" - "$COLLECTION/timeline.jsonl" <<'PY' || fail "timeline.jsonl is not what Timesketch imports"
import datetime, json, sys
count = 0
for line in open(sys.argv[1], encoding='utf-8'):
    event = json.loads(line)
    assert all(isinstance(event[field], str) and event[field] for field in ('message', 'datetime', 'timestamp_desc')), line
    at = datetime.datetime.fromisoformat(event['datetime'].replace('Z', '+00:00'))
    since = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    assert event['timestamp'] == since // datetime.timedelta(microseconds=1), line
    assert not any(isinstance(value, (dict, list)) for value in event.values()), line
    count += 1
assert count > 0
print(f'    timeline.jsonl: {count} events as Timesketch\'s importer takes them')
PY
# The report, with axe in a copy of it whose policy would not let any script run. In light and in dark.
rm -f "$TOOLS/report.html"
"$IMPOUND" report "$COLLECTION" --key "$KEY" --to "$TOOLS/report.html" > "$TOOLS/said" 2>&1 || [ $? = 3 ] || fail "impound report: $(tail -n 1 "$TOOLS/said")"
cat > "$TOOLS/axe.js" <<'JS'
const fs = require('fs');
const [page, axe, copy] = process.argv.slice(2);
const html = fs.readFileSync(page, 'utf8');
const open = html.replace(/<meta http-equiv="Content-Security-Policy"[^>]*>/, '');
if (open === html) throw new Error('the report has no policy');
const run = `axe.run(document, { resultTypes: ['violations'] }).then((result) => {
  const found = document.createElement('pre');
  found.textContent = 'AXE ' + result.passes.length + ' ' + result.violations.map(
    (rule) => rule.id + ' (' + rule.nodes.length + ')').join(', ') + ' AXE';
  document.body.appendChild(found);
});`;
const end = '</body>';
const script = (text) => `<script>${text}</script>`;
fs.writeFileSync(copy, open.replace(end, () => script(fs.readFileSync(axe, 'utf8')) + script(run) + end));
JS
# axe PAGE SCHEME: "<rules that hold> <rules that are broken>". Chromium's own setting: 0 is dark, 1 is light.
axe() {
    node "$TOOLS/axe.js" "$1" "$TOOLS/node_modules/axe-core/axe.min.js" "$TOOLS/axe.html" &&
        chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update \
            --disable-sync --user-data-dir="$TOOLS/profile" --host-resolver-rules='MAP * ~NOTFOUND' \
            --blink-settings=preferredColorScheme="$2" --virtual-time-budget=60000 --dump-dom "file://$TOOLS/axe.html" \
            2> /dev/null > "$TOOLS/dom" &&
        grep -oE '>AXE [0-9]+ .* ?AXE<' "$TOOLS/dom" | sed -E 's/^>AXE //; s/ ?AXE<$//'
}
for scheme in 1 0; do
    said=$(axe "$TOOLS/report.html" $scheme) || fail "axe in chromium"
    read -r passed found <<< "$said"
    [ "$passed" -gt 20 ] || fail "axe did not look at the report: $said"
    [ -z "$found" ] || fail "axe finds what keeps people from reading the report: $found"
done
# And it notices: a picture that says nothing to those who can't see it.
sed 's|</main>|<img src="data:,"></main>|' "$TOOLS/report.html" > "$TOOLS/mute.html"
said=$(axe "$TOOLS/mute.html" 1) || fail "axe in chromium"
[[ $said == *image-alt* ]] || fail "axe takes a picture without words: $said"
say "axe: $passed rules hold for the report, in light and in dark, none is broken; a picture without words is refused"
exit 0
}
