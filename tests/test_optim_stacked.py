"""Arrays that are stacked, by layer or side by side, are updated as arrays of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_optim import HIDDEN, make

from aigc_jax import optim
from aigc_jax.models.transformer.stacking import stack_layers, unstack_layers


def blocks(*scales):
    return {
        f"blocks_{i}": {
            "qkv": {"kernel": scale * jnp.stack([HIDDEN] * 3)},
            "mlp": {"kernel": scale * HIDDEN, "bias": scale * jnp.ones(6)},
        }
        for i, scale in enumerate(scales)
    }


EMBEDDING = {"embedding": jnp.linspace(1.0, 2.0, 20).reshape(5, 4)}
DECODER = {**EMBEDDING, **blocks(1.0, 5.0, 0.1)}
BOTH = {**EMBEDDING, "encoder": blocks(1.0, 5.0), "decoder": blocks(0.1, 2.0, 3.0)}
NORMS = [name for name, row in optim.OPTIMIZERS.items() if row.norms]


@pytest.mark.parametrize(
    ("name", "layers"),
    [*((name, DECODER) for name in sorted(optim.OPTIMIZERS)), *((name, BOTH) for name in NORMS)],
)
def test_stacked_layers_are_updated_as_layers_of_their_own(name, layers):
    decay = 0.01 if optim.OPTIMIZERS[name].decay else 0.0
    tx, _ = make(name, 0.1, weight_decay=decay, schedule="linear", warmup="2 steps")

    def train(params):
        state = tx.init(params)
        for _ in range(3):
            grads = jax.tree.map(lambda p: jnp.sin(3 * p), params)
            updates, state = jax.jit(tx.update)(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    expected, found = train(layers), unstack_layers(train(stack_layers(layers)))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), found, expected
    )


def test_muon_takes_keys_and_values_side_by_side_for_the_matrices_that_they_are():
    """As many as queries or fewer, of the text or of what cross-attention sees."""
    side_by_side = {"kernel": jnp.stack([HIDDEN] * 2), "bias": jnp.ones((2, 6))}
    adapter = {"lora": {"a": HIDDEN, "b": jnp.stack([HIDDEN.T] * 2)}}
    block = {name: {**side_by_side, **adapter} for name in ("key_value", "cross_key_value")}
    for params in (block, {"blocks": jax.tree.map(lambda x: jnp.stack([x] * 2), block)}):
        labels = jax.tree_util.tree_map_with_path(optim._muon_or_adamw, params)
        decayed = optim.matrices(params)
        for name in block:
            label, decays = (tree.get("blocks", tree)[name] for tree in (labels, decayed))
            assert label["kernel"] == "muon"
            assert label["bias"] == "adamw"
            assert decays == {"kernel": True, "bias": False, "lora": {"a": True, "b": True}}
