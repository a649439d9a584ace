// mixture_bits.h on any machine: vectors of 16 bytes, which x86-64 and ARM64 always have.

#include "simd/mixture_bits_kernels.h"

namespace l2c {

const MixtureBitsBackend kMixtureBitsScalar = {RowKernels<4>::bits, RowKernels<4>::backward, RowKernels<4>::neighbours};

}  // namespace l2c
