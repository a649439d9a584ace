// Integer mixture of logistics -> cumulative frequencies C(i), and network output -> mixture parameters.
//
// This header is the definition; the SIMD files compute the same integers. Everything is exact integer arithmetic
// (the two places that use double say why the result is exact), so every machine gets the same C(i).
//
// Symbols i = 0..2^b-1, b = 1..8, S = 2^(8-b). Edge i lies at t_i = (2i-1)S - 256 half fine steps.
// Component k of a symbol: weight w_k, uint16, sum over k = 65520; mean m_k, int16, Q6 half steps; inverse scale v_k,
// 1..32767, Q10 per half step (v = 1024 is a logistic scale of one half step).
//
//   d_k  = clamp(64 t_i - m_k, -32768, 32767)
//   z_k  = clamp((d_k v_k) >> 5, -32768, 32767)             arithmetic shift; Q11, so +-16 logistic scales
//   C(i) = (sum_k floor(w_k sigma(z_k) / 2^16) << 4) + i S   for 0 < i < 2^b;  C(0) = 0, C(2^b) = 2^20
//
// C is strictly increasing: sigma does not decrease, and i S grows. C(2^b) - C(2^b - 1) >= S because the sum is at most
// 65520 = 2^16 - 16, which is where the 16 that the weights lack goes.
//
// sigma(z) = 65536 - T(z) for z >= 0 and T(-1-z) for z < 0, so sigma(z) + sigma(-1-z) = 65536. T(u), u = 0..32767, is
// the upper tail 65536 / (1 + exp((u + 1/2) / 2048)) as 32 quadratics in f = 16 (u mod 1024), s = floor(u / 1024):
//
//   T(u) = a[s] - ((f (b[s] - ((f c[s]) >> 16))) >> 16)
//
// Every intermediate fits in 16 bits, so that a SIMD lane has 16 bits and 32 entries of a, b or c fill one AVX-512
// register. The coefficients were searched for so that T never increases (tests try all 65,536 inputs); from s = 16 on
// c = 0 and a, b < 256, which AVX2 uses. T >= 1, so sigma is in 1..65535: with 65536 kept out, sigma fits in 16 bits.
// Greatest error of sigma: 7.4 / 65536.
//
// Functions here are `static inline`: the SIMD files include this header, and a copy compiled with AVX-512 must not be
// the one that the linker keeps for everybody. Those marked L2C_HD are compiled for GPUs as well (csrc/cuda/rans.cu),
// which keep the coefficients elsewhere: hence the parameter `tail`, a function object that returns T(u).

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define L2C_HD __host__ __device__
#else
#define L2C_HD
#endif

