# A CycloneDX 1.5 bill of materials of one program, out of `cargo metadata --filter-platform TARGET`.
#   jq --arg package NAME --argjson checksums '{"name version": "sha256", …}' --rawfile carried LIST -f deploy/sbom.jq
# LIST is what the program itself says that it is made of, one "name version" a line. An error if that is less than what
# it is linked with.
# The same input gives the same bytes: no time, no random number.

# What is linked: dependencies, but not those of tests, build scripts or macros' builds.
def closure($nodes; $macros):
  until(.todo == [];
    . as $state
    | [.todo[] | $nodes[.].deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg] | unique
    | map(select(. as $id | ($macros[$id] or ($state.seen | index([$id]))) | not)) as $new
    | {seen: ($state.seen + $new), todo: $new})
  | .seen;

def purl: "pkg:cargo/\(.name)@\(.version)";
def words: "\(.name) \(.version)";

def licences:
  if .license == null then [] else [{expression: (.license | gsub("(?<=[^ ])/(?=[^ ])"; " OR "))}] end;

. as $metadata
| ($carried | split("\n") | map(select(. != ""))) as $carried
| ($metadata.packages | map({key: .id, value: .}) | from_entries) as $packages
| ($metadata.packages | map({key: .id, value: any(.targets[].kind[]; . == "proc-macro")}) | from_entries) as $macros
| ($metadata.resolve.nodes | map({key: .id, value: .}) | from_entries) as $nodes
| ($metadata.packages[] | select(.name == $package and .source == null)) as $root
| ({seen: [$root.id], todo: [$root.id]} | closure($nodes; $macros) - [$root.id]) as $linked
| ([$linked[] | $packages[.] | words] - $carried) as $missing
| if $missing != [] then error("\($package) does not say that it is made of \($missing | join(", "))") else . end
| [$metadata.packages[] | select(words | IN($carried[])) | .id] as $made
| ($made + [$root.id]) as $used
| {
    bomFormat: "CycloneDX",
    specVersion: "1.5",
    version: 1,
    metadata: {
      component: ($root | {type: "application", "bom-ref": purl, name, version, purl: purl, licenses: licences})
    },
    components: [
      $made[] | $packages[.]
      | $checksums[words] as $sha256
      | {type: "library", "bom-ref": purl, name, version, purl: purl, licenses: licences}
        + (if $sha256 then {hashes: [{alg: "SHA-256", content: $sha256}]} else {} end)
    ] | sort_by(.purl),
    dependencies: [
      $used[] | . as $id
      | {
          ref: ($packages[$id] | purl),
          dependsOn: [$nodes[$id].deps[] | select(any(.dep_kinds[]; .kind == null)) | .pkg
            | select(. as $one | $used | index([$one])) | $packages[.] | purl] | unique
        }
    ] | sort_by(.ref)
  }
