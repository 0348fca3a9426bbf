#!/usr/bin/env python3
"""Runs on TPU node pools of a GKE cluster: one JobSet, a slice for each of its jobs.

  launch/gke.py create NAME --topology=v5e:16x16 --cluster=C --location=us-west4 --zone=us-west4-a
      node pools, one for each slice; they cost from now on       [--slices=2]
      [--spot | --reservation=R | --flex-start] [-- --node-labels=... and what else gcloud takes]
  launch/gke.py run    NAME --topology=v5e:16x16 --image=IMAGE --bucket=BUCKET [--slices=2] \\
      [--queue=KUEUE_QUEUE] [--env=NAME=VALUE] -- aigc train --config=... --workdir=/mnt/runs/NAME
  launch/gke.py logs   NAME --follow
  launch/gke.py status NAME
  launch/gke.py stop   NAME               the run saves and ends; the node pools still cost
  launch/gke.py delete NAME --cluster=C --location=us-west4 [--slices=2]      the node pools too

`--dry-run` prints the commands, or the manifest, and runs nothing. A slice that fails or is taken
away restarts all of them, and the run goes on from its checkpoint; exit code 2, which a person has
to mend, ends it. Needs gcloud and kubectl; launch/README.md begins with an empty project.
"""

from __future__ import annotations

import sys

from command import (
    MOUNT,
    PORT,
    account,
    bucket,
    check_command,
    location,
    matching,
    name,
    natural,
    port,
    positive,
    project,
    refuse,
    run,
    run_all,
    run_verb,
    tpu_slice,
    variable,
    zone,
)
from jobset import manifest


def create(args) -> int:
    """Makes the node pools, one for each slice; they cost from now on."""
    wanted = args.topology
    _check(args)
    commands = []
    if _policy(args):  # https://cloud.google.com/kubernetes-engine/docs/concepts/tpu-ironwood
        shape = ["--type=HIGH_THROUGHPUT", f"--accelerator-topology={wanted.topology}"]
        region = args.zone.rpartition("-")[0]
        words = ["create", "workload-policy", args.name, *shape]
        commands.append(_resource_policy(args, region, *words))
    # a pool of one machine has no topology to be told
    shape = [f"--tpu-topology={wanted.topology}"] if wanted.hosts > 1 else []
    if _policy(args):
        shape = [f"--placement-policy={args.name}"]
    commands += [
        _gcloud(
            args,
            "create",
            pool,
            f"--node-locations={args.zone}",
            f"--machine-type={wanted.machine}",
            *shape,
            *_terms(args),
            *(["--enable-private-nodes"] if args.internal_ips else []),
            *([f"--service-account={args.node_account}"] if args.node_account else []),
            *args.command,
        )
        for pool in _pools(args)
    ]
    return run_all(commands, args.dry_run)


def start(args) -> int:
    """Submits the run."""
    check_command(args.command, durable=True)
    _check(args)
    if bool(args.bucket) == bool(args.pvc):
        refuse("write one of --bucket and --pvc: where the run keeps its work directory")
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
    commands = [_gcloud(args, "delete", pool, "--quiet") for pool in _pools(args)]
    if args.policy_region:
        commands.append(_resource_policy(args, args.policy_region, "delete", args.name, "--quiet"))
    return run_all(commands, args.dry_run)


def _check(args) -> None:
    wanted = args.topology
    if not wanted.machine:
        refuse(f"GKE has no machine for {wanted.name}")
    if args.slices > 1 and wanted.hosts == 1:
        refuse(
            f"--slices={args.slices}: {wanted.name} is a single machine, and only slices of "
            "several are joined (https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice)"
        )
    if args.spot + bool(getattr(args, "reservation", None)) + args.flex_start > 1:
        refuse("--spot, --reservation and --flex-start are three ways to pay: write one")


def _terms(args) -> list[str]:
    """How many nodes, and on which terms."""
    hosts = args.topology.hosts
    if args.flex_start:  # https://cloud.google.com/kubernetes-engine/docs/concepts/dws
        return [
            "--num-nodes=0",
            "--enable-autoscaling",
            f"--max-nodes={hosts}",
            "--location-policy=ANY",
            "--flex-start",
            "--reservation-affinity=none",
            "--no-enable-autorepair",
            *(["--enable-queued-provisioning"] if args.queued else []),
        ]
    if args.reservation:
        terms = ["--reservation-affinity=specific", f"--reservation={args.reservation}"]
    else:
        terms = ["--spot"] if args.spot else []
    return [f"--num-nodes={hosts}", *terms]


def _policy(args) -> bool:
    """Whether the slice is made by a placement policy, not by a topology."""
    return args.topology.kind == "tpu7x" and args.topology.hosts > 1


def _resource_policy(args, region: str, *words: str) -> list[str]:
    where = [f"--region={region}"]
    where += [f"--project={args.project}"] if args.project else []
    return ["gcloud", "compute", "resource-policies", *words, *where]


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
_reservation = matching(r"[\w./:-]+", "a reservation's name or path")
_label = matching(r"[\w./-]+=[\w.-]*", "KEY=VALUE, like cloud.google.com/gke-spot=true")
FLAGS = {
    "--topology": (
        "create run",
        {"type": tpu_slice, "required": True, "help": "like v5e:16x16, or v5litepod-256"},
    ),
    "--slices": ("create run delete", {"type": positive, "default": 1, "help": "how many [1]"}),
    "--spot": ("create run", {"action": "store_true", "help": "cheaper; may be taken away"}),
    "--reservation": ("create", {"type": _reservation, "help": "the one to take from"}),
    "--flex-start": ("create run", {"action": "store_true", "help": "waits; up to 7 days of use"}),
    "--queued": ("create", {"action": "store_true", "help": "flex-start asked for by Kueue"}),
    "--internal-ips": ("create", {"action": "store_true", "help": "no addresses outside"}),
    "--node-account": ("create", {"type": account, "help": "that the machines act as"}),
    "--cluster": ("create delete", {"type": name, "required": True, "help": "there already"}),
    "--location": ("create delete", {"type": location, "required": True, "help": "the cluster's"}),
    "--zone": ("create", {"type": zone, "required": True, "help": "one with such TPUs"}),
    "--policy-region": (
        "delete",
        {"type": location, "help": "of the placement policy that `create` made for a tpu7x"},
    ),
    "--project": ("create delete", {"type": project, "help": "else the one gcloud is set to"}),
    "--image": ("run", {"type": _image, "required": True, "help": "from launch/docker"}),
    "--bucket": ("run", {"type": bucket, "help": f"mounted at {MOUNT}"}),
    "--pvc": ("run", {"type": name, "help": f"a volume claim at {MOUNT} instead of a bucket"}),
    "--queue": ("run", {"type": name, "help": "Kueue's local queue"}),
    "--env": (
        "run",
        {"type": variable, "action": "append", "default": [], "help": "NAME=VALUE for the run"},
    ),
    "--node-selector": (
        "run",
        {"type": _label, "action": "append", "default": [], "help": "KEY=VALUE of the nodes"},
    ),
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
        "launch/gke.py",
        __doc__,
        VERBS,
        FLAGS,
        "of the run and its node pools",
        name_type=_short,
        passing=("create",),
    )


if __name__ == "__main__":
    sys.exit(main())
