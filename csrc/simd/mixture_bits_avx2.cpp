// mixture_bits.h with AVX2.

#if defined(__x86_64__)

#include "simd/mixture_bits_kernels.h"

namespace l2c {

const MixtureBitsBackend kMixtureBitsAvx2 = {RowKernels<8>::bits, RowKernels<8>::backward, RowKernels<8>::neighbours};

}  // namespace l2c

#endif
