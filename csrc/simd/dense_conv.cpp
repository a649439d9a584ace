#include "simd/dense_conv.h"

namespace l2c {

const DenseBackend& dense_backend(Cpu cpu) {
#if L2C_X86
    if (cpu == Cpu::kAvx512) return cpu_has_avx512_vnni() ? kDenseAvx512 : kDenseAvx2;
    if (cpu == Cpu::kAvx2) return kDenseAvx2;
#elif L2C_ARM64
    if (cpu == Cpu::kNeon) return cpu_has_neon_dot() ? kDenseNeonDot : kDenseNeon;
#endif
    (void)cpu;
    return kDenseScalar;
}

}  // namespace l2c
