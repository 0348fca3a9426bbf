"""Each loss of the VAEs is the same number however its step is run."""

import jax
import numpy as np
import pytest
from runs import assert_close, trained

# See tests/parallel/test_compile.py.
SUMS = {"rtol": 2e-4, "atol": 2e-5}
PARAMS = {"rtol": 1e-2, "atol": 5e-4}

CONFIGS = ("vae/burda.py:dreg3-smoke", "vae/burda.py:iwae2-2layers-smoke", "vae/vqvae.py:smoke")


@pytest.mark.parametrize("config", CONFIGS)
def test_one_device_equals_pmap_and_jit_in_microbatches(config):
    config = f"configs/{config}"
    one = trained(config, devices=1)
    many = [trained(config, parallel__mode="pmap", train__accumulate=2)]
    if "vqvae" in config:  # its statistics are global without a sum over devices
        many.append(trained(config))
    for state, metrics in many:
        for values, expected in zip(metrics, one[1], strict=True):
            assert values.keys() == expected.keys()
            for name, value in values.items():
                np.testing.assert_allclose(value, expected[name], err_msg=name, **SUMS)
        for network in ("params", "stats"):
            found = getattr(state.networks["model"], network)
            assert_close(found, getattr(one[0].networks["model"], network), **PARAMS)
    assert jax.tree.leaves(one[0].networks["model"].params)
