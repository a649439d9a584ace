// One row of mixture_bits.h, N channels at a time, in the compiler's own vectors (GCC and Clang). Each
// mixture_bits_*.cpp compiles this for its instruction set: hence internal linkage everywhere, see int_conv_kernels.h.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd/mixture_bits.h"

namespace l2c {

// Rows [begin, end).
struct MixtureBitsBackend {
    void (*bits)(const MixtureBitsInput& input, std::int64_t begin, std::int64_t end, float* out);
    void (*backward)(const MixtureBitsInput& input, std::int64_t begin, std::int64_t end, const float* dout, float* dx,
                     float* dparams);
    void (*neighbours)(const MixtureBitsInput& input, std::int64_t begin, std::int64_t end, float* here, float* rise,
                       float* fall);
};

extern const MixtureBitsBackend kMixtureBitsScalar;
#if defined(__x86_64__)
extern const MixtureBitsBackend kMixtureBitsAvx2;
#endif

namespace {  // internal linkage, see above

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kMixtureShare = 65520.0f / 65536.0f;  // the rest is the floor that the integer CDF has
constexpr float kFloor = 1.0f / 1048576.0f;
constexpr float kFar = 1e4f;  // an edge where the range ends

#define L2C_INLINE inline __attribute__((always_inline))

template <int N>
struct Vectors {
    typedef float Float __attribute__((vector_size(N * sizeof(float))));
    typedef std::int32_t Int __attribute__((vector_size(N * sizeof(std::int32_t))));
    typedef std::uint32_t Bits __attribute__((vector_size(N * sizeof(std::uint32_t))));
};

template <int N>
struct RowKernels {
    using Float = typename Vectors<N>::Float;
    using Int = typename Vectors<N>::Int;
    using Bits = typename Vectors<N>::Bits;

    // The first `count` channels; the others are 0.
    L2C_INLINE static Float load(const float* from, int count) {
        Float value = {};
        if (count == N) {
            std::memcpy(&value, from, sizeof(value));
        } else {
            std::memcpy(&value, from, static_cast<std::size_t>(count) * sizeof(float));
        }
        return value;
    }

    L2C_INLINE static void store(float* to, int count, Float value) {
        if (count == N) {
            std::memcpy(to, &value, sizeof(value));
        } else {
            std::memcpy(to, &value, static_cast<std::size_t>(count) * sizeof(float));
        }
    }

    L2C_INLINE static Float all(float value) { return Float{} + value; }
    L2C_INLINE static Float absolute(Float v) {
        return reinterpret_cast<Float>(reinterpret_cast<Bits>(v) & 0x7fffffffu);
    }

