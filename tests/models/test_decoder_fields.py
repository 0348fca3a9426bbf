"""What the decoder's fields make of GPT-2: each against plain numpy, and all of them together."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from aigc_jax.errors import UserError
from aigc_jax.generate.decode import decode
from aigc_jax.models.transformer import GPT, TENSOR_RULES, stack_layers
from aigc_jax.parallel.sharding import state_shardings

VOCAB, BLOCK = 30, 12
GPT2 = GPT(VOCAB, BLOCK, num_layers=2, num_heads=4, embed_dim=32)
ALL = {
    "positions": "rope",
    "rope_base": 100.0,
    "norm": "rms",
    "norm_eps": 1e-6,
    "mlp": "swiglu",
    "num_kv_heads": 2,
    "qk_norm": True,
    "window": 5,
    "logit_softcap": 4.0,
    "tied_head": False,
    "use_bias": False,
}
MODERN = GPT2.clone(**ALL)
ONE_BY_ONE = [
    {},
    {"mlp": "gelu"},
    {"mlp": "relu"},
    {"mlp": "swiglu", "mlp_dim": 24},
    {"num_kv_heads": 1},
]
ONE_BY_ONE += [{name: ALL[name]} for name in ALL if name not in ("rope_base", "mlp")] + [ALL]
TOKENS = jax.random.randint(jax.random.key(1), (3, BLOCK), 0, VOCAB)


@functools.cache
def variables(model: GPT):
    """Weights far from their initialisation, scales and biases too."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape, np.float32)), shapes
    )


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens):
    return model.apply(params, tokens)


@functools.partial(jax.jit, static_argnums=0)
def extend(model, params, tokens, cache, position):
    return model.apply(params, tokens, cache, position, method="extend")


