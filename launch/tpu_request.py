"""What launch/tpu.py asks the Cloud TPU API for: the slice, its software, and on which terms."""

from __future__ import annotations

import argparse
import re

from command import account, matching, positive, refuse, slices

# https://cloud.google.com/tpu/docs/runtimes
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


def request(args) -> list[str]:
    """The flags of `gcloud compute tpus queued-resources create`, after the name."""
    if args.spot and args.reserved:
        refuse("--spot and --reserved do not go together: spot machines are what is left over")
    nodes = [f"--node-id={args.name}"]
    if args.slices > 1:
        nodes = [f"--node-count={args.slices}", f"--node-prefix={args.name}"]
    until = []
    if args.valid_until:
        kind = "time" if "T" in args.valid_until else "duration"
        until = [f"--valid-until-{kind}={args.valid_until}"]
    named = {
        "--network": args.network,
        "--subnetwork": args.subnetwork,
        "--service-account": args.service_account,
    }
    return [
        *nodes,
        *_wanted(args),
        *(["--spot"] if args.spot else []),
        *(["--reserved"] if args.reserved else []),
        *until,
        *(f"{key}={value}" for key, value in named.items() if value),
        *(["--internal-ips"] if args.internal_ips else []),
        *args.passed,
    ]


def track(args) -> list[str]:
    """The part of gcloud that knows the request: shapes of newer TPUs are in `alpha` alone."""
    wanted = args.type
    newer = not isinstance(wanted, str) and not wanted.usual and wanted.kind != "v4"
    return ["alpha"] if newer else []


def _wanted(args) -> list[str]:
    """The slice and its software, in the words of the Cloud TPU API."""
    wanted = args.type
    kind = wanted.split("-")[0] if isinstance(wanted, str) else wanted.generation.api
    runtime = args.runtime_version or RUNTIMES.get(kind)
    if runtime is None:
        name = wanted if isinstance(wanted, str) else wanted.api_type
        refuse(
            f"--type={name} is none of {', '.join(RUNTIMES)}, which the Cloud TPU API had when "
            "this was written: launch/gke.py makes newer ones; if the API has it by now, give its "
            "--runtime-version, from https://cloud.google.com/tpu/docs/runtimes"
        )
    if isinstance(wanted, str):
        shape = [f"--accelerator-type={wanted}"]
    elif wanted.chips < 4 and wanted.generation.counts == 2:
        refuse(
            f"--type={wanted.name}: the smallest {wanted.kind} of the Cloud TPU API has four "
            f"chips, {wanted.generation.api}-8"
        )
    elif wanted.usual:
        shape = [f"--accelerator-type={wanted.api_type}"]
    else:
        shape = [f"--type={wanted.generation.api}", f"--topology={wanted.topology}"]
    return [*shape, f"--runtime-version={runtime}"]


def _type(text: str) -> slices.Slice | str:
    """An argument type: a slice, or as it stands an accelerator type that the table lacks."""
    try:
        return slices.parse(text)
    except slices.UnknownKind as error:
        if re.fullmatch(r"[a-z]*[0-9][a-z0-9]*-[0-9]+", text, re.ASCII):
            return text
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_until = matching(
    r"([0-9]+[smhd])+|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9:]+)",
    "a duration or time, like 6h or 2027-01-31T12:00:00Z",
)
_network = matching(r"[\w./:-]+", "a network's name or path")
_runtime = matching(r"[a-z0-9][-a-z0-9.]*", "a runtime version, like v2-alpha-tpuv6e")
REQUEST = {
    "--type": (
        "create train",
        {"type": _type, "required": True, "help": "like v5litepod-256, or v5e:16x16"},
    ),
    "--slices": ("create train", {"type": positive, "default": 1, "help": "over the network [1]"}),
    "--spot": ("create train", {"action": "store_true", "help": "cheaper; may be taken away"}),
    "--reserved": ("create train", {"action": "store_true", "help": "from your reservation"}),
    "--valid-until": ("create train", {"type": _until, "help": "waits so long: 6h, or a time"}),
    "--network": ("create train", {"type": _network, "help": "of the machines [default]"}),
    "--subnetwork": ("create train", {"type": _network, "help": "in it"}),
    "--service-account": ("create train", {"type": account, "help": "that the machines act as"}),
    "--internal-ips": ("create train", {"action": "store_true", "help": "no addresses outside"}),
    "--runtime-version": ("create train", {"type": _runtime, "help": "else the one of the type"}),
}