namespace l2c {

constexpr int kProbabilityBits = 20;
constexpr uint32_t kProbabilityOne = 1u << kProbabilityBits;
constexpr int kMaxMixtures = 8;
constexpr uint32_t kWeightSum = 65520;
constexpr int kTailSegments = 32;

alignas(64) constexpr uint16_t kTailA[kTailSegments] = {
    32764, 24740, 17622, 11952, 7809, 4969, 3106, 1920, 1178, 719, 438, 266, 161, 98, 59, 36,
    21,    13,    8,     5,     3,    2,    1,    1,    1,    1,   1,   1,   1,   1,  1,  1};
alignas(64) constexpr uint16_t kTailB[kTailSegments] = {
    33080, 31014, 25804, 19471, 13646, 9082, 5836, 3678, 2283, 1397, 861, 506, 306, 191, 113, 73,
    32,    24,    16,    12,    8,     8,    0,    0,    0,    0,    0,   0,   0,   0,   0,   0};
alignas(64) constexpr uint16_t kTailC[kTailSegments] = {
    3868, 10140, 12504, 11636, 9192, 6564, 4392, 2856, 1808, 1100, 704, 356, 208, 140, 80, 60,
    0,    0,     0,     0,     0,    0,    0,    0,    0,    0,    0,   0,   0,   0,   0,  0};

// Parameters of n symbols, planar: component k of symbol j is at [k * stride + j].
struct MixtureView {
    const uint16_t* weights;
    const int16_t* means;
    const uint16_t* inv_scales;
    size_t stride;
    int num_mixtures;  // 1..8
    int bits;          // 1..8
};

static inline MixtureView skip(const MixtureView& view, size_t j) {
    return {view.weights + j, view.means + j, view.inv_scales + j, view.stride, view.num_mixtures, view.bits};
}

// What a kernel found; anything but kOk stops the push or pop.
enum Status : int { kOk = 0, kBadSymbol = 1, kBadWeights = 2, kBadScale = 3, kTruncated = 4 };

// T(u) from the coefficients of segment u >> 10.
static L2C_HD inline uint32_t tail_in_segment(uint32_t u, uint32_t a, uint32_t b, uint32_t c) {
    const uint32_t f = (u & 1023) << 4;
    return a - ((f * (b - ((f * c) >> 16))) >> 16);
}

static L2C_HD inline uint32_t logistic_tail(uint32_t u) {
    const uint32_t s = u >> 10;
    return tail_in_segment(u, kTailA[s], kTailB[s], kTailC[s]);
}

struct HostTail {
    L2C_HD uint32_t operator()(uint32_t u) const { return logistic_tail(u); }
};

// sigma of z = -32768..32767: 1..65535.
template <class Tail>
static L2C_HD inline uint32_t logistic(int32_t z, Tail tail) {
    return z >= 0 ? 65536 - tail(static_cast<uint32_t>(z)) : tail(static_cast<uint32_t>(~z));
}
static inline uint32_t logistic(int32_t z) {
    return logistic(z, HostTail());
}

static L2C_HD inline int32_t clamp_int16(int32_t x) {
    return x < -32768 ? -32768 : x > 32767 ? 32767 : x;
}

static inline Status check_parameters(const MixtureView& view, size_t j) {
    uint32_t sum = 0;
    for (int k = 0; k < view.num_mixtures; ++k) {
        sum += view.weights[k * view.stride + j];
        if (static_cast<uint32_t>(view.inv_scales[k * view.stride + j]) - 1 > 32766) return kBadScale;
    }
    return sum == kWeightSum ? kOk : kBadWeights;
}

// 64 t_i, with `step` = S.
static L2C_HD inline int32_t mixture_edge(int i, int step) {
    return 64 * ((2 * i - 1) * step - 256);
}

// floor(w sigma(z) / 2^16) at an edge (64 t), of the component whose parameters are at index `at`.
template <class Tail>
static L2C_HD inline uint32_t mass_below(const MixtureView& view, size_t at, int32_t edge, Tail tail) {
    const int32_t d = clamp_int16(edge - view.means[at]);
    const int32_t z = clamp_int16((d * view.inv_scales[at]) >> 5);
    return (view.weights[at] * logistic(z, tail)) >> 16;
}

// C(i) of symbol j, i = 0..2^b.
template <class Tail>
static L2C_HD inline uint32_t mixture_cdf_at(const MixtureView& view, size_t j, int i, Tail tail) {
    const int step = 1 << (8 - view.bits);
    if (i == 0) return 0;
    if (i == 1 << view.bits) return kProbabilityOne;
    const int32_t edge = mixture_edge(i, step);
    uint32_t sum = 0;
    for (int k = 0; k < view.num_mixtures; ++k) {
        sum += mass_below(view, k * view.stride + j, edge, tail);
    }
    return (sum << 4) + static_cast<uint32_t>(i * step);
}
static inline uint32_t mixture_cdf_at(const MixtureView& view, size_t j, int i) {
    return mixture_cdf_at(view, j, i, HostTail());
}

// ---- network output -> parameters -----------------------------------------------------------------------------------
//
// raw[cell] = [logits K*cg | means K*cg | log inverse scales K*cg], int16, each [k][channel]; with `block` channels at
// a time, the last ones padded, as many of these as it takes. Symbols are ordered by cell, then channel; cells with
// valid[cell] == 0 are left out. Per symbol, with table = exp_table, E = 65520:
//
//   l_k = clamp(logit_k, -128, 127);  e_k = table[max l - l_k];  w_k = floor(E e_k / sum e)
//   E - sum w is added to the first k with the greatest e_k;  v_k = inv_table[clamp(raw_k, 0, 255)];  m_k = raw mean
struct ParamsJob {
    const int16_t* raw;
    size_t num_cells;
    int num_mixtures;  // K, 1..8
    size_t channels;   // cg
    const uint16_t* exp_table;
    const uint16_t* inv_table;
    const uint8_t* valid;  // null: all cells
    uint16_t* weights;     // [K, num_symbols], as are means and inv_scales
    int16_t* means;
    uint16_t* inv_scales;
    size_t num_symbols;  // (valid cells) * channels
    size_t block = 0;    // channels that stand together in raw; 0: all
};

// floor(65520 e / sum) by double. Let r = fl(65520 / sum) and g = fl(fl(e r) + 2^-21). The exact quotient is
// n + j / sum with 0 <= j < sum <= 8 * 65535 < 2^19, so it is at most n + 1 - 2^-19. The roundings add up to less than
// 2^-34 (quotient < 2^16, three operations of relative error 2^-53 each), so n < g < n + 1: truncation gives n.
constexpr double kQuotientGuard = 1.0 / (1 << 21);

// Turns raw logits (in `weights`) and raw log inverse scales (in `inv_scales`) of symbols j..j+N-1 into weights and
// inverse scales, in place. Loops over n are innermost so that compilers can vectorise them.
template <int N>
static inline void finish_params_block(const ParamsJob& job, size_t j) {
    const int K = job.num_mixtures;
    int32_t e[kMaxMixtures][N], top[N], sum[N], largest[N], rest[N];
    double ratio[N];
    for (int n = 0; n < N; ++n) top[n] = -128, sum[n] = 0, largest[n] = -1, rest[n] = kWeightSum;
    for (int k = 0; k < K; ++k) {
        const uint16_t* raw = job.weights + k * job.num_symbols + j;
        for (int n = 0; n < N; ++n) {
            const int32_t x = static_cast<int16_t>(raw[n]);
            e[k][n] = x < -128 ? -128 : x > 127 ? 127 : x;
            top[n] = e[k][n] > top[n] ? e[k][n] : top[n];
        }
    }
    for (int k = 0; k < K; ++k) {
        for (int n = 0; n < N; ++n) e[k][n] = job.exp_table[top[n] - e[k][n]];
        for (int n = 0; n < N; ++n) {
            sum[n] += e[k][n];
            largest[n] = e[k][n] > largest[n] ? e[k][n] : largest[n];
        }
    }
    for (int n = 0; n < N; ++n) ratio[n] = static_cast<double>(kWeightSum) / sum[n];
    for (int k = 0; k < K; ++k) {
        uint16_t* weights = job.weights + k * job.num_symbols + j;
        for (int n = 0; n < N; ++n) {
            const int32_t w = static_cast<int32_t>(e[k][n] * ratio[n] + kQuotientGuard);
            weights[n] = static_cast<uint16_t>(w);
            rest[n] -= w;
        }
    }
    for (int k = 0; k < K; ++k) {
        uint16_t* weights = job.weights + k * job.num_symbols + j;
        uint16_t* v = job.inv_scales + k * job.num_symbols + j;
        for (int n = 0; n < N; ++n) {
            const int32_t here = e[k][n] == largest[n] ? rest[n] : 0;  // the first of the largest takes all
            weights[n] = static_cast<uint16_t>(weights[n] + here);
            rest[n] -= here;
        }
        for (int n = 0; n < N; ++n) {
            const int32_t x = static_cast<int16_t>(v[n]);
            v[n] = job.inv_table[x < 0 ? 0 : x > 255 ? 255 : x];
        }
    }
}

static inline void finish_params_plain(const ParamsJob& job, size_t begin, size_t end) {
    for (; begin + 16 <= end; begin += 16) finish_params_block<16>(job, begin);
    for (; begin < end; ++begin) finish_params_block<1>(job, begin);
}

// Copies `count` int16. With `roomy`, up to 7 more may be read and written: the caller overwrites them afterwards.
static inline void copy_run(void* to, const void* from, size_t count, bool roomy) {
    if (!roomy) {
        std::memcpy(to, from, 2 * count);
        return;
    }
    for (size_t i = 0; i < count; i += 8) {
        std::memcpy(static_cast<char*>(to) + 2 * i, static_cast<const char*>(from) + 2 * i, 16);
    }
}

// Runs `finish(job, begin, end)` block by block, right after the block's raw values were made planar.
template <class Finish>
static inline void run_params(const ParamsJob& job, Finish finish) {
    constexpr size_t kBlock = 2048;  // symbols whose K * 6 bytes stay in the first-level cache
    const size_t cg = job.channels, K = job.num_mixtures, m = job.num_symbols;
    const size_t block = job.block == 0 ? cg : job.block;
    const int16_t* raw = job.raw;
    const size_t pitch = cg == 0 ? 0 : (cg + block - 1) / block * (3 * K * block);
    const int16_t* const raw_end = raw + job.num_cells * pitch;
    size_t done = 0, j = 0;
    for (size_t cell = 0; cell < job.num_cells && cg > 0; ++cell) {
        if (job.valid != nullptr && job.valid[cell] == 0) {
            raw += pitch;
            continue;
        }
        for (const size_t end = j + cg; j < end; raw += 3 * K * block) {
            const size_t count = block < end - j ? block : end - j;
            if (count == 8) {  // one vector for each
                for (size_t k = 0; k < K; ++k) {
                    std::memcpy(job.weights + k * m + j, raw + k * block, 16);
                    std::memcpy(job.means + k * m + j, raw + (K + k) * block, 16);
                    std::memcpy(job.inv_scales + k * m + j, raw + (2 * K + k) * block, 16);
                }
                j += count;
                continue;
            }
            // Up to 7 values past a run are written, again by later runs while j + count + 8 <= m; up to 7 are read.
            const bool roomy = j + count + 8 <= m && raw_end - raw >= static_cast<ptrdiff_t>(3 * K * block + 8);
            for (size_t k = 0; k < K; ++k) {
                copy_run(job.weights + k * m + j, raw + k * block, count, roomy);
                copy_run(job.means + k * m + j, raw + (K + k) * block, count, roomy);
                copy_run(job.inv_scales + k * m + j, raw + (2 * K + k) * block, count, roomy);
            }
            j += count;
        }
        if (j - done >= kBlock) {
            // Whole blocks only, and nothing past j: values there are not final yet.
            const size_t end = done + (j - done) / 64 * 64;
            finish(job, done, end);
            done = end;
        }
    }
    finish(job, done, j);
}

}  // namespace l2c
