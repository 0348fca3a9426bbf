"""LoRA: low-rank adapters beside the dense layers of a linen module (Hu et al. 2021).

A dense layer `y = x W + b` becomes `y = x W + b + scale * (x A) B` (their equation 3) with `A`
`[inputs, rank]` and `B` `[rank, outputs]`, which begins at zero. The module is not edited: linen
calls an interceptor around every method, and that adds the second term, so `A` and `B` lie beside
the kernel, as `lora/a` and `lora/b`, whether blocks are scanned, rematerialised or split or not.

Layers that lie side by side in one kernel (`StackedDense`: queries, keys and values) share `A` and
have a `B` each, `[parts, rank, outputs]`. So GPT-2's `c_attn` is adapted where it is one matrix.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from aigc_jax.errors import UserError
from aigc_jax.models.layers import Dropout
from aigc_jax.models.transformer.projections import StackedDense, TensorParallelDense
from aigc_jax.ops.layout import unshard

KEY = "config.train.lora"
NAME = "lora"
ADAPTER = rf"/{NAME}/[ab]$"
"""What is found in the path of an adapter's parameter."""
DENSE = (nn.Dense, TensorParallelDense, StackedDense)

M = TypeVar("M", bound=nn.Module)


class LoRA(NamedTuple):
    """
    Attributes:
        patterns: regular expressions; a dense layer in whose path (`NETWORK/blocks_0/qkv`) one is
            found is adapted.
        rank: of each adapter.
        alpha: an adapter is scaled by `alpha / rank`.
        dropout: rate, on what adapters read, in training.
        rslora: scale by `alpha / sqrt(rank)` (Kalajdzievski 2023, equation 4), with which large
            ranks learn as fast as small ones.
        network: the name that paths begin with.
    """

    patterns: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    network: str = "model"

    @property
    def scale(self) -> float:
        """What `(x A) B` is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def adapts(self, path: str) -> bool:
        """Whether a dense layer of this path (`blocks_0/qkv`) is adapted."""
        return any(re.search(pattern, f"{self.network}/{path}") for pattern in self.patterns)


def adapted(module: M, lora: LoRA) -> M:
    """The module with adapters: of the same class and fields, and with `init` and `apply` under the
    interceptor. `init` draws the parameters that it draws without adapters, and those of the
    adapters beside them.

    Dropout of adapters is on where the method that is applied takes `ids` and they are given, as it
    is for `models.layers.Dropout`.
    """
    names = [f.name for f in dataclasses.fields(module) if f.init]
    fields = {name: getattr(module, name) for name in names if name not in ("parent", "name")}
    return _with_adapters(type(module))(**fields, lora=lora)


def merged(params: Any, scale: float) -> Any:
    """The parameters of the module without adapters that computes the same: kernels are
    `W + scale A B`, summed in float64 and rounded once.

    Args:
        params: a tree of arrays on the host, blocks stacked or not.
        scale: `LoRA.scale` of what they were trained with.
    """
    if not isinstance(params, Mapping):
        return params
    if NAME not in params:
        return {name: merged(node, scale) for name, node in params.items()}
    a, b = (np.asarray(params[NAME][side], np.float64) for side in "ab")
    kernel = np.asarray(params["kernel"])
    delta = scale * np.matmul(a if a.ndim == b.ndim else a[..., None, :, :], b)
    rest = {name: x for name, x in params.items() if name != NAME}
    return {**rest, "kernel": (kernel + delta).astype(kernel.dtype)}


def is_adapter(path: str) -> bool:
    """Whether a parameter is of an adapter, by its path."""
    return bool(re.search(ADAPTER, path))


def adapted_paths(params: Any) -> list[str]:
    """The paths of the layers of a tree that have adapters, in order."""
    paths = flatten_dict(params, sep="/")
    return sorted({re.sub(ADAPTER, "", path) for path in paths if is_adapter(path)})


def check_patterns(networks: Mapping[str, Any], patterns: tuple[str, ...]) -> None:
    """Every pattern adapts a layer, or a `UserError` shows the layers that there are.

    Args:
        networks: the parameters (arrays or shapes) of each network, adapters among them.
        patterns: `LoRA.patterns`.
    """
    found, dense = [], []
    for name, params in networks.items():
        found += [f"{name}/{path}" for path in adapted_paths(params)]
        paths = flatten_dict(params, sep="/")
        dense += [f"{name}/{p.rpartition('/')[0]}" for p in paths if p.endswith("/kernel")]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in found):
            kinds = {re.sub(r"\d+", "N", path): path for path in reversed(dense)}  # one of each
            shown = ", ".join(sorted(kinds.values())[:12])
            raise UserError(
                f'{KEY}.patterns: "{pattern}" matches no dense layer; there are (one of each '
                f"kind) {shown}"
            )


@functools.cache
def _with_adapters(cls: type[nn.Module]) -> Any:
    class Adapted(cls):
        lora: LoRA = LoRA(())

        @nn.nowrap
        def init(self, *args, **kwargs):
            with nn.intercept_methods(_interceptor(self.lora, None)):
                return super().init(*args, **kwargs)

        @nn.nowrap
        def apply(self, variables, *args, rngs=None, method=None, **kwargs):
            called = getattr(cls, method or "__call__") if not callable(method) else method
            given = inspect.signature(called).bind_partial(self, *args).arguments
            ids = kwargs.get("ids", given.get("ids"))
            with nn.intercept_methods(_interceptor(self.lora, ids)):
                return super().apply(variables, *args, rngs=rngs, method=method, **kwargs)

    Adapted.__name__, Adapted.__qualname__ = cls.__name__, cls.__qualname__
    return Adapted


def _interceptor(lora: LoRA, ids: Int[Array, "batch"] | None) -> Callable:
    def add(next_call, args, kwargs, context):
        out = next_call(*args, **kwargs)
        layer = context.module
        if context.method_name != "__call__" or not isinstance(layer, DENSE):
            return out
        if not lora.adapts("/".join(layer.path)):
            return out
        stacked = isinstance(layer, StackedDense)
        parts = layer.parts if isinstance(layer, StackedDense) else 0
        axis = 1 if stacked else getattr(layer, "tensor_axis", None)
        values = (lora.rank, lora.scale, lora.dropout, parts, axis)
        return Adapter(*values, name=NAME, parent=layer)(args[0], out, ids)

    return add


class Adapter(nn.Module):
    """What is added to a dense layer.

    Attributes:
        rank, scale, dropout: as in `LoRA`.
        parts: of a `StackedDense`; 0 of one layer alone.
        tensor_axis: which axis of the kernel tensor parallelism splits: of its rows A is split, of
            its columns B.
    """

    rank: int
    scale: float
    dropout: float
    parts: int
    tensor_axis: int | None

    # A module of its own: in a scan, parameters beside the kernel would change how that is drawn.

    @nn.compact
    def __call__(
        self, x: Float[Array, "*rows inputs"], out: Any, ids: Int[Array, "batch"] | None
    ) -> Any:
        """The layer's output and the adapter's, of every part.

        Args:
            x: what the layer read.
            out: what it made: `[*rows, outputs]`, or a list of such.
            ids: the examples' places in the global batch, for dropout; None switches it off.
        """
        first = out[0] if self.parts else out
        inputs, outputs, dtype = x.shape[-1], first.shape[-1], first.dtype
        # As PEFT draws it: uniform, of variance 1 / (3 inputs) (He et al. 2015 with a = sqrt(5)).
        draw = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        shape = (self.parts, self.rank, outputs) if self.parts else (self.rank, outputs)
        a = self.param("a", draw, (inputs, self.rank)).astype(dtype)
        b = self.param("b", nn.initializers.zeros, shape).astype(dtype)
        a = unshard(a, 0 if self.tensor_axis == 0 else None)
        b = unshard(b, -1 if self.tensor_axis == 1 else None)
        if ids is not None and self.dropout:
            # Rows of one example lie behind each other, where `[batch, length]` is one axis.
            rows = x.reshape(ids.shape[0], -1, inputs)
            x = Dropout(self.dropout)(rows, ids).reshape(x.shape)
        low = (x.astype(dtype) @ a) * self.scale
        if self.parts:
            return [part + low @ b[i] for i, part in enumerate(out)]
        return out + low @ b
