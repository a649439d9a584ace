// AVX-512 VNNI back end of the integer convolution. Needs F, BW, VL, DQ, for which the file is compiled, and VNNI,
// whose one instruction is written as assembly.
//
// vpdpbusd multiplies 4 uint8 by 4 int8 and adds the four products to an int32. This is the form without the
// final "s": nothing in it saturates, and nothing wraps, as every partial sum is bounded by |bias| + 255
// sum|w| < 2^31 (checked by IntConv's constructor). Integer addition is associative, so the order of the sums
// does not matter.
//
// A tile is P pixels x N blocks of 16 outputs, all P * N sums in registers; per 4 input channels it loads N
// vectors of weights and P broadcast inputs for P * N vpdpbusd, so that loads stay below the 2 a cycle of the
// multiply units.

#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own AVX-512 headers start from deliberately undefined registers and warn about them when inlined
// here.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "int_conv_kernels.h"

namespace l2c {
namespace {

constexpr int kMaxBlocks = 4;
// Pixels of a tile for N blocks: P * N sums + N weights + 1 or 2 inputs in 32 registers.
constexpr int kMaxPixels[kMaxBlocks + 1] = {0, 16, 12, 8, 6};
constexpr int kAnyMaxPixels = 16;

struct Tile {
    const std::uint8_t* x;  // first tap of the tile's first pixel
    std::ptrdiff_t x_row, x_pixel;
    int runs, quads;  // kernel rows, groups of 4 elements in each
    const std::int8_t* weights;
    std::ptrdiff_t block_size;  // bytes from one block's weights to the next block's
    const std::int32_t* bias;
    const float* multiplier;
    const std::uint8_t* residual;  // of the first pixel and channel, or null
    std::ptrdiff_t residual_pixel;
    void* out;  // likewise
    std::ptrdiff_t out_pixel;
    bool out_i16;
    __mmask16 last_mask;  // channels that exist in the last of the N blocks
};

// acc[j] += sum over i of value[4j + i] * weight[4j + i], uint8 times int8. Written as assembly because it
// pins the sum to one register: with the intrinsic, GCC 12 copies and spills the sums of the larger tiles in
// every round, which halves the speed.
inline void add_dot4(__m512i& acc, __m512i value, __m512i weight) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(value), "v"(weight));
}

inline __m512i requantise16(__m512i acc, __m512 multiplier) {
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), multiplier);
    product = _mm512_max_ps(product, _mm512_set1_ps(-kConvClamp));
    product = _mm512_min_ps(product, _mm512_set1_ps(kConvClamp));
    return _mm512_cvt_roundps_epi32(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <int P, int N>
void run_tile(const Tile& tile) {
    __m512i acc[P][N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        const __m512i bias = _mm512_load_si512(tile.bias + n * kConvBlock);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) acc[p][n] = bias;
    }
    // One pointer per 4 pixels and three offsets that all of them share: x86 addresses reach the four pixels
    // of a pointer without further arithmetic.
    constexpr int kPointers = (P + 3) / 4;
    const std::ptrdiff_t offset[4] = {0, tile.x_pixel, 2 * tile.x_pixel, 3 * tile.x_pixel};
    const std::int8_t* w = tile.weights;
    for (int r = 0; r < tile.runs; ++r) {
        const std::uint8_t* x[kPointers];
#pragma GCC unroll 4
        for (int q = 0; q < kPointers; ++q) x[q] = tile.x + r * tile.x_row + 4 * q * tile.x_pixel;
        for (int i = 0; i < tile.quads; ++i) {
            __m512i weight[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) weight[n] = _mm512_load_si512(w + n * tile.block_size);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                std::int32_t quad;
                std::memcpy(&quad, x[p / 4] + offset[p % 4], sizeof(quad));
                const __m512i value = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) add_dot4(acc[p][n], value, weight[n]);
            }
#pragma GCC unroll 4
            for (int q = 0; q < kPointers; ++q) x[q] += 4;
            w += 64;
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        const __m512 multiplier = _mm512_load_ps(tile.multiplier + n * kConvBlock);
        const __mmask16 mask = n + 1 < N ? 0xFFFF : tile.last_mask;
        const std::ptrdiff_t channel = n * kConvBlock;
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
            __m512i r = requantise16(acc[p][n], multiplier);
            if (tile.out_i16) {
                std::int16_t* out = static_cast<std::int16_t*>(tile.out) + p * tile.out_pixel + channel;
                _mm256_mask_storeu_epi16(out, mask, _mm512_cvtsepi32_epi16(r));
                continue;
            }
            if (tile.residual != nullptr) {
                const std::uint8_t* residual = tile.residual + p * tile.residual_pixel + channel;
                r = _mm512_add_epi32(r, _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, residual)));
            }
            r = _mm512_max_epi32(r, _mm512_setzero_si512());
            std::uint8_t* out = static_cast<std::uint8_t*>(tile.out) + p * tile.out_pixel + channel;
            _mm_mask_storeu_epi8(out, mask, _mm512_cvtusepi32_epi8(r));
        }
    }
}

