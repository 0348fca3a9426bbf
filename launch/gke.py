#!/usr/bin/env python3
"""Runs on TPU node pools of a GKE cluster: one JobSet, a slice for each of its jobs.

  launch/gke.py create NAME --topology=v5e:16x16 --cluster=C --location=us-west4 --zone=us-west4-a
      node pools, one for each slice; they cost from now on       [--slices=2] [--spot]
  launch/gke.py run    NAME --topology=v5e:16x16 --image=IMAGE --bucket=BUCKET [--slices=2] \\
      -- aigc train --config=... --workdir=/mnt/runs/NAME
  launch/gke.py logs   NAME --follow
  launch/gke.py status NAME
  launch/gke.py stop   NAME               the run saves and ends; the node pools still cost
  launch/gke.py delete NAME --cluster=C --location=us-west4 [--slices=2]      the node pools too

`--dry-run` prints the commands, or the manifest, and runs nothing. A slice that fails or is taken
away restarts all of them, and the run goes on from its checkpoint; exit code 2, which a person has
to mend, ends it. Needs gcloud and kubectl; launch/README.md begins with an empty project.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from typing import NamedTuple

from command import (
    MOUNT,
    PORT,
    bucket,
    check_command,
    location,
    matching,
    name,
    natural,
    port,
    positive,
    project,
    run,
    run_all,
    run_verb,
    zone,
)


class Chip(NamedTuple):
    """A generation, as GKE knows it: hosts of four chips."""

    accelerator: str
    machine: str
    dimensions: int


# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
CHIPS = {
    "v4": Chip("tpu-v4-podslice", "ct4p-hightpu-4t", 3),
    "v5e": Chip("tpu-v5-lite-podslice", "ct5lp-hightpu-4t", 2),
    "v5p": Chip("tpu-v5p-slice", "ct5p-hightpu-4t", 3),
    "v6e": Chip("tpu-v6e-slice", "ct6e-standard-4t", 2),
}

MANIFEST = """\
# kubectl create --filename=-
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
  annotations:
    # one job to a node pool, which is one slice
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: {restarts}
    # never two of the run at once on one work directory
    restartStrategy: BlockingRecreate
    rules:
      # exit code 2: a person has to mend it, restarting would only cost
      - name: badInput
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: {slices}
      template:
        spec:
          completionMode: Indexed
          parallelism: {hosts}
          completions: {hosts}
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: aigc
                  operator: In
                  values: [2]
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              serviceAccountName: {service_account}
              # SIGTERM, then so long for a last checkpoint
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: {accelerator}
                cloud.google.com/gke-tpu-topology: {topology}
              containers:
                - name: aigc
                  image: {image}
                  # Kubernetes takes $(NAME) for a variable, so every dollar sign stands doubled.
                  command:
                    - /bin/sh
                    - -c
                    - export JAX_PROCESS_ID=$$((SLICE * {hosts} + JOB_COMPLETION_INDEX)); exec "$$@"
                    - aigc
{command}
                  env:
                    - name: JAX_COORDINATOR_ADDRESS
                      value: {name}-slice-0-0.{name}:{port}
                    - name: JAX_NUM_PROCESSES
                      value: "{processes}"
                    - name: SLICE
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.labels['jobset.sigs.k8s.io/job-index']
                  ports:
                    - containerPort: {port}
                  resources:
                    limits:
                      google.com/tpu: 4
                  # the TPU's devices are root's, and libtpu locks memory
                  securityContext:
                    privileged: true
                    runAsUser: 0
                  volumeMounts:
                    - name: runs
                      mountPath: {mount}
                    - name: memory
                      mountPath: /dev/shm
              volumes:
                - name: runs
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: {bucket}
                      # nothing cached: a host must see at once what another one wrote
                      mountOptions: implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
                - name: memory
                  emptyDir:
                    medium: Memory
