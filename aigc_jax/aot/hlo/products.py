"""FLOPs of one instruction."""

import math
import re

import numpy as np

from aigc_jax.aot.flops import kernel_flops
from aigc_jax.aot.hlo.text import Instruction, dims


def instruction_flops(instruction: Instruction) -> int:
    """Two for each product of a matrix multiplication, a convolution, or a kernel that
    `aigc_jax.aot.flops.kernel_flops` knows."""
    if instruction.opcode == "dot":
        lhs = dims(instruction.operands[0].shape)
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
        contraction = math.prod(lhs[int(dim)] for dim in contracted.split(",") if dim)
        return 2 * math.prod(dims(instruction.shape)) * contraction
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction)
    if 'custom_call_target="tpu_custom_call"' in instruction.attributes:
        shapes = [operand.shape for operand in instruction.operands]
        masks = [tuple(dims(shape)) for shape in shapes if re.match("[su]", shape)]
        arrays = [tuple(dims(shape)) for shape in shapes if re.match("b?f", shape)]
        return kernel_flops(instruction.name, masks, arrays)
    return 0


def _convolution_flops(instruction: Instruction) -> int:
    """Products with padding count and products with the zeros of a dilated input do not, as in
    `aigc_jax.aot.flops.count`. A TPU writes the batch dimensions of a matrix multiplication as
    spatial dimensions in which each output meets one tap, by dilation or by padding: both count
    right."""
    lhs, rhs = (dims(operand.shape) for operand in instruction.operands)
    out = dims(instruction.shape)
    lhs_labels, rhs_labels, out_labels = re.split(
        "_|->", instruction.attribute(r"dim_labels=([\w>\-]+)")
    )
    products = out[out_labels.index("b")] * out[out_labels.index("f")] * rhs[rhs_labels.index("i")]
    rank = len(out) - 2
    sizes = _window(instruction, "size", rank, "1")
    strides = _window(instruction, "stride", rank, "1")
    lows = _window(instruction, "pad", rank, "0")
    lhs_dilations = _window(instruction, "lhs_dilate", rank, "1")
    rhs_dilations = _window(instruction, "rhs_dilate", rank, "1")
    for axis in range(rank):
        inputs, outputs = (
            shape[labels.index(str(axis))]
            for shape, labels in ((lhs, lhs_labels), (out, out_labels))
        )
        small, middle, _ = sorted((inputs, sizes[axis], outputs))
        places = np.arange(outputs)[:, None] * strides[axis] - lows[axis]
        places = places + np.arange(sizes[axis]) * rhs_dilations[axis]
        on_inputs = np.count_nonzero(places % lhs_dilations[axis] == 0)
        products *= min(small * middle, int(on_inputs))
    return 2 * products


def _window(instruction: Instruction, key: str, rank: int, default: str) -> list[int]:
    """One number per spatial dimension of `window={size=3x2 pad=0_0x1_1}`; of pads, the low one."""
    values = instruction.attribute(rf"window=\{{[^}}]*\b{key}=([\dx_\-]+)")
    texts = values.split("x") if values else [default] * rank
    return [int(text.split("_")[0]) for text in texts]
