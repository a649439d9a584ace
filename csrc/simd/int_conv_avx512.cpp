// AVX-512 VNNI back end of the integer convolution. Needs F, BW, VL, DQ, for which the file is compiled, and VNNI,
// whose one instruction is written as assembly.
//
// vpdpbusd multiplies 4 uint8 by 4 int8 and adds the four products to an int32. This is the form without the
// final "s": nothing in it saturates, and nothing wraps, as every partial sum is bounded by |bias| + 255
// sum|w| < 2^31 (checked by IntConv's constructor). Integer addition is associative, so the order of the sums
// does not matter.
//
// A tile is P pixels x N blocks of 16 outputs, all P * N sums in registers; per quad, 4 input channels of one tap, it
// loads N vectors of weights and P broadcast inputs for P * N vpdpbusd, so that loads stay below the 2 a cycle of the
// multiply units. Quads that are zero in all pixels of a tile add nothing and are left out: activations are mostly
// zeros, and more than half of P's products go that way. So each tile starts with a list of its other quads. The fewer
// pixels, the more are left out; 3x3 kernels, which have the longest lists, take few pixels and many blocks. Where few
// inputs are zero (ConvCall::dense) and weights come from far, many pixels and few blocks are better: each weight is
// loaded once a tile.
//
// An input channel whose zero is the byte 128 stays unsigned here: N more sums collect 128 times the weights of the
// quads that were added, and are taken away at the end.

#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own AVX-512 headers start from deliberately undefined registers and warn about them when inlined
// here.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "simd/int_conv_kernels.h"

