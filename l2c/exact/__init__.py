"""D in integers: every machine decodes a file to the same pixels.

The contract, for the block family (`transforms.block`); latents come out of the coder exactly, so all of it is exact:

1. **Convolutions** are int8 weights times uint8 inputs, summed in int32 in any order: 255 sum|w| + |bias| < 2^31 in
   every output channel, which a model file is checked for (`ExactWeights.check`). Inputs have a zero point per
   channel; beyond the picture's border they are that. The first layer and the last one have two bytes of each input,
   the second in eighths of the first: there 8 bits cost most.
2. **After a convolution** comes one product of float32(sum) with a float32 multiplier per channel, clamped to +-2^21
   and rounded to the nearest integer, ties to even; a LeakyReLU is another multiplier below zero. Nothing is fused to
   the product, so it is the same wherever IEEE 754 holds. Each of these steps is monotone.
3. **Residual streams** are int16, in 1/64 of the units of the bytes that convolutions read; a modulator's scale is one
   more such product, of the stream and what was added to it, which may be 64 times its range. Both ends saturate.
4. **Dequantised latents** are a table of companded levels times a factor from a table per channel, interpolated in
   integers over the argument of the local gain. Coefficients of the block transform are int16 in eighths of a level.
5. **The inverse block transform** has entries of 19 bits behind the point, in two int16 parts. Its sums, the fine stage
   in 1/64 of a level, and 127.5 are added and rounded once: a pixel.
6. **What depends on quality and metric** is made from Q20 integers and tables of exponentials that the file holds
   (`fixed`, `constants`): gains, modulators, corrections.

fixed      arithmetic that is the same everywhere
weights    what a model file holds, and its checks
quantise   a trained float D -> these integers
constants  what they are at one trade-off
plain      the definition, in PyTorch
device     the same by Triton kernels (kernels/exact.py): uint8 latents to uint8 pixels on a GPU
decoder    a D on a device: C++ (csrc/exact) on CPUs, Triton on GPUs, or PyTorch
fake       D as its integer form rounds it, in floats, for training
encoder    E's convolutions in integers as well, for speed: no part of the contract
"""

from l2c.exact.decoder import Changes, ExactDecoder
from l2c.exact.encoder import IntegerEncoder
from l2c.exact.quantise import Ranges
from l2c.exact.weights import EXACT_PREFIX, ExactWeights

__all__ = ["EXACT_PREFIX", "Changes", "ExactDecoder", "ExactWeights", "IntegerEncoder", "Ranges"]
