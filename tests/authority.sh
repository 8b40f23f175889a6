#!/bin/bash
# A time-stamping authority (RFC 3161) for tests, of openssl only:
#
#   authority.sh make DIR rsa|ec [FROM UNTIL]   its root, certificate and key; FROM and UNTIL as 20260101000000Z
#   authority.sh reply DIR QUERY > ANSWER       answers a question
#
# DIR/root.pem is what to trust. The certificate is good for a day unless it is said otherwise.
set -euo pipefail

make() {
    local dir=$1 kind=$2 from=${3:-} until=${4:-} algorithm
    mkdir -p "$dir"
    cd "$dir"
    case $kind in
        rsa) algorithm=(-algorithm RSA -pkeyopt rsa_keygen_bits:2048) ;;
        ec) algorithm=(-algorithm EC -pkeyopt ec_paramgen_curve:P-256) ;;
        *) echo "expected rsa or ec, got $kind" >&2; exit 2 ;;
    esac
    cat > openssl.cnf << END
[ca]
default_ca = root
[root]
database = $dir/index.txt
new_certs_dir = $dir
serial = $dir/ca-serial
certificate = $dir/root.pem
private_key = $dir/root.key
default_md = sha256
policy = anything
x509_extensions = stamping
unique_subject = no
[anything]
commonName = supplied
[stamping]
basicConstraints = CA:false
extendedKeyUsage = ${PURPOSE:-critical,timeStamping}
[authority]
basicConstraints = critical,CA:true
[req]
distinguished_name = name
[name]
[tsa]
default_tsa = answer
[answer]
serial = $dir/tsa-serial
signer_cert = $dir/tsa.pem
signer_key = $dir/tsa.key
certs = $dir/root.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ess_cert_id_alg = ${ESS:-sha256}
END
    : > index.txt
    echo 01 > ca-serial
    echo 01 > tsa-serial
    openssl genpkey "${algorithm[@]}" -out root.key
    openssl genpkey "${algorithm[@]}" -out tsa.key
    openssl req -x509 -new -key root.key -subj "/CN=Time root $RANDOM" -days 36500 -config openssl.cnf \
        -extensions authority -out root.pem
    openssl req -new -key tsa.key -subj "/CN=Time stamping" -config openssl.cnf -out tsa.csr
    openssl ca -batch -notext -config openssl.cnf -in tsa.csr -out tsa.pem \
        -startdate "${from:-$(date -u -d '-1 hour' +%Y%m%d%H%M%SZ)}" -enddate "${until:-$(date -u -d '+1 day' +%Y%m%d%H%M%SZ)}"
}

case $1 in
    make) make "${@:2}" > /dev/null 2>&1 || { echo "the authority could not be made; openssl is needed" >&2; exit 1; } ;;
    reply) openssl ts -reply -config "$2/openssl.cnf" -queryfile "$3" -out /dev/stdout ;;
    *) echo "usage: $0 make DIR rsa|ec [FROM UNTIL] | reply DIR QUERY" >&2; exit 2 ;;
esac
