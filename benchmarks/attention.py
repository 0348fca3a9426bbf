"""What a model may attend by, on this machine: how far from float32, and how long.

  python benchmarks/attention.py                                GPT-2's heads, 8 x 1,024 tokens
  python benchmarks/attention.py --batch=32 --dtype=float32

Of each kind of attention output and gradients are made by the reference (`ops.attention`) in
float32 with products in full precision; against that stand the reference in `--dtype`,
`jax.nn.dot_product_attention` (cuDNN's kernel on a GPU, where it applies) and, on a TPU, the splash
kernel. An error is the largest difference in units of the largest value, over the output and the
three gradients. Milliseconds are of one call of both passes. The last line on stdout is one JSON
object.
"""

import argparse
import functools
import json
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.bench import measure
from aigc_jax.ops import attention as ops

WINDOW = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--kv-heads", type=int, default=4, help="of the kind 'shared heads'")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    if min(args.batch, args.length, args.kv_heads, args.head_dim, args.rounds) < 1:
        parser.error("sizes and rounds are at least 1")
    if args.heads < args.kv_heads or args.heads % args.kv_heads:
        parser.error(f"--kv-heads={args.kv_heads} does not divide --heads={args.heads}")
    kinds = {}
    for name, (settings, kv_heads) in kinds_of(args).items():
        kinds[name] = compare(settings, kv_heads, args)
        for by, found in kinds[name].items():
            print(f"{name:18} {by:12} {found['ms']:8.2f} ms   error {found['error']:.1e}")
    sizes = {k: getattr(args, k) for k in ("batch", "length", "heads", "head_dim", "dtype")}
    device = jax.local_devices()[0].device_kind
    about = {"device": device, "jax": jax.__version__, "rounds": args.rounds, **sizes}
    print(json.dumps({**about, "kinds": kinds}))


def kinds_of(args) -> dict[str, tuple[dict, int]]:
    """Name -> the keyword arguments of a kind of attention, and its heads of keys and values."""
    documents = 3 * jnp.arange(args.length) // args.length
    padded = (jnp.arange(args.length) < args.length * 3 // 4).astype(jnp.int32)
    documents, padded = (
        jnp.broadcast_to(x, (args.batch, args.length)) for x in (documents, padded)
    )
    return {
        "causal": ({}, args.heads),
        "window": ({"window": WINDOW}, args.heads),
        "documents": ({"segments": documents}, args.heads),
        "shared heads": ({}, args.kv_heads),
        "encoder": ({"causal": False}, args.heads),
        "encoder, padding": ({"causal": False, "segments": padded}, args.heads),
    }


def compare(settings: dict, kv_heads: int, args) -> dict[str, dict[str, float]]:
    """What attends -> its error and its milliseconds."""
    heads = (args.heads, kv_heads, kv_heads, args.heads)
    keys = jax.random.split(jax.random.key(0), 4)
    *operands, cotangent = (
        jax.random.normal(key, (args.batch, args.length, n, args.head_dim)).astype(args.dtype)
        for key, n in zip(keys, heads)
    )

    def both_passes(attend, operands, cotangent):
        out, pull = jax.vjp(functools.partial(attend, **settings), *operands)
        return out, pull(cotangent)

    ways = {"reference": reference, "dot_product": ops.dot_product_attention}
    if jax.default_backend() == "tpu":
        ways["splash"] = ops.splash_attention
    with jax.default_matmul_precision("highest"):
        exact = [x.astype(jnp.float32) for x in (*operands, cotangent)]
        run = jax.jit(functools.partial(both_passes, reference))
        expected = [np.asarray(x) for x in jax.tree.leaves(run(exact[:3], exact[3]))]
    found = {}
    for name, attend in ways.items():
        run = jax.jit(functools.partial(both_passes, attend))
        values = jax.tree.leaves(run(operands, cotangent))
        errors = [
            np.abs(np.asarray(x, np.float32) - y).max() / np.abs(y).max()
            for x, y in zip(values, expected)
        ]
        seconds = measure(lambda run=run: run(operands, cotangent), args.rounds)
        found[name] = {"error": float(max(errors)), "ms": 1000 * statistics.median(seconds)}
    return found


def reference(query, key, value, *, causal=True, window=0, segments=None):
    if causal:
        return ops.causal_attention(query, key, value, window=window, segments=segments)
    visible = None if segments is None else ops.same_segment(segments, segments)
    return ops.attention(query, key, value, visible)


if __name__ == "__main__":
    main()
