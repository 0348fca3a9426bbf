"""Model FLOPs of a computation, and the FLOP/s that a device could do.

What is counted: two FLOPs (a multiplication and an addition) for each product in a matrix
multiplication or a convolution. Elementwise work, reductions, normalisation, softmax, look-ups and
the optimizer are not counted; in every model here they are a small share of the arithmetic.
"""

import math
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters import partial_eval
from jax.sharding import NamedSharding, PartitionSpec


def count(fn: Callable, *args: Any, needed: bool = False) -> int:
    """FLOPs of `fn(*args)` over all devices, read off its jaxpr: nothing is compiled or run.

    `count(task.train_step, state, batch, key)` is the model FLOPs of a training step. As a compiler
    would, it leaves out what no output needs and counts the same product of the same arrays once
    (a GAN's two losses both generate images from the same noise). Beyond that:

    - matrix multiplication: 2 m n k, times the batch dimensions;
    - convolution: 2 x examples x channels in (of a group) x channels out, times taps x positions in
      each spatial dimension, the positions being those of the output or of the input, whichever are
      fewer. Products with padding count, as in the literature's figures; products with the zeros
      that dilate an input do not. So a strided convolution, the transposed convolution that is its
      adjoint, and the gradients of both all count the same;
    - scan: its body times its length;
    - cond: its most expensive branch; of `lax.platform_dependent` the default one, which is what an
      accelerator would run;
    - remat: what it computes again counts, so this is more than the model FLOPs of MFU. Count the
      same model without remat for those;
    - shard_map and pmap: the body on one device times the devices;
    - a Pallas kernel: see `kernel_flops`;
    - cuDNN's attention: 2 x batch x heads x head_dim for each score that its mask leaves (of a
      causal one about half) in each of its products, two forward and five backward, of which the
      scores are computed again. Documents and padding are no such mask.

    Args:
        fn: what to count.
        *args: its arguments, as arrays or `jax.ShapeDtypeStruct`s.
        needed: leave out what kernels compute for a second time.

    Raises:
        ValueError: there are FLOPs in a while loop, whose trip count is unknown, or in a kernel
            that `kernel_flops` does not know.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count_scope(jaxpr, needed)


# Kernels by the start of their names: how many products of the scores' shape each computes, and how
# many of those no other kernel does. Backward, both kernels compute the scores and the gradient of
# the weights; from these one makes the gradients of keys and values and the other the queries'.
_KERNELS = {"splash_mha_fwd": (2, 2), "splash_mha_dkv": (4, 3), "splash_mha_dq": (3, 1)}


def kernel_flops(
    name: str, masks: list[tuple[int, ...]], arrays: list[tuple[int, ...]], needed: bool = False
) -> int:
    """FLOPs of one call of JAX's splash attention with a causal mask (`aigc_jax.ops.attention`).

    The scores are computed in blocks and only blocks with something to see, so of n x n blocks the
    n (n + 1) / 2 on and below the diagonal: a little more than the causal half, T^2 / 2. Each of a
    kernel's products has 2 x batch x heads x T^2 x head_dim x (n + 1) / 2n FLOPs: two forward, four
    and three backward. Of these nine, six are needed, as without a kernel; the other three are the
    scores twice and the gradient of the weights once, computed again to save memory.

    Args:
        name: of the kernel, as in a jaxpr's `pallas_call` or the name of an HLO `custom-call`.
        masks: shapes of its integer operands, the first `[..., n, n]`.
        arrays: shapes of the others, the first two `[..., T, head_dim]`, the queries and the keys.
        needed: leave out what is computed again.

    Raises:
        ValueError: the kernel is another one.
    """
    for start, products in _KERNELS.items():
        if name.startswith(start):
            blocks = masks[0][-1]
            whole = 2 * products[needed] * math.prod(arrays[0]) * arrays[1][-2]
            return whole * (blocks + 1) // (2 * blocks)
    raise ValueError(
        f"cannot count the FLOPs of the kernel {name}; known: {', '.join(_KERNELS)} (flops.py)"
    )


def transformer_training(
    matmul_params: int,
    num_layers: int,
    num_heads: int,
    head_dim: int,
    length: int,
    causal_half: bool = False,
) -> int:
    """FLOPs per token, forward and backward: 6 N + 12 L H Q T (Chowdhery et al. 2022, appendix B).

    Each parameter costs one multiplication and one addition forward and twice that backward; the
    second term is the same count for query x key and weights x value.

    Args:
        matmul_params: N, the parameters that multiply activations; see `matmul_params`.
        num_layers: L.
        num_heads: H.
        head_dim: Q.
        length: T, tokens in a sequence.
        causal_half: count half of the attention scores, the ones that a causal mask leaves. False
            counts them all, as the paper does and as `count` does.
    """
    attention = 12 * num_layers * num_heads * head_dim * length
    return 6 * matmul_params + (attention // 2 if causal_half else attention)


def matmul_params(params: Any) -> int:
    """N of `transformer_training` for a transformer whose head is its token embedding.

    Everything of rank two or more but the position embedding. The token embedding counts once: as
    the head it is a matrix multiplication, as a look-up it is not. Biases and norms are left out.
    """

    def size(path, leaf):
        name = path[-1].key
        return 0 if leaf.ndim < 2 or name in ("bias", "scale", "position_embedding") else leaf.size

    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(size, params)))


def measured_peak(dtype: str, size: int, repeats: int = 5) -> float:
    """FLOP/s of a `size`^3 matrix multiplication split over all local devices: the best of several.

    Where no peak is published this is what a run on the same machine is compared with. Unlike
    `peak_flops` it is the figure for all devices together.
    """
    devices = jax.local_devices()
    rows = math.ceil(size / len(devices)) * len(devices)
    mesh = jax.make_mesh(
        (len(devices),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )
    lhs = jax.device_put(jnp.ones((rows, size), dtype), NamedSharding(mesh, PartitionSpec("rows")))
    rhs = jax.device_put(jnp.ones((size, size), dtype), NamedSharding(mesh, PartitionSpec()))
    matmul = jax.jit(jnp.dot)
    matmul(lhs, rhs).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        matmul(lhs, rhs).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * rows * size * size / min(seconds)


# Calls whose body is as good as written in place of them.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")


def _count_scope(jaxpr: Jaxpr, needed: bool) -> int:
    """FLOPs of a jaxpr whose equations are compared with each other and with no others."""
    inputs: list[Hashable] = [("input", i) for i in range(len(jaxpr.invars))]
    flops, _ = _count_equations(jaxpr, inputs, {}, needed)
    return flops


def _count_equations(
    jaxpr: Jaxpr, inputs: list[Hashable], seen: dict[Hashable, int], needed: bool
) -> tuple[int, list[Hashable]]:
    """FLOPs of the equations that are not in `seen`, and names of the outputs' values.

    A value's name is the equation that made it, numbered in `seen` by its primitive, parameters and
    the names of its inputs: equal names are equal values.
    """
    names: dict[Any, Hashable] = dict(zip(jaxpr.invars, inputs))
    names.update((var, ("constant", id(var))) for var in jaxpr.constvars)

    def name(atom):
        if isinstance(atom, Literal):
            return ("literal", str(atom.aval), repr(atom.val))
        return names[atom]

    flops = 0
    for eqn in jaxpr.eqns:
        operands = [name(atom) for atom in eqn.invars]
        body = _inlined(eqn)
        if body is not None:
            # The index of a platform's branch is no argument of the branch.
            operands = operands[len(operands) - len(body.invars) :]
            body_flops, results = _count_equations(body, operands, seen, needed)
            flops += body_flops
        else:
            key = _key(eqn, operands)
            if key not in seen:
                seen[key] = len(seen)
                flops += _count_equation(eqn, needed)
            results = [(seen[key], i) for i in range(len(eqn.outvars))]
        names.update(zip(eqn.outvars, results))
    return flops, [name(atom) for atom in jaxpr.outvars]


def _inlined(eqn: JaxprEqn) -> Jaxpr | None:
    """The body of a call, or the default branch of `lax.platform_dependent`, which comes last."""
    if eqn.primitive.name in _CALLS:
        body = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    elif eqn.params.get("branches_platforms"):
        body = eqn.params["branches"][-1]
    else:
        return None
    return body.jaxpr if isinstance(body, ClosedJaxpr) else body


def _key(eqn: JaxprEqn, operands: list[Hashable]) -> Hashable:
    key = (eqn.primitive, tuple(sorted(eqn.params.items(), key=lambda p: p[0])), tuple(operands))
    try:
        hash(key)
    except TypeError:
        return object()
    # Rematerialisation exists to compute a thing twice: it is never merged with anything.
    return object() if eqn.effects or "prevent_cse" in eqn.params else key


def _count_equation(eqn: JaxprEqn, needed: bool) -> int:
    params = eqn.params
    if eqn.primitive.name == "pallas_call":
        avals = [var.aval for var in eqn.invars]
        masks = [x.shape for x in avals if jnp.issubdtype(x.dtype, jnp.integer)]
        arrays = [x.shape for x in avals if jnp.issubdtype(x.dtype, jnp.floating)]
        return kernel_flops(params["name"], masks, arrays, needed)
    if eqn.primitive.name in _CUDNN:
        return _CUDNN[eqn.primitive.name][needed] * _count_scores(eqn)
    bodies = [_count_scope(body, needed) for body in _bodies(params)]
    match eqn.primitive.name:
        case "dot_general":
            return _count_dot(eqn)
        case "conv_general_dilated":
            return _count_convolution(eqn)
        case "scan":
            return params["length"] * sum(bodies)
        case "cond":
            return max(bodies)
        case "shard_map":
            axes = params.get("newly_manual_axes", params["mesh"].axis_names)
            return math.prod(params["mesh"].shape[axis] for axis in axes) * sum(bodies)
        case "while" if any(bodies):
            raise ValueError(
                "cannot count the FLOPs of while: how often its body runs is not known; use "
                "lax.scan or lax.fori_loop with static bounds"
            )
    return sum(bodies)


# Products of the scores' shape in cuDNN's attention, and those that no other pass does.
_CUDNN = {"dot_product_attention_fwd_wrapper": (2, 2), "dot_product_attention_bwd_wrapper": (5, 4)}


def _count_scores(eqn: JaxprEqn) -> int:
    """FLOPs of one product that makes the scores of cuDNN's attention, `[batch length heads dim]`
    by `[batch memory heads dim]`."""
    query, key = (var.aval.shape for var in eqn.invars[:2])
    length, memory = query[1], key[1]
    seen = length * memory
    if eqn.params["mask_type"].name == "CAUSAL":
        window = eqn.params["sliding_window_length"] or length
        seen = sum(min(place + 1, window) for place in range(length))
    return 2 * query[0] * query[2] * query[3] * seen


def _bodies(params: dict[str, Any]) -> list[Jaxpr]:
    """The jaxprs among an equation's parameters."""
    values = [
        value
        for param in params.values()
        for value in (param if isinstance(param, tuple | list) else (param,))
    ]
    return [
        value.jaxpr if isinstance(value, ClosedJaxpr) else value
        for value in values
        if isinstance(value, ClosedJaxpr | Jaxpr)
    ]


def _count_dot(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contracted)


def _count_convolution(eqn: JaxprEqn) -> int:
    """Of a spatial dimension's input, window and output positions, any two determine the third.

    So the two smallest sizes multiply: window x output in a strided convolution, window x input in
    a transposed one, and the same two, in other roles, in the gradients of both.
    """
    numbers = eqn.params["dimension_numbers"]
    lhs, rhs, out = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    _, window_in, *window_axes = numbers.rhs_spec
    batch, out_features, *out_axes = numbers.out_spec
    # `rhs` holds the channels of one group only: groups need no further care.
    products = out[batch] * out[out_features] * rhs[window_in]
    for axes in zip(numbers.lhs_spec[2:], window_axes, out_axes):
        sizes = sorted(shape[axis] for shape, axis in zip((lhs, rhs, out), axes))
        products *= sizes[0] * sizes[1]
    return 2 * products
