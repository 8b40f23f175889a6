#!/bin/bash
# Evidence is checked by programs that are not ours: a Sigstore verifier from npm (@sigstore/verify, with a
# public key that it is given), a JSON Schema validator from PyPI (jsonschema), openssl and jq (verify.sh).
#
# Usage: tests/independent.sh [COLLECTION PUBLIC-KEY.pem]     default: evidence/tests/broken/good
#   IMPOUND_CACHE=DIR   where the two are kept between runs (default ~/.cache/impound)
set -Eeuo pipefail
{
REPOSITORY=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
COLLECTION=$(realpath "${1:-$REPOSITORY/evidence/tests/broken/good}")
KEY=$(realpath "${2:-$REPOSITORY/evidence/tests/broken/evidence.pub}")
TOOLS=${IMPOUND_CACHE:-$HOME/.cache/impound}/independent
mkdir -p "$TOOLS"

say() { printf '    %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
for tool in node npm python3 openssl jq; do
    command -v "$tool" > /dev/null || fail "this needs $tool: apt-get install nodejs npm python3-venv openssl jq"
done

# The last versions that run on Debian 12's Node 18.
[ -d "$TOOLS/node_modules/@sigstore/verify" ] ||
    npm install --prefix "$TOOLS" --no-audit --no-fund --silent @sigstore/verify@2.1.1 @sigstore/bundle@3.1.0
if [ ! -x "$TOOLS/venv/bin/python" ]; then
    python3 -m venv "$TOOLS/venv"
    "$TOOLS/venv/bin/pip" install --quiet jsonschema==4.23.0
fi

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
import json, pathlib, sys
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
del manifest['predicate']['node']
assert not of_manifest.is_valid(manifest) and not of_entry.is_valid({**entries[0], 'event': 'seen'})
print(f'    jsonschema: the manifest and {len(entries)} custody entries are what the published schemas say')
PY

"$REPOSITORY/evidence/verify.sh" "$COLLECTION" "$KEY" > "$TOOLS/said" || fail "verify.sh"
say "verify.sh: $(cat "$TOOLS/said")"
exit 0
}