"""  # noqa: E501


def create(args) -> int:
    """Makes the node pools, one for each slice; they cost from now on."""
    chip, topology, _ = args.topology
    commands = [
        _gcloud(
            args,
            "create",
            pool,
            f"--node-locations={args.zone}",
            f"--machine-type={chip.machine}",
            f"--tpu-topology={topology}",
            f"--num-nodes={_hosts(args)}",
            *(["--spot"] if args.spot else []),
        )
        for pool in _pools(args)
    ]
    return run_all(commands, args.dry_run)


def start(args) -> int:
    """Submits the run."""
    check_command(args.command, durable=True)
    text = manifest(args)
    if args.dry_run:
        print(text, end="")
        return 0
    return run(["kubectl", "create", "--filename=-"], dry_run=False, stdin=text)


def logs(args) -> int:
    """Shows what a worker of the run printed."""
    chosen = {
        "jobset.sigs.k8s.io/jobset-name": args.name,
        "jobset.sigs.k8s.io/job-index": args.slice,
        "batch.kubernetes.io/job-completion-index": args.worker,
    }
    selector = ",".join(f"{key}={value}" for key, value in chosen.items())
    follow = ["--follow"] if args.follow else []
    logs = ["kubectl", "logs", f"--selector={selector}", "--container=aigc", "--tail=100", *follow]
    return run(logs, args.dry_run)


def status(args) -> int:
    """Says what became of the run and of its pods."""
    pods = f"--selector=jobset.sigs.k8s.io/jobset-name={args.name}"
    commands = [
        ["kubectl", "get", "jobset", args.name],
        ["kubectl", "get", "pods", pods, "--output=wide"],
    ]
    return run_all(commands, args.dry_run)


def stop(args) -> int:
    """Ends the run: SIGTERM, so that it saves; the node pools stay, and cost."""
    return run(["kubectl", "delete", "jobset", args.name], args.dry_run)


def delete(args) -> int:
    """Deletes the node pools; the bucket stays."""
    return run_all(
        [_gcloud(args, "delete", pool, "--quiet") for pool in _pools(args)], args.dry_run
    )


def manifest(args) -> str:
    """The JobSet as YAML; what came from a person is quoted as JSON, which is YAML."""
    chip, topology, _ = args.topology
    words = [json.dumps(word.replace("$", "$$"), ensure_ascii=False) for word in args.command]
    return MANIFEST.format(
        name=args.name,
        restarts=args.restarts,
        slices=args.slices,
        hosts=_hosts(args),
        processes=args.slices * _hosts(args),
        service_account=args.service_account,
        accelerator=chip.accelerator,
        topology=topology,
        image=json.dumps(args.image),
        command="\n".join(f"{' ' * 20}- {word}" for word in words),
        port=args.port,
        mount=MOUNT,
        bucket=args.bucket,
    )


def topology(text: str) -> tuple[Chip, str, int]:
    """An argument type: `v5e:16x16` as the generation, the shape for GKE, and the chips."""
    match = re.fullmatch(r"(\w+):([1-9][0-9]*(?:x[1-9][0-9]*)*)", text, re.ASCII)
    if not match or match[1] not in CHIPS:
        known = ", ".join(CHIPS)
        raise argparse.ArgumentTypeError(
            f"{text!r} is not CHIP:SHAPE, like v5e:16x16; CHIP: {known}"
        )
    chip = CHIPS[match[1]]
    shape = [int(size) for size in match[2].split("x")]
    if len(shape) != chip.dimensions:
        raise argparse.ArgumentTypeError(f"{text!r}: {match[1]} has {chip.dimensions} dimensions")
    if math.prod(shape) % 4:
        raise argparse.ArgumentTypeError(f"{text!r}: its chips are not hosts of four")
    return chip, match[2], math.prod(shape)


def _hosts(args) -> int:
    return args.topology[2] // 4


def _pools(args) -> list[str]:
    return [f"{args.name}-{i}" for i in range(args.slices)]


def _gcloud(args, verb: str, pool: str, *words: str) -> list[str]:
    where = [f"--cluster={args.cluster}", f"--location={args.location}"]
    where += [f"--project={args.project}"] if args.project else []
    return ["gcloud", "container", "node-pools", verb, pool, *words, *where]


VERBS = {
    "create": create,
    "run": start,
    "logs": logs,
    "status": status,
    "stop": stop,
    "delete": delete,
}
# Pods are called NAME-slice-0-63-abcde, and a node pool NAME-0; their names have limits.
_short = matching(r"[a-z]([-a-z0-9]{0,29}[a-z0-9])?", "a name: a-z, 0-9 and -, at most 31")
_image = matching(r"[a-zA-Z0-9][\w./:@-]*", "an image, like us-docker.pkg.dev/P/R/aigc:tpu")
FLAGS = {
    "--topology": ("create run", {"type": topology, "required": True, "help": "like v5e:16x16"}),
    "--slices": ("create run delete", {"type": positive, "default": 1, "help": "how many [1]"}),
    "--spot": ("create", {"action": "store_true", "help": "cheaper; may be taken away"}),
    "--cluster": ("create delete", {"type": name, "required": True, "help": "there already"}),
    "--location": ("create delete", {"type": location, "required": True, "help": "the cluster's"}),
    "--zone": ("create", {"type": zone, "required": True, "help": "one with such TPUs"}),
    "--project": ("create delete", {"type": project, "help": "else the one gcloud is set to"}),
    "--image": ("run", {"type": _image, "required": True, "help": "from launch/docker"}),
    "--bucket": ("run", {"type": bucket, "required": True, "help": f"mounted at {MOUNT}"}),
    "--service-account": (
        "run",
        {"type": name, "default": "aigc", "help": "that may use the bucket [aigc]"},
    ),
    "--restarts": ("run", {"type": natural, "default": 100, "help": "before giving up [100]"}),
    "--port": ("run", {"type": port, "default": PORT, "help": f"of process 0 [{PORT}]"}),
    "--slice": ("logs", {"type": natural, "default": 0, "help": "which slice, from 0 [0]"}),
    "--worker": ("logs", {"type": natural, "default": 0, "help": "which of its workers [0]"}),
    "--follow": ("logs", {"action": "store_true", "help": "go on as it grows"}),
}


def main() -> int:
    return run_verb(
        "launch/gke.py", __doc__, VERBS, FLAGS, "of the run and its node pools", name_type=_short
    )


if __name__ == "__main__":
    sys.exit(main())
