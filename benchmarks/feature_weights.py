"""Writes a trained classifier as a feature network of the package, with what must be known of it.

    aigc train --config=configs/classifier/digits.py --workdir=runs/digits
    python benchmarks/feature_weights.py digits runs/digits
    aigc train --config=configs/classifier/digits.py:fashion --workdir=runs/fashion
    python benchmarks/feature_weights.py fashion runs/fashion

`aigc_jax/metrics/weights/index.json` gets the checksum, the accuracy on the 10,000 test images, and
the floor: every metric of 10,000 training images (the first of the split) against them.
"""

import hashlib
import json
import sys
import time

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

import aigc_jax
from aigc_jax.config import base
from aigc_jax.metrics import measure, networks
from aigc_jax.parallel.mesh import make_mesh

METRICS = ("frechet", "kid", "prdc", "inception_score", "class_histogram")


def main(name: str, workdir: str) -> None:
    run = aigc_jax.load(workdir)
    path, index = networks.WEIGHTS / f"{name}-v1.safetensors", networks.WEIGHTS / "index.json"
    arrays = flatten_dict(run.params["model"], sep="/")
    save_file({key: np.asarray(x, np.float32) for key, x in arrays.items()}, path)
    known = json.loads(index.read_text()) if index.exists() else {}
    known[name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    index.write_text(json.dumps(known, indent=2) + "\n")

    data = {split: run.experiment.load(split) for split in ("train[:10000]", "test")}
    raw = {split: of.fetch(np.arange(of.size)) for split, of in data.items()}
    network = networks.feature_network(name, raw["test"]["image"].shape[1:])
    extract = networks.extractor(network, make_mesh(base().parallel, jax.devices()[:1]), 500)
    begin = time.perf_counter()
    train, test = (extract(of["image"]) for of in raw.values())
    extracted = time.perf_counter()
    options = measure.Options()
    floor = measure.measure(METRICS, measure.Sets(test, train), options)
    measured = time.perf_counter()
    known[name] |= {
        "network": network.card["network"],
        "trained": f"configs/classifier, {run.config.train.duration} of {run.config.data.source}",
        "parameters": int(sum(np.size(x) for x in arrays.values())),
        "test_accuracy": float(np.mean(test.logits.argmax(-1) == raw["test"]["label"])),
        "floor": {key: round(value, 6) for key, value in floor.items()},
        "floor_protocol": f"{data['train[:10000]'].name}: train[:10000] as generated, test as real",
    }
    index.write_text(json.dumps(known, indent=2) + "\n")
    print(json.dumps(known[name], indent=2))
    print(f"features {extracted - begin:.1f} s, metrics {measured - extracted:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
