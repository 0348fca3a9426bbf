"""Makes `metrics.json` and `inception.json`: what prdc, torch-fidelity and scikit-image say.

pip install torch torchvision torch-fidelity==0.4.0 prdc==0.2 scikit-image
python tests/golden/make_metric_goldens.py
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import prdc
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "metrics"), str(HERE.parent.parent)]

import sets  # noqa: E402

from aigc_jax.models.features import inception  # noqa: E402


def of_prdc(real, fake):
    return {k: float(v) for k, v in prdc.compute_prdc(real, fake, nearest_k=5).items()}


def of_features(shape):
    real, fake = sets.features(shape)
    n = min(len(real), len(fake))  # torch-fidelity takes subsets of one size
    tensors = [torch.from_numpy(x) for x in (real, fake)]
    stats = [fid_features_to_statistics(x.double()) for x in tensors]
    equal = [x[:n].double() for x in tensors]
    kid = kid_features_to_metric(*equal, kid_subsets=1, kid_subset_size=n, verbose=False)
    return {
        "prdc": of_prdc(real, fake),
        "frechet": fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"],
        "kid": kid["kernel_inception_distance_mean"],
    }


def of_logits():
    x = torch.from_numpy(sets.logits())
    return {
        str(splits): list(isc_features_to_metric(x, splits=splits, shuffle=False).values())
        for splits in (1, 5)
    }


def of_pairs():
    pairs = list(zip(*sets.images()))
    settings = {
        "channel_axis": 2,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
    }
    return {
        "psnr": [float(peak_signal_noise_ratio(a, b, data_range=255)) for a, b in pairs],
        "ssim": [float(structural_similarity(a, b, data_range=255, **settings)) for a, b in pairs],
    }


def of_inception():
    """Of each block the mean over places of its first channels, under random weights."""
    state = sets.inception_state(inception.shapes())
    tensors = {name: torch.from_numpy(x) for name, x in state.items()}
    tensors["fc.bias"] = torch.zeros(inception.CLASSES)
    tensors |= {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(0)
        for name in state
        if name.endswith("running_var")
    }
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(tensors, file.name)
        network = FeatureExtractorInceptionV3("it", ["2048", "logits_unbiased"], file.name)
    found = {}
    for name in inception.BLOCKS:
        network.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: found.update({name: out.mean(dim=(2, 3))[:, ::61]})
        )
    x = torch.from_numpy(sets.inception_images()).permute(0, 3, 1, 2)
    features, logits = network(x)
    found |= {"features": features[:, ::61], "logits": logits[:, ::61]}
    return {name: np.asarray(value, np.float64).tolist() for name, value in found.items()}


def main():
    found = {
        "small": of_features(sets.SMALL),
        "wide": of_features(sets.WIDE),
        "gaussian": of_prdc(*sets.gaussian()),
        "inception_score": of_logits(),
        "pairs": of_pairs(),
    }
    for name, values in (("metrics", found), ("inception", of_inception())):
        (HERE / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
