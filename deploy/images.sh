#!/bin/bash
# Builds the container images of the demo and the tests from Debian's own packages:
#   impound-demo/pause:1     sandbox of a pod: busybox, waiting
#   impound-demo/nginx:1     nginx as Debian ships it
#   impound-demo/tomcat:1    Tomcat and a Java runtime as Debian ships them
# No registry is needed. Packages and finished file systems are kept in a cache directory
# ($IMPOUND_CACHE, by default ~/.cache/impound), and an image that exists is not built again.
#
# Usage: deploy/images.sh [pause] [nginx] [tomcat]      (default: all)
set -Eeuo pipefail
# Bash reads a script while it runs it; the braces make it read the whole first, so that a change of the file
# meanwhile (an update of the working tree) is not run from its middle.
{
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/machine.sh"

CACHE=${IMPOUND_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/impound}
ARCH=$(dpkg --print-architecture)
. /etc/os-release

# Downloads the named packages with everything they depend on into $CACHE/debs, and prints the files.
# apt resolves them against an empty package database: what this machine has installed doesn't matter.
download() {
    local debs=$CACHE/debs log
    log=$(mktemp)
    mkdir -p "$debs/partial"
    local apt=(apt-get -o Dir::State::status=/dev/null -o "Dir::Cache::archives=$debs" -o APT::Sandbox::User=root
        -o APT::Install-Recommends=false -o Debug::NoLocking=1 -q -y)
    if ! "${apt[@]}" --download-only install "$@" >"$log" 2>&1; then
        apt_update >&2
        if ! "${apt[@]}" --download-only install "$@" >"$log" 2>&1; then
            tail -n 15 "$log" | sed 's/^/        /' >&2
            fail "the packages $* could not be downloaded (above is the end of what apt-get said)"
        fi
    fi
    rm -f "$log"
    "${apt[@]}" -s install "$@" | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1 \2/p' | while read -r package version; do
        ls "$debs/${package}_${version//:/%3a}_"*.deb
    done
}

# Unpacks the packages below $1, which gets Debian's merged /usr first.
unpack() {
    local root=$1 directory deb name
    shift
    for directory in bin sbin lib lib64; do
        mkdir -p "$root/usr/$directory"
        ln -s "usr/$directory" "$root/$directory"
    done
    mkdir -p "$root"/{etc,proc,sys,dev,root,run,tmp,var/log,var/tmp}
    chmod 1777 "$root/tmp" "$root/var/tmp"
    ln -s ../run "$root/var/run"
    ln -s ../run/lock "$root/var/lock"
    for deb in "$@"; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$root"
        # As an installation leaves it behind: a log that belongs to the image, which an intruder may delete.
        name=$(basename "$deb" .deb)
        printf '%(%F %T)T status installed %s\n' -1 "${name//%3a/:}" >>"$root/var/log/dpkg.log"
    done
    # Manual pages and translations are of no use here.
    rm -rf "$root"/usr/share/{man,locale,lintian,bug}
    ldconfig -r "$root" 2>/dev/null || true
    printf 'root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\ntomcat:x:999:999:Tomcat:/var/lib/tomcat:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n' >"$root/etc/passwd"
    printf 'root:x:0:\nadm:x:4:\nwww-data:x:33:\ntomcat:x:999:\nnogroup:x:65534:\n' >"$root/etc/group"
    printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
}

# A shell and the usual commands, for the names that are free.
install_busybox() {
    local root=$1 applet
    for applet in $("$root/bin/busybox" --list); do
        [ -e "$root/bin/$applet" ] || [ -L "$root/bin/$applet" ] || [ -e "$root/sbin/$applet" ] || ln -s busybox "$root/bin/$applet"
    done
}

root_pause() {
    unpack "$1" $(download busybox-static | grep busybox)
    install_busybox "$1"
}

root_nginx() {
    unpack "$1" $(download nginx busybox-static)
    install_busybox "$1"
    mkdir -p "$1/var/www/html" "$1/var/log/nginx" "$1/var/lib/nginx"
    [ -e "$1/var/www/html/index.html" ] || printf '<!doctype html><title>nginx</title><h1>It works</h1>\n' >"$1/var/www/html/index.html"
    ln -sf ../sites-available/default "$1/etc/nginx/sites-enabled/default"
}

root_tomcat() {
    local name
    name=$(apt-cache search --names-only '^tomcat[0-9]+-common$' | sed 's/-common .*//' | sort -V | tail -n 1)
    if [ -z "$name" ]; then
        apt_update >&2
        name=$(apt-cache search --names-only '^tomcat[0-9]+-common$' | sed 's/-common .*//' | sort -V | tail -n 1)
    fi
    [ -n "$name" ] || fail "Debian ${VERSION_ID:-} has no Tomcat package"
    # The package with the configuration templates would bring systemd along, so it comes without what it depends on.
    local server
    server=$(download "$name" | grep "/${name}_")
    unpack "$1" $(download "$name-common" default-jre-headless busybox-static) "$server"
    install_busybox "$1"
    local home=/usr/share/$name base=/var/lib/tomcat
    ln -s "$home" "$1/opt-tomcat" && mkdir -p "$1/opt" && mv "$1/opt-tomcat" "$1/opt/tomcat"
    mkdir -p "$1$base"/{conf,logs,temp,work,webapps/ROOT}
    cp -r "$1$home/etc/." "$1$base/conf/"
    # Looking through Tomcat's own archives for tag libraries is most of its start-up time, and there are none.
    sed -i 's/^tomcat.util.scan.StandardJarScanFilter.jarsToSkip=.*/tomcat.util.scan.StandardJarScanFilter.jarsToSkip=*.jar,\\/' "$1$base/conf/catalina.properties"
    printf '<!doctype html><title>tomcat</title><h1>It works</h1>\n' >"$1$base/webapps/ROOT/index.html"
}

# What `docker import` records about the image, one instruction a line.
changes_pause() {
    # The shell is process 1: it has to take the signal itself, or stopping a pod would last its whole grace period.
    printf '%s\n' 'CMD ["/bin/sh", "-c", "trap \"exit 0\" TERM INT; while :; do sleep 3600 & wait $!; done"]'
}
changes_nginx() {
    printf '%s\n' 'ENV PATH=/usr/sbin:/usr/bin' 'EXPOSE 80' \
        'CMD ["nginx", "-g", "daemon off;"]'
}
changes_tomcat() {
    local java
    java=$(cd "$1" && ls -d usr/lib/jvm/java-*-openjdk-* | head -n 1)
    printf '%s\n' "ENV PATH=/$java/bin:/usr/sbin:/usr/bin" "ENV JAVA_HOME=/$java" \
        'ENV CATALINA_HOME=/opt/tomcat' 'ENV CATALINA_BASE=/var/lib/tomcat' \
        'ENV CATALINA_OPTS="-Xmx96m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto"' \
        'EXPOSE 8080' 'WORKDIR /var/lib/tomcat' 'CMD ["/opt/tomcat/bin/catalina.sh", "run"]'
}

build() {
    local name=$1 image=impound-demo/$1:1 recipe archive root old change changes=()
    # A change of this script, of the Debian release or of the architecture makes a new image.
    recipe=$(cat "$HERE/images.sh" <(echo "$name $ARCH ${VERSION_ID:-}") | sha256sum | cut -c1-16)
    if [ "$(docker image inspect -f '{{index .Config.Labels "dev.impound.demo.recipe"}}' "$image" 2>/dev/null)" = "$recipe" ]; then
        say "Image $image is there"
        return 0
    fi
    archive=$CACHE/$name-$recipe.tar
    if [ ! -s "$archive" ] || [ ! -s "$archive.changes" ]; then
        say "Image $image: unpacking Debian's packages"
        # Of earlier recipes, and of runs that were cut off.
        rm -rf "$CACHE/$name"[-.]*
        root=$(mktemp -d "$CACHE/$name.XXXXXX")
        chmod 755 "$root"
        "root_$name" "$root"
        "changes_$name" "$root" >"$archive.changes"
        tar -c --numeric-owner --owner=0 --group=0 -C "$root" . >"$archive.part"
        mv "$archive.part" "$archive"
        rm -rf "$root"
    fi
    while read -r change; do changes+=(-c "$change"); done <"$archive.changes"
    old=$(docker image inspect -f '{{.Id}}' "$image" 2>/dev/null || true)
    docker import "${changes[@]}" -c "LABEL dev.impound.demo.recipe=$recipe" "$archive" "$image" >/dev/null
    # The image that had the name before goes, unless a container still needs it.
    [ -z "$old" ] || docker image rm "$old" >/dev/null 2>&1 || true
    say "Image $image: $(docker image inspect -f '{{.Size}}' "$image" | numfmt --to=iec --suffix=B)"
}

need_docker
mkdir -p "$CACHE"
# Two runs at the same time would fight over the same files.
exec 9>"$CACHE/lock"
flock 9
[ $# -gt 0 ] || set -- pause nginx tomcat
for name in "$@"; do
    case $name in
        pause | nginx | tomcat) build "$name" ;;
        *) fail "no image is called $name; there are: pause nginx tomcat" ;;
    esac
done
exit 0
}
