// AVX2 kernels of an integer D: bytes are widened to words, and two words at a time multiplied and added (vpmaddwd,
// which cannot saturate here: see int_conv_avx2.cpp).

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "simd/dense_conv_kernels.h"

namespace l2c {
namespace {

constexpr int kMostPixels = 6;  // 6 pixels x 2 registers of outputs: 12 sums, 2 weights, an input, a product

using Tile = DenseTile<std::int16_t, std::int16_t>;

template <int P>
void run_tile(const Tile& tile) {
    __m256i acc[P][2];
    __m256i bias[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    if (tile.bias != nullptr) {
        for (int n = 0; n < 2; ++n) bias[n] = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile.bias + 8 * n));
    }
#pragma GCC unroll 6
    for (int p = 0; p < P; ++p) {
        acc[p][0] = bias[0];
        acc[p][1] = bias[1];
    }
    const std::int16_t* w = tile.weights;
    for (int row = 0; row < tile.rows; ++row) {
        const std::int16_t* x = tile.x + row * tile.x_row;
        for (int i = 0; i < tile.inputs; i += 2, x += 2, w += 2 * kDenseBlock) {
            const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
            const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + kDenseBlock));
#pragma GCC unroll 6
            for (int p = 0; p < P; ++p) {
                std::int32_t pair;
                std::memcpy(&pair, x + p * tile.x_pixel, sizeof(pair));
                const __m256i value = _mm256_set1_epi32(pair);
                acc[p][0] = _mm256_add_epi32(acc[p][0], _mm256_madd_epi16(value, w0));
                acc[p][1] = _mm256_add_epi32(acc[p][1], _mm256_madd_epi16(value, w1));
            }
        }
    }
#pragma GCC unroll 6
    for (int p = 0; p < P; ++p) {
        for (int n = 0; n < 2; ++n) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(tile.sums + p * tile.sums_pixel + 8 * n), acc[p][n]);
        }
    }
}

constexpr void (*kTiles[kMostPixels + 1])(const Tile&) = {nullptr,     run_tile<1>, run_tile<2>, run_tile<3>,
                                                          run_tile<4>, run_tile<5>, run_tile<6>};

void sums(const DenseCall& call, void* scratch) {
    const int columns = call.pixels + call.kernel - 1;
    const std::ptrdiff_t row = std::ptrdiff_t{columns} * call.in_padded;
    auto* const wide = static_cast<std::int16_t*>(scratch);
    for (int y = 0; y < call.kernel; ++y) {
        const std::uint8_t* __restrict from = call.x + y * call.x_row;
        std::int16_t* __restrict to = wide + y * row;
        for (std::ptrdiff_t i = 0; i < row; ++i) to[i] = from[i];
    }
    const Tile first = {wide,
                        row,
                        call.in_padded,
                        call.kernel,
                        call.kernel * call.in_padded,
                        static_cast<const std::int16_t*>(call.weights),
                        call.bias,
                        call.sums,
                        std::ptrdiff_t{call.blocks} * kDenseBlock};
    run_tiles(kTiles, first, block_size(call), call.blocks, call.pixels);
}

void matrix(const MatrixCall& call) {
    run_tiles(kTiles, first_tile(call), block_size(call), call.blocks, call.pixels);
}

inline __m256i round_within(__m256 value, float least, float most) {
    value = _mm256_min_ps(_mm256_max_ps(value, _mm256_set1_ps(least)), _mm256_set1_ps(most));
    return _mm256_cvtps_epi32(_mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline __m256i load8(const std::int32_t* values) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
}

inline __m256i load8(const std::int16_t* values) {
    return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}

inline __m256 product(const std::int32_t* sums, const float* multiplier) {
    return _mm256_mul_ps(_mm256_cvtepi32_ps(load8(sums)), _mm256_loadu_ps(multiplier));
}

inline __m256 leaky_product(const DenseOutput& out, const std::int32_t* sums, int c) {
    const __m256i sum = load8(sums + c);
    const __m256 above = _mm256_loadu_ps(out.above + c), below = _mm256_loadu_ps(out.below + c);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_blendv_ps(above, below, _mm256_castsi256_ps(sum)));
}

// Eight words that saturate.
inline __m128i narrow(__m256i value) {
    return _mm_packs_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
}