namespace l2c {
namespace {

constexpr int kMaxBlocks = 7, kMaxPixels = 14;
constexpr int kSparsePixels = 6;  // at most, where many inputs are zero

// Whether a tile's P * N sums, N more with offset inputs, N weights and an input fit in 32 registers.
constexpr bool fits(int pixels, int blocks, bool offset) {
    return (pixels + 1 + (offset ? 1 : 0)) * blocks + 1 < 32;
}

struct Tile {
    const std::uint8_t* x;  // first tap of the tile's first pixel
    std::ptrdiff_t x_pixel;
    const std::int32_t* x_at;   // where the quads are, from x
    const std::int32_t* w_at;   // and their weights, from weights
    int num_quads, num_offset;  // the first num_offset quads have offset inputs
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

// Adds quad i to the sums.
template <int P, int N>
inline void add_quad(const Tile& tile, int i, __m512i (&acc)[P][N], __m512i (&weight)[N]) {
    constexpr int kReach = 3;  // pixels that a pointer reaches without further arithmetic
    const std::uint8_t* x[(P + kReach - 1) / kReach];
    x[0] = tile.x + tile.x_at[i];
#pragma GCC unroll 5
    for (int p = kReach; p < P; p += kReach) x[p / kReach] = x[p / kReach - 1] + kReach * tile.x_pixel;
    const std::int8_t* w = tile.weights + tile.w_at[i];
#pragma GCC unroll 7
    for (int n = 0; n < N; ++n) weight[n] = _mm512_load_si512(w + n * tile.block_size);
#pragma GCC unroll 14
    for (int p = 0; p < P; ++p) {
        std::int32_t quad;
        std::memcpy(&quad, x[p / kReach] + p % kReach * tile.x_pixel, sizeof(quad));
        const __m512i value = _mm512_set1_epi32(quad);
#pragma GCC unroll 7
        for (int n = 0; n < N; ++n) add_dot4(acc[p][n], value, weight[n]);
    }
}

template <int P, int N, bool kOffset>
void run_tile(const Tile& tile) {
    __m512i acc[P][N], weight[N];
#pragma GCC unroll 7
    for (int n = 0; n < N; ++n) {
        const __m512i bias = _mm512_load_si512(tile.bias + n * kConvBlock);
#pragma GCC unroll 14
        for (int p = 0; p < P; ++p) acc[p][n] = bias;
    }
    int i = 0;
    if constexpr (kOffset) {
        const __m512i offset = _mm512_set1_epi8(static_cast<char>(kConvOffset));
        __m512i extra[N];
#pragma GCC unroll 7
        for (int n = 0; n < N; ++n) extra[n] = _mm512_setzero_si512();
        for (; i < tile.num_offset; ++i) {
            add_quad<P, N>(tile, i, acc, weight);
#pragma GCC unroll 7
            for (int n = 0; n < N; ++n) add_dot4(extra[n], offset, weight[n]);
        }
#pragma GCC unroll 7
        for (int n = 0; n < N; ++n) {
#pragma GCC unroll 14
            for (int p = 0; p < P; ++p) acc[p][n] = _mm512_sub_epi32(acc[p][n], extra[n]);
        }
    }
    for (; i < tile.num_quads; ++i) add_quad<P, N>(tile, i, acc, weight);
#pragma GCC unroll 7
    for (int n = 0; n < N; ++n) {
        const __m512 multiplier = _mm512_load_ps(tile.multiplier + n * kConvBlock);
        const __mmask16 mask = n + 1 < N ? 0xFFFF : tile.last_mask;
        const std::ptrdiff_t channel = n * kConvBlock;
#pragma GCC unroll 14
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

template <int P, int N, bool kOffset>
constexpr TileFunction tile_function() {
    if constexpr (fits(P, N, kOffset)) return run_tile<P, N, kOffset>;
    return nullptr;
}

template <int N, bool kOffset>
constexpr TileFunction kTilesOf[kMaxPixels] = {
    tile_function<1, N, kOffset>(),  tile_function<2, N, kOffset>(),  tile_function<3, N, kOffset>(),
    tile_function<4, N, kOffset>(),  tile_function<5, N, kOffset>(),  tile_function<6, N, kOffset>(),
    tile_function<7, N, kOffset>(),  tile_function<8, N, kOffset>(),  tile_function<9, N, kOffset>(),
    tile_function<10, N, kOffset>(), tile_function<11, N, kOffset>(), tile_function<12, N, kOffset>(),
    tile_function<13, N, kOffset>(), tile_function<14, N, kOffset>()};

constexpr const TileFunction* kTiles[2][kMaxBlocks] = {
    {kTilesOf<1, false>, kTilesOf<2, false>, kTilesOf<3, false>, kTilesOf<4, false>, kTilesOf<5, false>,
     kTilesOf<6, false>, kTilesOf<7, false>},
    {kTilesOf<1, true>, kTilesOf<2, true>, kTilesOf<3, true>, kTilesOf<4, true>, kTilesOf<5, true>, kTilesOf<6, true>,
     kTilesOf<7, true>}};

// The first n of 16.
inline __mmask16 first_of_16(int n) {
    return n >= 16 ? 0xFFFF : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
}

// Lists the quads that are not zero in all P pixels of a tile.
template <int P, int kTaps, bool kOffset>
void find_quads(const ConvCall& call, std::ptrdiff_t x_row, std::int32_t* x_at, std::int32_t* w_at, Tile& tile) {
    const int quads = call.in_padded / 4;  // of a tap
    const __m512i zero = _mm512_set1_epi8(static_cast<char>(kConvOffset));
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    tile.x_at = x_at;
    tile.w_at = w_at;
    tile.num_quads = tile.num_offset = 0;
    for (int row = 0; row < kTaps; ++row) {
        if (!row_counts(call, row)) continue;
        for (int first = 0; first < quads; first += 16) {
            const std::ptrdiff_t at = row * x_row + 4 * first;
            const __mmask16 inside = first_of_16(quads - first), offset = first_of_16(call.offset_channels / 4 - first);
            __m512i value[P + kTaps - 1];
#pragma GCC unroll 16
            for (int p = 0; p < P + kTaps - 1; ++p) {
                value[p] = _mm512_maskz_loadu_epi32(inside, tile.x + at + p * tile.x_pixel);
                if constexpr (kOffset) value[p] = _mm512_mask_xor_epi32(value[p], offset, value[p], zero);
            }
#pragma GCC unroll 3
            for (int tap = 0; tap < kTaps; ++tap) {
                if ((call.taps >> (row * kTaps + tap) & 1) == 0) continue;
                __m512i any = value[tap];
#pragma GCC unroll 14
                for (int p = 1; p < P; ++p) any = _mm512_or_si512(any, value[tap + p]);
                const __mmask16 active = _mm512_mask_test_epi32_mask(inside, any, any);
                const __m512i number = _mm512_maskz_compress_epi32(active, count);
                const __m512i x_base = _mm512_set1_epi32(static_cast<std::int32_t>(at) + 4 * tap * quads);
                const __m512i w_base = _mm512_set1_epi32((row * kTaps + tap) * quads + first);
                _mm512_storeu_si512(x_at + tile.num_quads, _mm512_add_epi32(_mm512_slli_epi32(number, 2), x_base));
                _mm512_storeu_si512(w_at + tile.num_quads, _mm512_slli_epi32(_mm512_add_epi32(number, w_base), 6));
                tile.num_quads += _mm_popcnt_u32(active);
                if constexpr (kOffset) tile.num_offset += _mm_popcnt_u32(active & offset);
            }
        }
    }
}

// The most pixels of a tile of so many blocks.
constexpr int pixels_of(int blocks, bool offset, int most) {
    while (!fits(most, blocks, offset)) --most;
    return most;
}

// Blocks of a tile where few inputs are zero: as many as leave a row in as few tiles as it can be.
int blocks_of_dense(std::int64_t width, bool offset) {
    int best = 2;
    for (int blocks = 3; blocks <= 4; ++blocks) {
        const int most = pixels_of(best, offset, kMaxPixels), fewer = pixels_of(blocks, offset, kMaxPixels);
        if ((width + fewer - 1) / fewer <= (width + most - 1) / most) best = blocks;
    }
    return best;
}

using FindFunction = void (*)(const ConvCall&, std::ptrdiff_t, std::int32_t*, std::int32_t*, Tile&);

template <int kTaps, bool kOffset>
constexpr FindFunction kFindOf[kMaxPixels] = {
    find_quads<1, kTaps, kOffset>,  find_quads<2, kTaps, kOffset>,  find_quads<3, kTaps, kOffset>,
    find_quads<4, kTaps, kOffset>,  find_quads<5, kTaps, kOffset>,  find_quads<6, kTaps, kOffset>,
    find_quads<7, kTaps, kOffset>,  find_quads<8, kTaps, kOffset>,  find_quads<9, kTaps, kOffset>,
    find_quads<10, kTaps, kOffset>, find_quads<11, kTaps, kOffset>, find_quads<12, kTaps, kOffset>,
    find_quads<13, kTaps, kOffset>, find_quads<14, kTaps, kOffset>};

void run_task(const ConvCall& call, const ConvTask& task, void* scratch) {
    const ConvPatch<std::uint8_t> patch =
        call.in_place ? patch_in_place(call, task) : fill_patch(call, task, patch_memory<std::uint8_t>(call, scratch));
    const std::ptrdiff_t block_size = std::ptrdiff_t{call.kernel} * call.kernel * call.in_padded * kConvBlock;
    const std::int64_t width = task.x1 - task.x0;
    const bool offset = call.offset_channels > 0;
    const FindFunction* const find = call.kernel == 3 ? kFindOf<3, false>
                                     : offset         ? kFindOf<1, true>
                                                      : kFindOf<1, false>;
    const int most_blocks = call.dense ? blocks_of_dense(width, offset) : call.kernel == 3 ? kMaxBlocks : 4;
    const int num_groups = (task.block1 - task.block0 + most_blocks - 1) / most_blocks;
    const int largest = (task.block1 - task.block0 + num_groups - 1) / num_groups;
    const int most = pixels_of(largest, offset, call.dense ? kMaxPixels : kSparsePixels);
    const std::int64_t num_tiles = (width + most - 1) / most;
    Tile tiles[kConvListTiles];
    for (std::int64_t y = task.y0; y < task.y1; ++y) {
        for (std::int64_t t0 = 0; t0 < num_tiles; t0 += kConvListTiles) {
            const int count = static_cast<int>(num_tiles - t0 < kConvListTiles ? num_tiles - t0 : kConvListTiles);
            const auto begin_of = [&](std::int64_t t) { return width * t / num_tiles; };  // tiles of nearly equal width
            for (int t = 0; t < count; ++t) {
                const std::int64_t begin = begin_of(t0 + t), pixels = begin_of(t0 + t + 1) - begin;
                auto* const list = static_cast<std::int32_t*>(scratch) + 2 * t * call.list_length;
                tiles[t].x = patch.origin + (y - task.y0) * patch.strides.row + begin * patch.strides.pixel;
                tiles[t].x_pixel = patch.strides.pixel;
                find[pixels - 1](call, patch.strides.row, list, list + call.list_length, tiles[t]);
            }
            for (int g = 0; g < num_groups; ++g) {
                // Groups of nearly equal size: 9 blocks as 3 + 3 + 3, not as 4 + 4 + 1.
                const int block = task.block0 + (task.block1 - task.block0) * g / num_groups;
                const int blocks = task.block0 + (task.block1 - task.block0) * (g + 1) / num_groups - block;
                const int channel = block * kConvBlock;
                for (int t = 0; t < count; ++t) {
                    const std::int64_t begin = begin_of(t0 + t), pixels = begin_of(t0 + t + 1) - begin;
                    const std::int64_t x = task.x0 + begin;
                    Tile& tile = tiles[t];
                    tile.weights = static_cast<const std::int8_t*>(call.weights) + block * block_size;
                    tile.block_size = block_size;
                    tile.bias = call.bias + channel;
                    tile.multiplier = call.multiplier + channel;
                    tile.residual = call.residual == nullptr ? nullptr
                                                             : call.residual + y * call.residual_strides.row +
                                                                   x * call.residual_strides.pixel + channel;
                    tile.residual_pixel = call.residual_strides.pixel;
                    const std::ptrdiff_t at = y * call.out_strides.row + x * call.out_strides.pixel + channel;
                    if (call.out_i16) {
                        tile.out = static_cast<std::int16_t*>(call.out) + at;
                    } else {
                        tile.out = static_cast<std::uint8_t*>(call.out) + at;
                    }
                    tile.out_pixel = call.out_strides.pixel;
                    tile.out_i16 = call.out_i16;
                    tile.last_mask = first_of_16(call.out_channels - (block + blocks - 1) * kConvBlock);
                    kTiles[offset][blocks - 1][pixels - 1](tile);
                }
            }
        }
    }
}

}  // namespace

extern const ConvBackend kConvAvx512 = {"avx512vnni",        /*step=*/4,      /*weight_bytes=*/1,
                                        /*scratch_bytes=*/1, /*direct=*/true, run_task};

}  // namespace l2c

#endif  // __x86_64__
