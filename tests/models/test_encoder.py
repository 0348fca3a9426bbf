"""BERT against plain numpy, and what padding, documents, scans and places mean to it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.models.transformer import BERT, stack_layers, unstack_layers

VOCAB, BLOCK, HEADS, WIDTH = 19, 8, 2, 12
MODEL = BERT(VOCAB, BLOCK, num_layers=2, num_heads=HEADS, embed_dim=WIDTH, pooler=True)
TOKENS = jax.random.randint(jax.random.key(1), (2, BLOCK), 0, VOCAB)
TYPES = jnp.asarray([[0, 0, 0, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0, 1, 0]])
SEEN = jnp.asarray([[1, 1, 1, 1, 1, 0, 0, 0], [1] * 8])


@functools.cache
def variables():
    """Weights far from their initialisation, biases and scales too."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), TOKENS)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape, "f4")), shapes)


def reference(tokens, types) -> tuple[np.ndarray, np.ndarray]:
    """Logits and pooled vector of one text, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables()["params"])
    dense = lambda x, layer: x @ layer["kernel"] + layer["bias"]  # noqa: E731
    gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))

    def normed(x, layer):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * layer["scale"] + layer["bias"]

    x = p["token_embedding"][tokens] + p["position_embedding"][: len(tokens)]
    x = normed(x + p["token_type_embedding"][types], p["embedding_norm"])
    for i in range(2):
        block, size = p[f"blocks_{i}"], WIDTH // HEADS
        q, k, v = (x @ block["qkv"]["kernel"][j] + block["qkv"]["bias"][j] for j in range(3))
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
        h = dense(np.concatenate(heads, -1), block["attention_out"])
        x = normed(x + h, block["attention_norm"])
        h = dense(gelu(dense(x, block["mlp_in"])), block["mlp_out"])
        x = normed(x + h, block["mlp_norm"])
    pooled = np.tanh(dense(x[0], p["pooler_dense"]))
    x = normed(gelu(dense(x, p["mlm_dense"])), p["mlm_norm"])
    return x @ p["token_embedding"].T + p["mlm_bias"], pooled


apply = functools.partial(jax.jit, static_argnames=("model", "method"))(
    lambda model, variables, *args, method=None: model.apply(variables, *args, method=method)
)


def test_logits_and_pooled_vectors_are_berts():
    logits = apply(MODEL, variables(), TOKENS, None, SEEN, TYPES)
    pooled = apply(MODEL, variables(), TOKENS, None, SEEN, TYPES, method="pooled")
    for row, length in enumerate((5, 8)):
        expected = reference(np.asarray(TOKENS[row, :length]), np.asarray(TYPES[row, :length]))
        np.testing.assert_allclose(logits[row, :length], expected[0], atol=2e-5)
        np.testing.assert_allclose(pooled[row], expected[1], atol=1e-5)


@pytest.mark.parametrize("fields", [{"scan_layers": True}, {"attention": "dot_product"}])
def test_scan_and_another_attention_change_nothing(fields):
    params = variables()["params"]
    params = stack_layers(params) if "scan_layers" in fields else params
    other = MODEL.clone(**fields, remat="block")
    found = apply(other, {"params": params}, TOKENS, None, SEEN)
    np.testing.assert_allclose(found, apply(MODEL, variables(), TOKENS, None, SEEN), atol=1e-5)
    if "scan_layers" in fields:
        jax.tree.map(np.testing.assert_array_equal, unstack_layers(params), variables()["params"])


def test_the_loss_looks_at_the_places_alone():
    places = jnp.asarray([[1, 4], [0, 7]])
    targets, weights = jnp.asarray([[3, 4], [5, 6]]), jnp.asarray([[1.0, 0.5], [2.0, 0.0]])
    operands = (TOKENS, places, targets, weights, None, SEEN)
    loss, correct = apply(MODEL, variables(), *operands, method="loss")
    logits = apply(MODEL, variables(), TOKENS, None, SEEN)
    logits = np.take_along_axis(np.asarray(logits), np.asarray(places)[..., None], 1)
    np.testing.assert_allclose(
        apply(MODEL, variables(), TOKENS, places, SEEN, method="at"), logits, atol=1e-5
    )
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], 2)
    np.testing.assert_allclose(loss, -(chosen[..., 0] * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(correct, ((logits.argmax(-1) == targets) * weights).sum())


def test_too_many_tokens_are_refused():
    with pytest.raises(UserError, match="9 tokens do not fit"):
        MODEL.apply(variables(), jnp.zeros((1, 9), jnp.int32))
