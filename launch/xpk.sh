#!/bin/bash
# xpk 1.16: a GKE cluster with one slice of v5litepod-16, and a run on it.
#   PROJECT=my-project ZONE=us-west4-a BUCKET=gs://my-runs launch/xpk.sh
# pip install xpk; needs gcloud, kubectl and docker (https://github.com/AI-Hypercomputer/xpk).
# Costs from the first command until the last.
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${BUCKET:?}" "${IMAGE:=us-west4-docker.pkg.dev/$PROJECT/images/aigc:tpu}"
where=(--cluster=pods --project="$PROJECT" --zone="$ZONE")

xpk cluster create "${where[@]}" --tpu-type=v5litepod-16 --num-slices=1 --spot \
    --enable-workload-identity --enable-gcsfuse-csi-driver
xpk storage attach runs "${where[@]}" --type=gcsfuse --bucket="${BUCKET#gs://}" --size=1 \
    --mount-point=/mnt/runs --readonly=false --auto-mount=true
# The platform tells JAX who is who. xpk starts a run again after exit codes 42 and 127 to 255, which
# are signals and preemption; 75 is a process that was lost. Not after 2, which a person has to mend.
xpk workload create "${where[@]}" --workload=gpt2 --tpu-type=v5litepod-16 --num-slices=1 \
    --docker-image="$IMAGE" --max-restarts=100 --restart-on-exit-codes=75 \
    --termination-grace-period-seconds=300 \
    --command="aigc train --config=configs/lm/gpt2.py --workdir=/mnt/runs/gpt2"
xpk workload list "${where[@]}" --wait-for-job-completion=gpt2
xpk cluster delete "${where[@]}"