using TileFunction = void (*)(const Tile&);

constexpr TileFunction kTiles[kMaxBlocks][kAnyMaxPixels] = {
    {run_tile<1, 1>, run_tile<2, 1>, run_tile<3, 1>, run_tile<4, 1>, run_tile<5, 1>, run_tile<6, 1>, run_tile<7, 1>,
     run_tile<8, 1>, run_tile<9, 1>, run_tile<10, 1>, run_tile<11, 1>, run_tile<12, 1>, run_tile<13, 1>,
     run_tile<14, 1>, run_tile<15, 1>, run_tile<16, 1>},
    {run_tile<1, 2>, run_tile<2, 2>, run_tile<3, 2>, run_tile<4, 2>, run_tile<5, 2>, run_tile<6, 2>, run_tile<7, 2>,
     run_tile<8, 2>, run_tile<9, 2>, run_tile<10, 2>, run_tile<11, 2>, run_tile<12, 2>},
    {run_tile<1, 3>, run_tile<2, 3>, run_tile<3, 3>, run_tile<4, 3>, run_tile<5, 3>, run_tile<6, 3>, run_tile<7, 3>,
     run_tile<8, 3>},
    {run_tile<1, 4>, run_tile<2, 4>, run_tile<3, 4>, run_tile<4, 4>, run_tile<5, 4>, run_tile<6, 4>}};

void run_task(const ConvCall& call, const ConvTask& task, void* scratch) {
    const ConvPatch<std::uint8_t> patch =
        call.in_place ? patch_in_place(call, task) : fill_patch(call, task, static_cast<std::uint8_t*>(scratch));
    const int quads = call.kernel * call.in_padded / 4;
    const std::ptrdiff_t block_size = static_cast<std::ptrdiff_t>(call.kernel) * quads * 64;
    const std::int64_t width = task.x1 - task.x0;
    const int num_groups = (task.block1 - task.block0 + kMaxBlocks - 1) / kMaxBlocks;
    for (int g = 0; g < num_groups; ++g) {
        // Groups of nearly equal size: 9 blocks as 3 + 3 + 3, not as 4 + 4 + 1.
        const int block = task.block0 + (task.block1 - task.block0) * g / num_groups;
        const int blocks = task.block0 + (task.block1 - task.block0) * (g + 1) / num_groups - block;
        const int channel = block * kConvBlock;
        const int last = call.out_channels - (block + blocks - 1) * kConvBlock;
        const std::int64_t num_tiles = (width + kMaxPixels[blocks] - 1) / kMaxPixels[blocks];
        Tile tile;
        tile.x_row = patch.strides.row;
        tile.x_pixel = patch.strides.pixel;
        tile.runs = call.kernel;
        tile.quads = quads;
        tile.weights = static_cast<const std::int8_t*>(call.weights) + block * block_size;
        tile.block_size = block_size;
        tile.bias = call.bias + channel;
        tile.multiplier = call.multiplier + channel;
        tile.residual_pixel = call.residual_strides.pixel;
        tile.out_pixel = call.out_strides.pixel;
        tile.out_i16 = call.out_i16;
        tile.last_mask = last >= kConvBlock ? 0xFFFF : static_cast<__mmask16>((1u << last) - 1);
        for (std::int64_t y = task.y0; y < task.y1; ++y) {
            for (std::int64_t t = 0; t < num_tiles; ++t) {
                const std::int64_t begin = width * t / num_tiles;  // tiles likewise
                const int pixels = static_cast<int>(width * (t + 1) / num_tiles - begin);
                const std::int64_t x = task.x0 + begin;
                tile.x = patch.origin + (y - task.y0) * patch.strides.row + begin * patch.strides.pixel;
                tile.residual = call.residual == nullptr ? nullptr
                                                         : call.residual + y * call.residual_strides.row +
                                                               x * call.residual_strides.pixel + channel;
                const std::ptrdiff_t at = y * call.out_strides.row + x * call.out_strides.pixel + channel;
                if (call.out_i16) {
                    tile.out = static_cast<std::int16_t*>(call.out) + at;
                } else {
                    tile.out = static_cast<std::uint8_t*>(call.out) + at;
                }
                kTiles[blocks - 1][pixels - 1](tile);
            }
        }
    }
}

}  // namespace

extern const ConvBackend kConvAvx512 = {"avx512vnni",        /*step=*/4,      /*weight_bytes=*/1,
                                        /*scratch_bytes=*/1, /*direct=*/true, run_task};

}  // namespace l2c

#endif  // __x86_64__
