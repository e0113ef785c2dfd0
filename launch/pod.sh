#!/bin/bash
# One process on each host of a TPU pod (or of several slices): the same command everywhere, by gcloud's ssh.
#
#     launch/pod.sh install my-pod us-east5-a https://github.com/me/ling_jax.git      # a checkout and its .venv
#     launch/pod.sh run my-pod us-east5-a -m launch.pretrain --config=configs/pretrain/ling_2_6_1t.py \
#         --workdir=gs://my-bucket/runs/1t --config.data.folder=/mnt/disks/tokens
#     launch/pod.sh stop my-pod us-east5-a                                            # saves; `run` goes on
#
# JAX finds coordinator and number of hosts in the pod's metadata. Host 0 tells the progress; every host tells its
# errors. A run in which a step hangs ends with code 75 and is started again (docs/guards.md). Output stays in
# ~/ling_jax/run.log on each host, and the run lives on when the connection ends.
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 3 ] || usage
action=$1 pod=$2 zone=$3
shift 3

on_all() { gcloud compute tpus tpu-vm ssh "$pod" --zone="$zone" --worker=all --command="$1"; }

case $action in
  install)
    [ $# -eq 1 ] || usage
    on_all "{ [ -d ling_jax ] || git clone --quiet $(printf %q "$1") ling_jax; } && cd ling_jax && git pull --quiet &&
      make install && .venv/bin/python -m pip install --quiet -c requirements.lock -e '.[tpu]'"
    ;;
  run)
    [ $# -ge 1 ] || usage
    command=$(printf '%q ' "$@")
    # The shell waits for the program when a signal comes, and the program gets it too: they share a process group.
    again="trap : TERM; until .venv/bin/python $command; [ \$? -ne 75 ]; do echo started again; done"
    on_all "cd ling_jax && { setsid nohup bash -c $(printf %q "$again") > run.log 2>&1 < /dev/null & echo \$! > run.pid; }
      tail --pid=\$(cat run.pid) -n +1 -f run.log
      wait"  # by the shell that has started it: tail would wait for a process that has ended and that nobody asks for
    ;;
  stop)
    on_all "cd ling_jax && kill -TERM -- -\$(cat run.pid)"
    ;;
  *) usage ;;
esac
