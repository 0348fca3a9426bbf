"""One process of a run, for `test_processes.py`: `python member.py PLAN.json`.

Joins as `aigc` does, carries out the plan and writes what it saw to `PLAN.json.PROCESS`: the rows
that this process asked its data sets for, and the last report.
"""

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

from runs import make_config

from aigc_jax import command_line, running
from aigc_jax.__main__ import PROCESSES
from aigc_jax.data import source


def main(path: Path) -> None:
    plan = json.loads(path.read_text())
    me = int(os.environ["JAX_PROCESS_ID"])
    seen = {"rows": {}, "report": None}
    load = source.load

    def noting(data_config, split, *, train=None):
        data = load(data_config, split, train=train)
        rows = seen["rows"].setdefault(split, [])

        def fetch(indices):
            rows.append(indices.tolist())
            if split == config.data.split:
                if me == plan["to"] and len(rows) == plan["sigterm_after"]:
                    signal.raise_signal(getattr(signal, plan["signal"]))
                time.sleep(plan["sleep"])  # so that the run is not over before they agree
            return data.fetch(indices)

        return dataclasses.replace(data, fetch=fetch)

    source.load = noting
    config = make_config("vae", **plan["config"])
    workdir = Path(plan["workdir"])
    flags = command_line.parse(PROCESSES, [])[0]
    with running.joined(flags, config):
        from aigc_jax.evaluate import evaluate
        from aigc_jax.sample import generate
        from aigc_jax.tasks.task import Settings
        from aigc_jax.train import train

        result = train(config, workdir)
        if not result["stopped"]:
            seen["report"] = evaluate(config, workdir)
            generate(config, workdir, Settings(), num=16)
    path.with_name(f"{path.name}.{me}").write_text(json.dumps(seen))
    sys.exit(128 + signal.Signals[result["stopped"]] if result["stopped"] else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