    // 2^t for t <= 127, to about one unit in the last place; 0 where it is below 2^-60, which no likelihood shows and
    // which keeps products from being subnormal and slow.
    L2C_INLINE static Float exp2(Float t) {
        const Float round = all(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to an integer
        const Float whole = (t + round) - round;
        const Float r = (t - whole) * kLn2;  // within +-0.35
        Float sum = all(1.0f / 5040.0f);
        sum = sum * r + 1.0f / 720.0f;
        sum = sum * r + 1.0f / 120.0f;
        sum = sum * r + 1.0f / 24.0f;
        sum = sum * r + 1.0f / 6.0f;
        sum = sum * r + 0.5f;
        sum = sum * r + 1.0f;
        sum = sum * r + 1.0f;
        const Int exponent = __builtin_convertvector(whole, Int);
        const Float power = sum * reinterpret_cast<Float>((reinterpret_cast<Bits>(exponent) + 127u) << 23);
        return t < -60.0f ? all(0.0f) : power;  // keeps NaN
    }

    L2C_INLINE static Float exp(Float t) { return exp2(t * kLog2E); }

    // log2 p of normal p > 0. log2 m = 2 / ln 2 artanh s, s = (m - 1) / (m + 1), |s| < 0.172.
    L2C_INLINE static Float log2(Float p) {
        const Bits bits = reinterpret_cast<Bits>(p);
        const Bits above = bits - 0x3f3504f3u;  // of sqrt(1/2): m is in sqrt(1/2)..sqrt(2)
        const Int exponent = reinterpret_cast<Int>(above) >> 23;
        const Float m = reinterpret_cast<Float>((above & 0x007fffffu) + 0x3f3504f3u);
        const Float s = (m - 1.0f) / (m + 1.0f);
        const Float q = s * s;
        Float sum = all(1.0f / 9.0f);
        sum = sum * q + 1.0f / 7.0f;
        sum = sum * q + 1.0f / 5.0f;
        sum = sum * q + 1.0f / 3.0f;
        sum = sum * q + 1.0f;
        return __builtin_convertvector(exponent, Float) + (2.0f * kLog2E) * s * sum + (p - p);  // NaN of NaN
    }

    // sigma(z), without an exponential that overflows.
    L2C_INLINE static Float sigmoid(Float z) {
        const Float e = exp(-absolute(z));
        return (z >= 0.0f ? all(1.0f) : e) / (1.0f + e);
    }

    L2C_INLINE static Float likelihood(Float mixed, float step) { return mixed * kMixtureShare + step * kFloor; }

    // Parameters of N channels of one row.
    struct Params {
        const float* at;
        std::ptrdiff_t channels;
        int mixtures, count;

        L2C_INLINE Float logit(int k) const { return load(at + k * channels, count); }
        L2C_INLINE Float mean(int k) const { return load(at + (mixtures + k) * channels, count); }
        L2C_INLINE Float log2_inverse(int k) const { return load(at + (2 * mixtures + k) * channels, count); }

        L2C_INLINE Float largest_logit() const {
            Float top = logit(0);
            for (int k = 1; k < mixtures; ++k) {
                const Float other = logit(k);
                top = other > top ? other : top;
            }
            return top;
        }
    };

    L2C_INLINE static Float inverse_scale(const MixtureBitsInput& input, Float log2_inverse) {
        Float t = log2_inverse < input.least ? all(input.least) : log2_inverse;
        t = t > input.most ? all(input.most) : t;
        return exp2(t);
    }

    // Upper and lower edge from the mean, mirrored so that both are on the falling side, where sigmoid differences
    // keep their precision. The lowest level has no lower edge, the highest no upper one.
    struct Edges {
        Float upper, lower;
        Int flip;

        L2C_INLINE Edges(Float x, Float mean, float step, float margin) {
            const Float centred = x - mean;
            const Float high = x >= 128.0f - (1.0f + margin) * step ? all(kFar) : centred + 0.5f * step;
            const Float low = x <= -128.0f + margin * step ? all(-kFar) : centred - 0.5f * step;
            flip = centred > 0.0f;
            upper = flip ? -low : high;
            lower = flip ? -high : low;
        }
    };

    struct Mixed {
        Float mass, top, total;  // sum_k w_k m_k; the softmax's greatest logit and its sum
    };

    L2C_INLINE static Mixed mix(const MixtureBitsInput& input, Float x, float step, const Params& params) {
        const Float top = params.largest_logit();
        Float total = {}, mass = {};
        for (int k = 0; k < input.mixtures; ++k) {
            const Float weight = exp(params.logit(k) - top);
            const Float inverse = inverse_scale(input, params.log2_inverse(k));
            const Edges edges(x, params.mean(k), step, input.margin);
            total += weight;
            mass += weight * (sigmoid(edges.upper * inverse) - sigmoid(edges.lower * inverse));
        }
        return {mass / total, top, total};
    }

    // Calls f(offset of x, parameters, x, step, count) for N channels after N channels.
    template <class F>
    static void for_all(const MixtureBitsInput& input, std::int64_t begin, std::int64_t end, F f) {
        const std::ptrdiff_t channels = input.channels;
        for (std::int64_t row = begin; row < end; ++row) {
            const float step = input.steps[row / input.rows_per_picture];
            const float* params = input.params + row * 3 * input.mixtures * channels;
            for (std::ptrdiff_t c = 0; c < channels; c += N) {
                const int count = channels - c < N ? static_cast<int>(channels - c) : N;
                const std::ptrdiff_t at = row * channels + c;
                f(at, Params{params + c, channels, input.mixtures, count}, load(input.x + at, count), step, count);
            }
        }
    }

    static void bits(const MixtureBitsInput& input, std::int64_t begin, std::int64_t end, float* out) {
        for_all(input, begin, end, [&](std::ptrdiff_t at, const Params& params, Float x, float step, int count) {
            store(out + at, count, -log2(likelihood(mix(input, x, step, params).mass, step)));
        });
    }

    // With u = upper_k v_k, l = lower_k v_k, m_k = sigma(u) - sigma(l), m = sum_k w_k m_k, p the likelihood and
    // f = d bits / d m = -(65536 - 16) / 65536 / (p ln 2); where an edge ends the range sigma' is 0:
    //   d bits / d logit_k  = f w_k (m_k - m)
    //   d bits / d mean_k   = -f w_k (sigma'(u) - sigma'(l)) (+-v_k), and d bits / d x is minus the sum of these
    //   d bits / d log2 v_k = f w_k (sigma'(u) u - sigma'(l) l) ln 2, where v_k is within its limits
    static void backward(const MixtureBitsInput& input, std::int64_t begin, std::int64_t end, const float* dout,
                         float* dx, float* dparams) {
        const std::ptrdiff_t channels = input.channels;
        for_all(input, begin, end, [&](std::ptrdiff_t at, const Params& params, Float x, float step, int count) {
            const Mixed mixed = mix(input, x, step, params);
            const Float factor = -kMixtureShare * kLog2E * load(dout + at, count) / likelihood(mixed.mass, step);
            Float sum = {};
            for (int k = 0; k < input.mixtures; ++k) {
                const Float weight = exp(params.logit(k) - mixed.top) / mixed.total;
                const Float log2_inverse = params.log2_inverse(k);
                const Float inverse = inverse_scale(input, log2_inverse);
                const Edges edges(x, params.mean(k), step, input.margin);
                const Float at_upper = sigmoid(edges.upper * inverse), at_lower = sigmoid(edges.lower * inverse);
                const Float upper_slope = at_upper * (1.0f - at_upper), lower_slope = at_lower * (1.0f - at_lower);
                const Float moved = edges.flip ? lower_slope - upper_slope : upper_slope - lower_slope;
                const Float share = factor * weight, centred = share * moved * inverse;
                sum += centred;
                if (dparams == nullptr) continue;
                const Float stretched = (upper_slope * edges.upper - lower_slope * edges.lower) * inverse * kLn2;
                const Int free = (log2_inverse >= input.least) & (log2_inverse <= input.most);
                float* to = dparams + (params.at - input.params);
                store(to + k * channels, count, share * (at_upper - at_lower - mixed.mass));
                store(to + (input.mixtures + k) * channels, count, -centred);
                store(to + (2 * input.mixtures + k) * channels, count, free ? share * stretched : all(0.0f));
            }
            store(dx + at, count, sum);
        });
    }

    // Of the four edges around x - S, x and x + S, from -3/2 S to 3/2 S, and mirrored as `Edges` are.
    static void neighbours(const MixtureBitsInput& input, std::int64_t begin, std::int64_t end, float* here,
                           float* rise, float* fall) {
        for_all(input, begin, end, [&](std::ptrdiff_t at, const Params& params, Float x, float step, int count) {
            const Float top = params.largest_logit();
            Float total = {}, mass[3] = {};
            for (int k = 0; k < input.mixtures; ++k) {
                const Float weight = exp(params.logit(k) - top);
                const Float inverse = inverse_scale(input, params.log2_inverse(k));
                const Float centred = x - params.mean(k);
                const Float mirrored = centred > 0.0f ? -inverse : inverse;
                total += weight;
                Float before = {};
                for (int i = 0; i < 4; ++i) {
                    const float away = (static_cast<float>(i) - 1.5f) * step;
                    const Float edge = x + away;
                    Float shifted = edge >= 128.0f - step ? all(kFar) : centred + away;
                    shifted = edge <= -128.0f ? all(-kFar) : shifted;
                    const Float now = sigmoid(shifted * mirrored);
                    if (i > 0) mass[i - 1] += weight * absolute(now - before);
                    before = now;
                }
            }
            const Float bits = -log2(likelihood(mass[1] / total, step));
            const Float up = -log2(likelihood(mass[2] / total, step)) - bits;
            const Float down = -log2(likelihood(mass[0] / total, step)) - bits;
            store(here + at, count, bits);
            store(rise + at, count, x >= 128.0f - 1.25f * step ? all(HUGE_VALF) : up);
            store(fall + at, count, x <= -128.0f + 0.25f * step ? all(HUGE_VALF) : down);
        });
    }
};

}  // namespace
}  // namespace l2c