inline void store_words(std::int16_t* to, __m256i value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow(value));
}

inline void store_bytes(std::uint8_t* to, __m256i value) {
    const __m256i most = _mm256_min_epi32(value, _mm256_set1_epi32(255));  // packs would make -1 of 65,536
    const __m128i words = narrow(_mm256_max_epi32(most, _mm256_setzero_si256()));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
}

// Into the stream, and bytes of it.
inline void store_both(const DenseOutput& out, int p, int c, __m256i value) {
    store_words(out.stream + p * out.stream_pixel + c, value);
    const __m256i half = _mm256_set1_epi32(1 << (kStreamBits - 1));
    const __m256i coarse = _mm256_srai_epi32(_mm256_add_epi32(value, half), kStreamBits);
    const __m256i zero = load8(out.zero + c);
    __m256i byte = _mm256_add_epi32(coarse, zero);
    store_bytes(out.bytes + p * out.bytes_pixel + c, byte);
    if (out.rest == nullptr) return;
    constexpr int kShift = kStreamBits - kRestBits;
    byte = _mm256_min_epi32(_mm256_max_epi32(byte, _mm256_setzero_si256()), _mm256_set1_epi32(255));
    const __m256i rest = _mm256_sub_epi32(value, _mm256_slli_epi32(_mm256_sub_epi32(byte, zero), kStreamBits));
    const __m256i fine = _mm256_srai_epi32(_mm256_add_epi32(rest, _mm256_set1_epi32(1 << (kShift - 1))), kShift);
    store_bytes(out.rest + p * out.bytes_pixel + c, _mm256_add_epi32(fine, _mm256_set1_epi32(kRestZero)));
}

void leaky_stream(const DenseOutput& out) {
    const int whole = out.channels / 8 * 8;
    for (int p = 0; p < out.pixels; ++p) {
        for (int c = 0; c < whole; c += 8) {
            const __m256 value = leaky_product(out, out.sums + p * out.sums_pixel, c);
            store_both(out, p, c, round_within(value, -32767.0f, 32767.0f));
        }
    }
    plain_leaky_stream(out, whole);
}

void leaky_bytes(const DenseOutput& out) {
    const int whole = out.channels / 8 * 8;
    for (int p = 0; p < out.pixels; ++p) {
        for (int c = 0; c < whole; c += 8) {
            const __m256 value = leaky_product(out, out.sums + p * out.sums_pixel, c);
            const __m256i integers = round_within(value, -kDenseClamp, kDenseClamp);
            store_bytes(out.bytes + p * out.bytes_pixel + c, _mm256_add_epi32(integers, load8(out.zero + c)));
        }
    }
    plain_leaky_bytes(out, whole);
}

void residual(const DenseOutput& out) {
    const int whole = out.channels / 8 * 8;
    for (int p = 0; p < out.pixels; ++p) {
        for (int c = 0; c < whole; c += 8) {
            const __m256 value = product(out.sums + p * out.sums_pixel + c, out.above + c);
            const __m256i added = round_within(value, -kDenseClamp, kDenseClamp);
            const __m256i before = load8(out.stream + p * out.stream_pixel + c);
            const __m256 total = _mm256_cvtepi32_ps(_mm256_add_epi32(added, before));
            const __m256 scaled = _mm256_mul_ps(total, _mm256_loadu_ps(out.scale + c));
            store_both(out, p, c, round_within(scaled, -32768.0f, 32767.0f));
        }
    }
    plain_residual(out, whole);
}

void words(const DenseOutput& out) {
    const int whole = out.channels / 8 * 8;
    for (int p = 0; p < out.pixels; ++p) {
        for (int c = 0; c < whole; c += 8) {
            const __m256 value = product(out.sums + p * out.sums_pixel + c, out.above + c);
            store_words(out.stream + p * out.stream_pixel + c, round_within(value, -32768.0f, 32767.0f));
        }
    }
    plain_words(out, whole);
}

}  // namespace

extern const DenseBackend kDenseAvx2 = {"avx2",   /*step=*/2, /*weight_bytes=*/2, /*scratch_bytes=*/2,
                                        sums,     matrix,     leaky_stream,       leaky_bytes,
                                        residual, words};

}  // namespace l2c

#endif  // __x86_64__
