#!/usr/bin/env bash
# Starts a Ceph cluster of one monitor, one OSD on a memory store and one S3 gateway on loopback, runs a command with
# the gateway's address and keys in the environment, and stops all of it again:
#
#   tests/ceph/with-gateway.sh COMMAND [ARGUMENT]...
#
# Needs the programs of Debian's packages radosgw, ceph-mon, ceph-osd and ceph-common. Everything is in a temporary
# folder, which stays where something failed. METIS_TEST_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY are what the command sees.
set -euo pipefail

for program in ceph ceph-mon ceph-osd ceph-authtool monmaptool radosgw radosgw-admin python3; do
    command -v "$program" >/dev/null || {
        echo "$program is not installed: on Debian, apt-get install radosgw ceph-mon ceph-osd ceph-common" >&2
        exit 2
    }
done
[ $# -gt 0 ] || { echo "usage: $0 COMMAND [ARGUMENT]..." >&2; exit 2; }

home=$(mktemp -d "${TMPDIR:-/tmp}/metis-ceph.XXXXXX")
started=()
log() { printf 'ceph: %s\n' "$*" >&2; }

# Stops what was started, by its number; a daemon that does not end in ten seconds is killed.
stop() {
    local status=$?
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    for _ in $(seq 100); do
        local alive=0
        for pid in "${started[@]}"; do kill -0 "$pid" 2>/dev/null && alive=1; done
        [ "$alive" = 0 ] && break
        sleep 0.1
    done
    for pid in "${started[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    if [ "$status" = 0 ]; then rm -rf "$home"; else log "logs are in $home"; fi
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT TERM

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# wait_for SECONDS WHAT COMMAND...
wait_for() {
    local seconds=$1 what=$2
    shift 2
    for _ in $(seq $((seconds * 5))); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.2
    done
    log "$what did not come up in $seconds s"
    return 1
}

mon_port=$(free_port)
gateway_port=$(free_port)
fsid=$(python3 -c 'import uuid; print(uuid.uuid4())')
mkdir -p "$home"/{mon,osd,run,log,rgw}

cat >"$home/ceph.conf" <<EOF
[global]
fsid = $fsid
mon host = v2:127.0.0.1:$mon_port
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $home/keyring
run dir = $home/run
admin socket = $home/run/\$name.asok
pid file =
log file = $home/log/\$name.log
log to stderr = false
mon cluster log file = $home/log/cluster.log
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data = $home/mon
mon data avail crit = 1
mon max pg per osd = 1000
osd data = $home/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd class load list = *
osd class default list = *
[client.rgw]
rgw data = $home/rgw
rgw frontends = beast endpoint=127.0.0.1:$gateway_port
rgw enable usage log = false
EOF
export CEPH_CONF=$home/ceph.conf

ceph-authtool --create-keyring "$home/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
ceph-authtool "$home/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
ceph-authtool "$home/keyring" --gen-key -n client.rgw --cap mon 'allow rw' --cap osd 'allow rwx' >/dev/null
ceph-authtool "$home/keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' >/dev/null
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon_port]" "$home/monmap" >/dev/null
ceph-mon --mkfs -i a --monmap "$home/monmap" --keyring "$home/keyring" 2>>"$home/log/set-up"

log "starting in $home"
ceph-mon -f -i a >>"$home/log/mon" 2>&1 &
started+=($!)
wait_for 60 "the monitor" timeout 5 ceph mon stat

ceph osd new "$(python3 -c 'import uuid; print(uuid.uuid4())')" 0 >>"$home/log/set-up" 2>&1
ceph-osd -i 0 --mkfs --osd-uuid "$(ceph osd dump --format json | python3 -c 'import json, sys; print(json.load(sys.stdin)["osds"][0]["uuid"])')" >>"$home/log/set-up" 2>&1
ceph osd crush add osd.0 1.0 root=default host=here >>"$home/log/set-up" 2>&1
ceph-osd -f -i 0 >>"$home/log/osd" 2>&1 &
started+=($!)
wait_for 60 "the OSD" bash -c 'timeout 5 ceph osd stat | grep -q "1 up"'

radosgw -f -n client.rgw >>"$home/log/gateway" 2>&1 &
started+=($!)
wait_for 120 "the gateway" python3 -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$gateway_port/', timeout=2)"
radosgw-admin -n client.rgw user create --uid tests --display-name tests --access-key ceph-access --secret-key ceph-secret \
    >>"$home/log/set-up" 2>&1

log "the gateway answers on port $gateway_port"
export METIS_TEST_S3_ENDPOINT=http://127.0.0.1:$gateway_port
export METIS_TEST_S3_ACCESS_KEY=ceph-access
export METIS_TEST_S3_SECRET_KEY=ceph-secret
unset CEPH_CONF
"$@"
