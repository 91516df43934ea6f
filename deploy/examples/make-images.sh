#!/bin/bash
# Makes two small real images out of this machine's Debian packages, busybox-static and nginx-light,
# and writes them as one archive in the form of `docker save`.
#
# Usage: make-images.sh ARCHIVE.tar
set -eu -o pipefail

archive=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

case $(uname -m) in
aarch64) architecture=arm64 ;;
*) architecture=amd64 ;;
esac

# busybox under all its names, with the accounts a system has.
busybox=$work/busybox
mkdir -p "$busybox"/{bin,dev,etc,proc,root,sys,tmp}
chmod 1777 "$busybox/tmp"
cp /bin/busybox "$busybox/bin/busybox"
for applet in $(/bin/busybox --list); do
	[ "$applet" = busybox ] || ln -s busybox "$busybox/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$busybox/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$busybox/etc/group"

# nginx with the libraries it loads, to be laid over busybox.
nginx=$work/nginx
mkdir -p "$nginx"/{etc/nginx,run,srv,usr/sbin,var/log/nginx,var/lib/nginx}
cp /usr/sbin/nginx "$nginx/usr/sbin/nginx"
for library in $(ldd /usr/sbin/nginx | grep -o '/[^ ]*'); do
	mkdir -p "$nginx$(dirname "$library")"
	cp -L "$library" "$nginx$library"
done
echo 'nginx in a pod says hello' >"$nginx/srv/index.html"
cat >"$nginx/etc/nginx/nginx.conf" <<'END'
user root;
worker_processes 1;
error_log stderr;
pid /run/nginx.pid;
events { worker_connections 64; }
http {
    access_log /dev/stdout;
    server { listen 80; root /srv; }
}
END

out=$work/out
mkdir "$out"

# layer DIRECTORY: packs it and prints the name of the file.
layer() {
	tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$1" -cf "$work/layer.tar" .
	name=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1).tar
	mv "$work/layer.tar" "$out/$name"
	echo "$name"
}

# image NAME SETTINGS LAYER...: writes the configuration and prints the manifest's entry.
image() {
	local name=$1 settings=$2 diff_ids='' layers=''
	shift 2
	for it in "$@"; do
		diff_ids+=${diff_ids:+,}\"sha256:${it%.tar}\"
		layers+=${layers:+,}\"$it\"
	done
	printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]}}' \
		"$architecture" "$settings" "$diff_ids" >"$work/config.json"
	config=$(sha256sum "$work/config.json" | cut -d ' ' -f 1).json
	mv "$work/config.json" "$out/$config"
	printf '{"Config":"%s","RepoTags":["%s"],"Layers":[%s]}' "$config" "$name" "$layers"
}

path='"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]'
base=$(layer "$busybox")
web=$(layer "$nginx")
first=$(image docker.io/library/busybox:debian "{\"Cmd\":[\"sh\"],$path}" "$base")
second=$(image docker.io/library/nginx:debian \
	"{\"Cmd\":[\"nginx\",\"-g\",\"daemon off;\"],\"StopSignal\":\"SIGQUIT\",\"ExposedPorts\":{\"80/tcp\":{}},$path}" \
	"$base" "$web")
echo "[$first,$second]" >"$out/manifest.json"

(cd "$out" && tar -cf "$archive" -- *)
