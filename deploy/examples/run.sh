#!/bin/bash
# Shows a real pod working on this machine: a daemon with its defaults under a scratch directory,
# two images made here, a web server with a sidecar, an exec, the metrics page. Takes everything
# away again.
#
# Usage: run.sh DIRECTORY-OF-THE-BINARIES   (as root)
set -eu -o pipefail

here=$(dirname "$(realpath "$0")")
lapstrake=$(realpath "$1")/lapstrake
bridge=lapstrake0

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
fail() { printf 'run.sh: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "namespaces and cgroups need root: sudo make run"
! ip link show "$bridge" >/dev/null 2>&1 ||
	fail "the bridge $bridge is there: another daemon with the defaults runs here"

scratch=$(mktemp -d /tmp/lapstrake-run.XXXXXX)
daemon=''
pod=''
clean_up() {
	status=$?
	[ -z "$pod" ] || { kill -INT "$pod" 2>/dev/null && wait "$pod" || true; }
	if [ -n "$daemon" ]; then
		"$lapstrake" rm --grace 1 web "${at[@]}" >/dev/null 2>&1 || true
		kill -TERM "$daemon" 2>/dev/null && wait "$daemon" || true
	fi
	[ $status = 0 ] || { echo "--- the daemon's log:"; tail -n 40 "$scratch/daemon.log"; } >&2
	# The network of the node outlives the daemon on purpose; here nobody needs it any more.
	ip link delete "$bridge" 2>/dev/null || true
	for table in $(nft list tables | awk -v it="$bridge" '$3 ~ it || $3 == "lapstrake" { print $2 ":" $3 }'); do
		nft delete table "${table%%:*}" "${table#*:}"
	done
	rm -rf "$scratch"
	exit $status
}
trap clean_up EXIT

# The default port of the metrics, or the next that is free.
port=9323
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done

step "The daemon, with its defaults, under $scratch"
socket=unix://$scratch/state/lapstrake.sock
at=(--endpoint "$socket")
"$lapstrake" serve --root "$scratch/root" --state "$scratch/state" --listen "$socket" \
	--metrics-listen "127.0.0.1:$port" 2>"$scratch/daemon.log" &
daemon=$!
for _ in $(seq 200); do
	"$lapstrake" ps "${at[@]}" >/dev/null 2>&1 && break
	kill -0 "$daemon" 2>/dev/null || fail "the daemon did not start"
	sleep 0.05
done
"$lapstrake" ps "${at[@]}"

step "Two images, made of Debian's busybox-static and nginx-light"
"$here/make-images.sh" "$scratch/images.tar"
"$lapstrake" images import "$scratch/images.tar" "${at[@]}"
"$lapstrake" images ls "${at[@]}"

step "lapstrake run web-pod.yaml"
"$lapstrake" run "$here/web-pod.yaml" "${at[@]}" >"$scratch/run.log" 2>&1 &
pod=$!
for _ in $(seq 200); do
	[ "$(grep -c 'nginx in a pod says hello' "$scratch/run.log")" -ge 2 ] && break
	kill -0 "$pod" 2>/dev/null || { cat "$scratch/run.log"; fail "the pod ended"; }
	sleep 0.1
done
cat "$scratch/run.log"
grep -q 'localhost: nginx in a pod says hello' "$scratch/run.log" || fail "no answer over localhost"
grep -Eq ' [0-9]+\.[0-9.]+: nginx in a pod says hello' "$scratch/run.log" ||
	fail "no answer through the pod's address"

step "lapstrake ps"
"$lapstrake" ps "${at[@]}"

step "lapstrake exec sidecar -- ps"
"$lapstrake" exec sidecar "${at[@]}" -- sh -c 'ps -o pid,user,args; ip -4 addr show dev eth0'

step "The processes, as the host sees them"
for shim in $(pgrep -f "^lapstrake-shim .*$("$lapstrake" ps "${at[@]}" | awk '$1 == "default/web" { print $2 }')"); do
	ps --forest -o pid,ppid,rss,args --pid "$shim" --ppid "$shim" | cut -c 1-120
done

step "Metrics on port $port"
busybox wget -q -O - "http://127.0.0.1:$port/metrics" >"$scratch/metrics"
grep -Ev '^#|in_flight|_bucket' "$scratch/metrics" | head -n 8
[ -s "$scratch/metrics" ] || fail "the metrics page is empty"

step "Ctrl-C"
kill -INT "$pod"
wait "$pod" || true
pod=''
tail -n 3 "$scratch/run.log"
"$lapstrake" ps "${at[@]}"
kill -TERM "$daemon"
wait "$daemon" || fail "the daemon ended with $?"
daemon=''
step "Done; nothing is left"