def reference(model: GPT, params, tokens) -> np.ndarray:
    """The logits of one text, token by token and head by head, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    tokens, head_dim = np.asarray(tokens), model.embed_dim // model.num_heads

    def dense(x, layer, part=...):
        return x @ layer["kernel"][part] + (layer["bias"][part] if "bias" in layer else 0.0)

    def normed(x, layer, kind=model.norm):
        if kind == "layer":
            x = x - x.mean()
        out = x / np.sqrt((x**2).mean() + model.norm_eps) * layer["scale"]
        return out + layer.get("bias", 0.0)

    def gelu(x):
        if model.mlp == "gelu":
            return x * 0.5 * (1 + np.vectorize(math.erf)(x / 2**0.5))
        return x * 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))

    def mlp(x, block):
        h = dense(x, block["mlp_in"])
        if model.mlp == "swiglu":
            gate = dense(x, block["mlp_gate"])
            return dense(gate / (1 + np.exp(-gate)) * h, block["mlp_out"])
        return dense(np.maximum(h, 0) if model.mlp == "relu" else gelu(h), block["mlp_out"])

    def turned(x, place):
        pairs = x[: head_dim // 2] + 1j * x[head_dim // 2 :]
        angle = place * model.rope_base ** (-2 * np.arange(head_dim // 2) / head_dim)
        return np.concatenate(
            [(pairs * np.exp(1j * angle)).real, (pairs * np.exp(1j * angle)).imag]
        )

    def heads(x, block, place):
        if model.num_kv_heads:
            parts = [dense(x, block["query"])] + [dense(x, block["key_value"], i) for i in (0, 1)]
        else:
            parts = [dense(x, block["qkv"], i) for i in (0, 1, 2)]
        parts = [part.reshape(-1, head_dim) for part in parts]
        for i, name in enumerate(("query_norm", "key_norm")):
            if model.qk_norm:
                parts[i] = np.stack([normed(head, block[name], "rms") for head in parts[i]])
            if model.positions == "rope":
                parts[i] = np.stack([turned(head, place) for head in parts[i]])
        return parts

    def attention(stream, block):
        q, k, v = zip(*(heads(x, block, place) for place, x in enumerate(stream)))
        out = []
        for t in range(len(stream)):
            begin = max(0, t - model.window + 1) if model.window else 0
            mixed = []
            for head in range(model.num_heads):
                shared = head * len(k[0]) // model.num_heads
                scores = np.array([q[t][head] @ k[m][shared] for m in range(begin, t + 1)])
                weights = np.exp(scores / head_dim**0.5)
                values = np.stack([v[m][shared] for m in range(begin, t + 1)])
                mixed.append(weights @ values / weights.sum())
            out.append(dense(np.concatenate(mixed), block["attention_out"]))
        return np.stack(out)

    x = params["token_embedding"][tokens]
    if model.positions == "learned":
        x = x + params["position_embedding"][: len(tokens)]
    for i in range(model.num_layers):
        block = params[f"blocks_{i}"]
        x = x + attention([normed(row, block["attention_norm"]) for row in x], block)
        x = x + np.stack([mlp(normed(row, block["mlp_norm"]), block) for row in x])
    x = np.stack([normed(row, params["final_norm"]) for row in x])
    logits = x @ params["token_embedding" if model.tied_head else "head"].T
    cap = model.logit_softcap
    return cap * np.tanh(logits / cap) if cap else logits


@pytest.mark.parametrize("fields", ONE_BY_ONE, ids=lambda f: "-".join(f) if len(f) < 3 else "all")
def test_the_logits_are_those_of_the_formulas(fields):
    model = GPT2.clone(**fields)
    found = forward(model, variables(model), TOKENS)
    np.testing.assert_allclose(found[0], reference(model, variables(model), TOKENS[0]), atol=2e-4)


def test_decoding_with_a_cache_equals_the_full_pass():
    """From padded prompts, each row at its own place."""
    params, full = variables(MODERN), forward(MODERN, variables(MODERN), TOKENS)
    lengths = jnp.array([2, 5, 4])
    prompt = jnp.stack([jnp.roll(row, 5 - n) for row, n in zip(TOKENS, lengths.tolist())])[:, :5]
    logits, cache = extend(MODERN, params, prompt, MODERN.init_cache(3), lengths - 5)
    for step in range(7):
        last = lengths + step - 1
        np.testing.assert_allclose(logits, full[jnp.arange(3), last], atol=1e-4)
        following = TOKENS[jnp.arange(3), last + 1][:, None]
        logits, cache = extend(MODERN, params, following, cache, last + 1)
    logits, cache = extend(MODERN, params, TOKENS[:, :6], MODERN.init_cache(3), 0)
    logits, _ = extend(MODERN, params, TOKENS[:, 6:7], cache, 6)
    np.testing.assert_allclose(logits, full[:, 6], atol=1e-4)


def test_the_cache_holds_the_shared_heads_alone():
    cache = MODERN.init_cache(3)[0]
    assert (cache.keys.shape, cache.values.shape) == ((3, 2, 8, BLOCK), (3, 2, BLOCK, 8))


def test_text_longer_than_the_context_goes_on():
    params, new = variables(MODERN), 2 * BLOCK
    model = functools.partial(MODERN.apply, params, method="extend")

    @jax.jit
    def greedy(prompt):
        cache, ids = MODERN.init_cache(1), jnp.arange(1)
        key = jax.random.key(0)
        return decode(key, ids, prompt, model, cache, BLOCK, new, temperature=0.0).tokens

    tokens = greedy(TOKENS[:1, :3])
    start = 0
    for t in range(3, 3 + new):
        start = t - BLOCK // 2 if t - start > BLOCK else start
        seen = jnp.pad(tokens[:, start:t], ((0, 0), (0, BLOCK - t + start)))
        assert tokens[0, t] == jnp.argmax(forward(MODERN, params, seen)[0, t - start - 1]), t


def test_stacked_blocks_are_the_same_model():
    params, scanned = variables(MODERN), MODERN.clone(scan_layers=True, remat="block")
    found = forward(scanned, stack_layers(params), TOKENS)
    np.testing.assert_allclose(found, forward(MODERN, params, TOKENS), atol=1e-4)
    _, cache = extend(scanned, stack_layers(params), TOKENS[:, :5], scanned.init_cache(3), 0)
    logits, _ = extend(scanned, stack_layers(params), TOKENS[:, 5:6], cache, 5)
    np.testing.assert_allclose(logits, found[:, 5], atol=1e-4)


def test_a_mesh_changes_nothing_and_splits_what_tensor_parallelism_splits():
    params, weights = variables(MODERN), jnp.ones(TOKENS[:2].shape)

    def loss(params, tokens):
        return MODERN.apply(params, tokens, jnp.flip(tokens), weights, method="loss")[0]

    expected = jax.jit(jax.value_and_grad(loss))(params, TOKENS[:2])
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    shardings = state_shardings(params, mesh, tensor_rules=TENSOR_RULES)
    whole = {
        path[-2].key
        for path, s in jax.tree.leaves_with_path(shardings)
        if "tensor" not in str(s.spec)
    }
    assert whole == {"attention_norm", "mlp_norm", "final_norm", "query_norm", "key_norm"}
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss))(jax.device_put(params, shardings), TOKENS[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)
    refused = pytest.raises(UserError, match=r"tensor=2 does not divide .*num_kv_heads=1; use 1")
    with jax.set_mesh(mesh), refused:
        jax.eval_shape(MODERN.clone(num_kv_heads=1).init, jax.random.key(0), TOKENS)


def test_the_loss_is_that_of_the_logits():
    params, targets = variables(MODERN), jnp.flip(TOKENS)
    weights = jax.random.uniform(jax.random.key(3), TOKENS.shape)
    loss, correct = MODERN.apply(params, TOKENS, targets, weights, method="loss")
    logits = forward(MODERN, params, TOKENS)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss, (losses * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(correct, (weights * (logits.argmax(-1) == targets)).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_kv_heads": 3},
            r"num_kv_heads=3 does not divide num_heads=4; use one of \[1, 2, 4\]",
        ),
        ({"positions": "rope", "embed_dim": 12}, "= 3 is odd; use embed_dim=16"),
        ({"positions": "rotary"}, r'unknown config\.model\.positions "rotary"'),
        ({"norm": "batch"}, r'unknown config\.model\.norm "batch"'),
        ({"mlp": "silu"}, r'unknown config\.model\.mlp "silu"'),
        ({"window": -1}, "window=-1: use 0 or more"),
        ({"logit_softcap": math.nan}, "logit_softcap=nan: use 0 or more"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(GPT2.clone(**fields).init, jax.random.key(0), TOKENS)
