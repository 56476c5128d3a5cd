#!/bin/busybox sh
# shellcheck shell=dash disable=SC2154 # the words are from the kernel command line
# The first process of the machine of `scripts/emulate surroundings`: starts `umiak server` where one thing is wrong, looks at
# what runs and what is said, puts the thing right, and waits until everything is ready in the same process.
# The kernel's command line says which thing (surroundings=) and what time it is (now=). The console has what was seen; its
# last lines are "vm: passed" or "vm: FAILED: why".
export PATH=/bin:/usr/local/bin LC_ALL=C HOME=/root
/bin/busybox mkdir -p /proc && /bin/busybox mount -t proc proc /proc
for word in $(cat /proc/cmdline); do
	case $word in surroundings=* | now=* | patience=*) export "${word?}" ;; esac
done

uptime() { cut -d. -f1 /proc/uptime; }
say() { echo "vm: $(uptime) s  $*"; }
fail() {
	say "status and the end of the log:"
	umiak status || true
	grep level=ERROR /run/umiak.log | cut -c1-400 | head -n 40
	tail -n 40 /run/umiak.log
	umiak kubectl get pods,nodes -o wide || true
	umiak kubectl get events -A || true
	echo "vm: FAILED: $*"
	poweroff -f
}
# wait_for WHAT COMMAND…
wait_for() {
	local what=$1 begun
	begun=$(uptime)
	shift
	until "$@" >/run/last 2>&1; do
		kill -0 "$UMIAK" || fail "umiak has ended while waiting for $what"
		if [ $(($(uptime) - begun)) -gt "${patience:-900}" ]; then
			cat /run/last
			fail "no $what in ${patience:-900} s"
		fi
		sleep 5
	done
	say "$what, after $(($(uptime) - begun)) s"
}

setup() {
	mount -t sysfs sys /sys
	mount -t devtmpfs dev /dev
	mkdir -p /dev/pts /dev/shm
	mount -t devpts devpts /dev/pts
	mount -t tmpfs tmpfs /dev/shm
	mount -t tmpfs -o mode=755 tmpfs /run
	mount -t tmpfs tmpfs /tmp
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	mount --make-rshared /
	for m in virtio_net virtio_rng overlay br_netfilter veth vxlan nf_tables nft_chain_nat nft_ct; do modprobe $m || say "no module $m"; done
	hostname vm
	ip link set lo up
	ip link set eth0 up
	ip address add 10.0.2.15/24 dev eth0
	ip route add default via 10.0.2.2
}

api() { umiak kubectl get --raw=/readyz; }
status_says() { umiak status >/run/status; grep -E "$1" /run/status; }
ready() { umiak status && umiak kubectl wait --for=condition=Ready node/vm --timeout=10s; }
pod() {
	umiak kubectl get pod "$1" || umiak kubectl create -f - <<-END
		apiVersion: v1
		kind: Pod
		metadata: {name: $1}
		spec:
		  containers:
		  - name: app
		    image: registry.test/app:1
		    command: [busybox, sleep, "1000000"]
	END
	umiak kubectl wait --for=condition=Ready "pod/$1" --timeout=10s
}
# known POD asks the API server who somebody with the token of the pod's ServiceAccount is.
known() {
	local token
	token=$(umiak kubectl exec "$1" -- busybox cat /var/run/secrets/kubernetes.io/serviceaccount/token) &&
		umiak kubectl --kubeconfig=/dev/null --server=https://127.0.0.1:6443 --insecure-skip-tls-verify --token="$token" auth whoami |
		grep system:serviceaccount:default:default
}

check_says() {
	umiak check >/run/check 2>&1 || true
	grep -E "$1" /run/check || fail "umiak check does not say $1: $(cat /run/check)"
}

# What is true of each thing: how it is made, what has to be said, what runs meanwhile, how it is put right.
case $surroundings in
clock-behind | clock-ahead)
	make() { say "the clock says $(date -u '+%F %T')"; }
	said='clock .*(before|after) '
	meanwhile() { wait_for "node and parts ready with the wrong clock" ready; wait_for "a pod with the wrong clock" pod early; }
	right() { date -u -s "@$(($now + $(uptime)))" && say "the clock is set"; }
	after() { wait_for "the token of the early pod is taken" known early; }
	;;
inotify)
	make() {
		date -u -s "@$(($now + $(uptime)))"
		hog >/run/hog &
		HOG=$!
		until grep taken /run/hog; do sleep 1; done
	}
	said='inotify'
	meanwhile() { :; }
	right() { kill $HOG; wait $HOG; say "the instances are given back"; }
	after() { :; }
	;;
esac

setup
say "$surroundings; $(uname -r)"
make
check_says "^(MISSING|WARN) +.*($said)"
grep -E "$said" /run/check
mkdir -p /etc/umiak
umiak server >/run/umiak.log 2>&1 &
UMIAK=$!
wait_for "API" api
wait_for "status names it" status_says "$said"
grep -E "$said" /run/status
meanwhile
umiak status
right
wait_for "everything is ready" ready
wait_for "a pod" pod late
after
wait_for "the token of a new pod is taken" known late
umiak status
status_says "$said" && fail "status still says so"
grep -A3 '^Restarted' /run/status && fail "it was restarted"
[ "$(pidof umiak | tr ' ' '\n' | grep -x "$UMIAK")" ] || fail "another process"
grep -E 'level=(ERROR|WARN)' /run/umiak.log | cut -c1-300 | tail -n 30
echo "vm: passed"
poweroff -f
