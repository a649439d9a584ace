"""The operators: each checks its arguments, chooses a backend and calls it.

contract      numbers and data types that every implementation shares
reference     every operator again, written for reading: the definition
floating      operators on float tensors, for training, adaptation and the transforms; `gradients` has theirs
integers      operators on integers, which decide probabilities; `streams` has the ends of a stream
extension     loads C++, CUDA and Triton on first use, never on import
"""

from __future__ import annotations

from l2c.ops.contract import Grid
from l2c.ops.extension import cpp_extension, cuda_extension, has_cuda_extension, triton_reason
from l2c.ops.floating import (
    FLOAT_BACKENDS,
    bf16_pays,
    choose_float_backend,
    dequantise,
    lower_bound,
    mixture_bits,
    neighbour_bits,
    patch_epilogue,
    quantise,
    to_levels,
)
from l2c.ops.integers import (
    PackedLayer,
    hyperprior_coder,
    int_conv,
    integer_conv,
    integer_kernels,
    mixture_params,
    pack_layer,
    rans_decode,
    rans_encode,
    tile_coder,
)
from l2c.ops.streams import check_stream_end, parse_stream, range_decoder, range_encoder, write_stream, xxh64

__all__ = [
    "FLOAT_BACKENDS",
    "Grid",
    "PackedLayer",
    "bf16_pays",
    "check_stream_end",
    "choose_float_backend",
    "cpp_extension",
    "cuda_extension",
    "dequantise",
    "has_cuda_extension",
    "hyperprior_coder",
    "int_conv",
    "integer_conv",
    "integer_kernels",
    "lower_bound",
    "mixture_bits",
    "mixture_params",
    "neighbour_bits",
    "pack_layer",
    "parse_stream",
    "patch_epilogue",
    "quantise",
    "range_decoder",
    "range_encoder",
    "rans_decode",
    "rans_encode",
    "tile_coder",
    "to_levels",
    "triton_reason",
    "write_stream",
    "xxh64",
]
