// AVX2 back end of the integer convolution: uint8 and int8 widened to int16, multiplied and added in pairs by
// vpmaddwd.
//
// Exactness: vpmaddwd forms both 16x16-bit products in 32 bits and adds them without saturation; the sum
// wraps only when all four factors are -32768. Here 0 <= x <= 255 and -128 <= w <= 127, so |x0 w0 + x1 w1| <=
// 2 * 255 * 128 = 65,280. (The byte form, vpmaddubsw, saturates its pair sum at 32,767 and is not used.) The
// int32 sums cannot wrap: every partial sum is bounded by |bias| + 255 sum|w| < 2^31, which IntConv's
// constructor checks.
//
// Pairs that are zero in all pixels of a tile add nothing and are left out (int_conv_avx512.cpp): each tile starts with
// a list of its other pairs.

#if defined(__x86_64__)

#include <immintrin.h>

#include "simd/int_conv_kernels.h"

namespace l2c {
namespace {

constexpr int kMaxPixels = 6;  // 6 pixels x 2 registers of outputs: 12 sums + 2 weights + 1 input + 1 product

struct Tile {
    const std::int16_t* x;  // first tap of the tile's first pixel
    std::ptrdiff_t x_pixel;
    const std::int32_t* x_at;  // where the pairs are, from x
    const std::int32_t* w_at;  // and their weights, from weights
    int num_pairs;
    const std::int16_t* weights;
    const std::int32_t* bias;
    std::int32_t* acc;  // int32 [pixels][16], 32-byte aligned
};

template <int P>
void accumulate(const Tile& tile) {
    __m256i acc[P][2];
    const __m256i bias0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile.bias));
    const __m256i bias1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile.bias + 8));
#pragma GCC unroll 6
    for (int p = 0; p < P; ++p) {
        acc[p][0] = bias0;
        acc[p][1] = bias1;
    }
    for (int i = 0; i < tile.num_pairs; ++i) {
        const std::int16_t* x = tile.x + tile.x_at[i];
        const std::int16_t* w = tile.weights + tile.w_at[i];
        const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
        const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 16));
#pragma GCC unroll 6
        for (int p = 0; p < P; ++p) {
            std::int32_t pair;
            std::memcpy(&pair, x + p * tile.x_pixel, sizeof(pair));
            const __m256i value = _mm256_set1_epi32(pair);
            acc[p][0] = _mm256_add_epi32(acc[p][0], _mm256_madd_epi16(value, w0));
            acc[p][1] = _mm256_add_epi32(acc[p][1], _mm256_madd_epi16(value, w1));
        }
    }
#pragma GCC unroll 6
    for (int p = 0; p < P; ++p) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(tile.acc + p * kConvBlock), acc[p][0]);
        _mm256_store_si256(reinterpret_cast<__m256i*>(tile.acc + p * kConvBlock + 8), acc[p][1]);
    }
}

constexpr void (*kAccumulate[kMaxPixels + 1])(const Tile&) = {
    nullptr, accumulate<1>, accumulate<2>, accumulate<3>, accumulate<4>, accumulate<5>, accumulate<6>};

// Lists the pairs that are not zero in all pixels of a tile. Up to 28 bytes after the last run are read.
void find_pairs(const ConvCall& call, std::ptrdiff_t x_row, int pixels, std::int32_t* x_at, std::int32_t* w_at,
                Tile& tile) {
    const int pairs = call.kernel * call.in_padded / 2;  // of one row of taps
    int found = 0;
    for (int row = 0; row < call.kernel; ++row) {
        if (!row_counts(call, row)) continue;
        const std::int16_t* x = tile.x + row * x_row;
        for (int first = 0; first < pairs; first += 8) {
            __m256i any = _mm256_setzero_si256();
            for (int p = 0; p < pixels; ++p) {
                any = _mm256_or_si256(
                    any, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + p * tile.x_pixel + 2 * first)));
            }
            const __m256i zero = _mm256_cmpeq_epi32(any, _mm256_setzero_si256());
            const int active = ~_mm256_movemask_ps(_mm256_castsi256_ps(zero));
            const int count = pairs - first < 8 ? pairs - first : 8;
            for (int i = 0; i < count; ++i) {
                x_at[found] = static_cast<std::int32_t>(row * x_row) + 2 * (first + i);
                w_at[found] = (row * pairs + first + i) * kConvBlock * 2;
                found += active >> i & 1;
            }
        }
    }
    tile.x_at = x_at;
    tile.w_at = w_at;
    tile.num_pairs = found;
}

