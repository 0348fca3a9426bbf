"""Runs a command on every machine of a Ray cluster: the entry point of launch/kuberay.yaml.

  python launch/ray_hosts.py --hosts=4 --resource=TPU=4 -- aigc train --config=... --workdir=...

Ray places one task on each machine; the task is one process of the run. On a TPU slice GKE has told
each machine its number and the names of all, which libtpu uses too, so the processes are numbered
the same way; elsewhere Ray's own numbers do. The exit code is the first that is not 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from command import PORT, Parser, check_command, matching, port, positive


def place(rank: int, addresses: Sequence[str], port: int, env: Mapping[str, str]) -> dict[str, str]:
    """The variables by which the processes of the run find each other.

    Args:
        rank: Ray's number of this machine.
        addresses: of all machines, in the order of their numbers.
        port: of the coordinator.
        env: of this machine; GKE's numbering is taken where it is set for so many machines.
    """
    names = [name for name in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(names) == len(addresses) and env.get("TPU_WORKER_ID", "").isdigit():
        rank, addresses = int(env["TPU_WORKER_ID"]), names
    return {
        "JAX_COORDINATOR_ADDRESS": f"{addresses[0]}:{port}",
        "JAX_NUM_PROCESSES": str(len(addresses)),
        "JAX_PROCESS_ID": str(rank),
    }


def run(command: Sequence[str], hosts: int, resource: Mapping[str, float], port: int) -> int:
    """Runs the command on so many machines, each with these resources; its exit code."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init()
    bundle = {"CPU": 1, **resource}
    group = placement_group([bundle] * hosts, strategy="STRICT_SPREAD" if hosts > 1 else "PACK")
    ray.get(group.ready())

    def on(rank, function):
        here = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        return ray.remote(function).options(
            num_cpus=1, resources=dict(resource), scheduling_strategy=here, max_retries=0
        )

    addresses = ray.get([on(i, ray.util.get_node_ip_address).remote() for i in range(hosts)])

    def process(rank: int) -> int:
        path = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}"
        env = {**os.environ, "PATH": path, **place(rank, addresses, port, os.environ)}
        return subprocess.run(list(command), env=env, check=False).returncode

    codes = ray.get([on(i, process).remote(i) for i in range(hosts)])
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def main() -> int:
    parser = Parser(prog="launch/ray_hosts.py", description=__doc__)
    parser.add_argument("--hosts", type=positive, default=1, help="machines [1]")
    what = matching(r"[A-Za-z]+=[0-9]+", "a resource of each machine, like TPU=4")
    parser.add_argument("--resource", type=what, default="", help="of each machine, like TPU=4")
    parser.add_argument("--port", type=port, default=PORT, help=f"of process 0 [{PORT}]")
    args = parser.parse()
    check_command(args.command)
    name, _, count = args.resource.partition("=")
    return run(args.command, args.hosts, {name: float(count)} if name else {}, args.port)


if __name__ == "__main__":
    sys.exit(main())
