#include "simd/mixture_bits.h"

#include <algorithm>

#include "core/thread_pool.h"
#include "simd/mixture_bits_kernels.h"

namespace l2c {
namespace {

constexpr std::int64_t kTaskLatents = 4096;  // some tens of microseconds

const MixtureBitsBackend& backend_of(Cpu cpu) {
#if defined(__x86_64__)
    if (cpu != Cpu::kScalar) return kMixtureBitsAvx2;  // vectors of 64 bytes were no faster
#endif
    static_cast<void>(cpu);
    return kMixtureBitsScalar;
}

// Calls f(begin, end) for ranges that cover all rows, from several threads.
template <class F>
void for_rows(const MixtureBitsInput& input, const F& f) {
    struct Loop {
        const F& f;
        std::int64_t rows, step;
    } loop{f, input.rows, std::max<std::int64_t>(1, kTaskLatents / std::max(1, input.channels))};
    const auto task = [](void* context, std::int64_t i) {
        const auto& [f, rows, step] = *static_cast<const Loop*>(context);
        f(i * step, std::min(rows, (i + 1) * step));
    };
    parallel_for(input.threads, (input.rows + loop.step - 1) / loop.step, task, &loop);
}

}  // namespace

void mixture_bits(const MixtureBitsInput& input, float* out, Cpu cpu) {
    const MixtureBitsBackend& backend = backend_of(cpu);
    for_rows(input, [&](std::int64_t begin, std::int64_t end) { backend.bits(input, begin, end, out); });
}

void mixture_bits_backward(const MixtureBitsInput& input, const float* dout, float* dx, float* dparams, Cpu cpu) {
    const MixtureBitsBackend& backend = backend_of(cpu);
    for_rows(input,
             [&](std::int64_t begin, std::int64_t end) { backend.backward(input, begin, end, dout, dx, dparams); });
}

void neighbour_bits(const MixtureBitsInput& input, float* here, float* rise, float* fall, Cpu cpu) {
    const MixtureBitsBackend& backend = backend_of(cpu);
    for_rows(input,
             [&](std::int64_t begin, std::int64_t end) { backend.neighbours(input, begin, end, here, rise, fall); });
}

}  // namespace l2c