inline __m256i requantise8(const std::int32_t* acc, const float* multiplier) {
    const __m256i sum = _mm256_load_si256(reinterpret_cast<const __m256i*>(acc));
    __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_load_ps(multiplier));
    product = _mm256_max_ps(product, _mm256_set1_ps(-kConvClamp));
    product = _mm256_min_ps(product, _mm256_set1_ps(kConvClamp));
    return _mm256_cvtps_epi32(_mm256_round_ps(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Requantises and writes 16 channels of one pixel.
void store_block(const ConvCall& call, std::int64_t y, std::int64_t x, int channel, const std::int32_t* acc) {
    __m256i r0 = requantise8(acc, call.multiplier + channel);
    __m256i r1 = requantise8(acc + 8, call.multiplier + channel + 8);
    const std::ptrdiff_t at = y * call.out_strides.row + x * call.out_strides.pixel + channel;
    if (!call.out_i16 && call.residual != nullptr) {
        const std::uint8_t* residual =
            call.residual + y * call.residual_strides.row + x * call.residual_strides.pixel + channel;
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(residual));
        r0 = _mm256_add_epi32(r0, _mm256_cvtepu8_epi32(bytes));
        r1 = _mm256_add_epi32(r1, _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)));
    }
    // packs works within 128-bit halves; the permutation puts the four quarters back in order.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(r0, r1), 0xD8);
    if (call.out_i16) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<std::int16_t*>(call.out) + at), words);
        return;
    }
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<std::uint8_t*>(call.out) + at), bytes);
}

void run_task(const ConvCall& call, const ConvTask& task, void* scratch) {
    const ConvPatch<std::int16_t> patch = fill_patch(call, task, patch_memory<std::int16_t>(call, scratch));
    auto* const x_at = static_cast<std::int32_t*>(scratch);
    std::int32_t* const w_at = x_at + call.list_length;
    const std::ptrdiff_t block_size = std::ptrdiff_t{call.kernel} * call.kernel * call.in_padded * kConvBlock;
    const std::int64_t width = task.x1 - task.x0;
    const std::int64_t num_tiles = (width + kMaxPixels - 1) / kMaxPixels;
    alignas(32) std::int32_t acc[kMaxPixels * kConvBlock];
    for (std::int64_t y = task.y0; y < task.y1; ++y) {
        for (std::int64_t t = 0; t < num_tiles; ++t) {
            const std::int64_t begin = width * t / num_tiles;  // tiles of nearly equal width
            const int pixels = static_cast<int>(width * (t + 1) / num_tiles - begin);
            Tile tile;
            tile.x = patch.origin + (y - task.y0) * patch.strides.row + begin * patch.strides.pixel;
            tile.x_pixel = patch.strides.pixel;
            tile.acc = acc;
            find_pairs(call, patch.strides.row, pixels, x_at, w_at, tile);
            for (int block = task.block0; block < task.block1; ++block) {
                const int channel = block * kConvBlock;
                const int left = call.out_channels - channel;
                tile.weights = static_cast<const std::int16_t*>(call.weights) + block * block_size;
                tile.bias = call.bias + channel;
                kAccumulate[pixels](tile);
                for (int p = 0; p < pixels; ++p) {
                    if (left >= kConvBlock) {
                        store_block(call, y, task.x0 + begin + p, channel, acc + p * kConvBlock);
                    } else {
                        store_pixel(call, y, task.x0 + begin + p, channel, left, acc + p * kConvBlock);
                    }
                }
            }
        }
    }
}

}  // namespace

extern const ConvBackend kConvAvx2 = {"avx2",           /*step=*/2, /*weight_bytes=*/2, /*scratch_bytes=*/2,
                                      /*direct=*/false, run_task};

}  // namespace l2c

#endif  // __x86_64__
