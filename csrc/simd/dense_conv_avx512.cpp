// AVX-512 kernels of an integer D: four bytes, or two words, times their weights and added to a sum per instruction
// (VNNI). The sums of a tile of pixels times blocks of 16 channels stay in registers.

#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstring>

#include "simd/dense_conv_kernels.h"

namespace l2c {
namespace {

constexpr int kMostPixels[] = {0, 12, 12, 9, 6};  // of a tile of so many blocks: sums, weights and an input fit in 32
constexpr int kMostBlocks = 4;

inline void add_bytes(__m512i& acc, __m512i value, __m512i weight) {
    // Assembly pins the sum to one register, see int_conv_avx512.cpp.
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(value), "v"(weight));
}

inline void add_words(__m512i& acc, __m512i value, __m512i weight) {
    asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(value), "v"(weight));
}

struct Tile {
    const unsigned char* x;
    std::ptrdiff_t x_row, x_pixel;  // bytes
    int rows, quads;                // of taps; groups of four bytes in one of them
    const unsigned char* weights;
    std::ptrdiff_t block_size;  // bytes
    const std::int32_t* bias;   // or null
    std::int32_t* sums;
    std::ptrdiff_t sums_pixel;
};

template <int P, int N, bool kWords>
void run_tile(const Tile& tile) {
    __m512i acc[P][N], weight[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        const __m512i bias =
            tile.bias != nullptr ? _mm512_load_si512(tile.bias + n * kDenseBlock) : _mm512_setzero_si512();
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) acc[p][n] = bias;
    }
    const unsigned char* w = tile.weights;
    for (int row = 0; row < tile.rows; ++row) {
        constexpr int kReach = 3;  // pixels that a pointer reaches without further arithmetic
        const unsigned char* x[(P + kReach - 1) / kReach];
        x[0] = tile.x + row * tile.x_row;
#pragma GCC unroll 4
        for (int p = kReach; p < P; p += kReach) x[p / kReach] = x[p / kReach - 1] + kReach * tile.x_pixel;
        for (int i = 0; i < tile.quads; ++i, w += 64) {
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) weight[n] = _mm512_load_si512(w + n * tile.block_size);
#pragma GCC unroll 12
            for (int p = 0; p < P; ++p) {
                std::int32_t quad;
                std::memcpy(&quad, x[p / kReach] + p % kReach * tile.x_pixel + 4 * i, sizeof(quad));
                const __m512i value = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) {
                    if constexpr (kWords) {
                        add_words(acc[p][n], value, weight[n]);
                    } else {
                        add_bytes(acc[p][n], value, weight[n]);
                    }
                }
            }
        }
    }
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            _mm512_store_si512(tile.sums + p * tile.sums_pixel + n * kDenseBlock, acc[p][n]);
        }
    }
}

using TileFunction = void (*)(const Tile&);

template <int N, bool kWords>
constexpr TileFunction kTilesOf[] = {run_tile<1, N, kWords>, run_tile<2, N, kWords>, run_tile<3, N, kWords>,
                                     run_tile<4, N, kWords>, run_tile<5, N, kWords>, run_tile<6, N, kWords>};
template <bool kWords>
constexpr TileFunction kTilesOf3[] = {run_tile<1, 3, kWords>, run_tile<2, 3, kWords>, run_tile<3, 3, kWords>,
                                      run_tile<4, 3, kWords>, run_tile<5, 3, kWords>, run_tile<6, 3, kWords>,
                                      run_tile<7, 3, kWords>, run_tile<8, 3, kWords>, run_tile<9, 3, kWords>};
template <int N, bool kWords>
constexpr TileFunction kTilesOf12[] = {run_tile<1, N, kWords>,  run_tile<2, N, kWords>,  run_tile<3, N, kWords>,
                                       run_tile<4, N, kWords>,  run_tile<5, N, kWords>,  run_tile<6, N, kWords>,
                                       run_tile<7, N, kWords>,  run_tile<8, N, kWords>,  run_tile<9, N, kWords>,
                                       run_tile<10, N, kWords>, run_tile<11, N, kWords>, run_tile<12, N, kWords>};

template <bool kWords>
constexpr const TileFunction* kTiles[] = {nullptr, kTilesOf12<1, kWords>, kTilesOf12<2, kWords>, kTilesOf3<kWords>,
                                          kTilesOf<4, kWords>};

// Blocks of the tiles that cover so many: 3 where that leaves no single block over.
int blocks_at_once(int blocks) {
    return blocks % 3 == 0 || blocks > kMostBlocks ? 3 : blocks;
}

template <bool kWords>
void run(Tile tile, int blocks, int pixels) {
    const unsigned char* const x = tile.x;
    const std::int32_t* const bias = tile.bias;
    const unsigned char* const weights = tile.weights;
    std::int32_t* const sums = tile.sums;
    const int most = blocks_at_once(blocks), groups = (blocks + most - 1) / most;
    for (int g = 0; g < groups; ++g) {
        const int block = blocks * g / groups, count = blocks * (g + 1) / groups - block;
        tile.weights = weights + block * tile.block_size;
        tile.bias = bias == nullptr ? nullptr : bias + block * kDenseBlock;
        const int tiles = (pixels + kMostPixels[count] - 1) / kMostPixels[count];
        for (int t = 0; t < tiles; ++t) {
            const int begin = pixels * t / tiles, length = pixels * (t + 1) / tiles - begin;
            tile.x = x + begin * tile.x_pixel;
            tile.sums = sums + begin * tile.sums_pixel + block * kDenseBlock;
            kTiles<kWords>[count][length - 1](tile);
        }
    }
}

void sums(const DenseCall& call, void*) {
    const std::ptrdiff_t row = std::ptrdiff_t{call.kernel} * call.in_padded;
    run<false>({call.x, call.x_row, call.x_pixel, call.kernel, static_cast<int>(row / 4),
                static_cast<const unsigned char*>(call.weights), call.kernel * row * kDenseBlock, call.bias, call.sums,
                std::ptrdiff_t{call.blocks} * kDenseBlock},
               call.blocks, call.pixels);
}

void matrix(const MatrixCall& call) {
    const std::ptrdiff_t size = std::ptrdiff_t{call.in_padded} * 2;
    run<true>({reinterpret_cast<const unsigned char*>(call.x), 0, size, 1, call.in_padded / 2,
               reinterpret_cast<const unsigned char*>(call.weights), size * kDenseBlock, nullptr, call.sums,
               std::ptrdiff_t{call.blocks} * kDenseBlock},
              call.blocks, call.pixels);
}

// The channels from c on: 16, or those that are left.
inline __mmask16 lanes(int channels, int c) {
    return channels - c >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (channels - c)) - 1);
}

inline __m512i round_within(__m512 value, float least, float most) {
    value = _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(least)), _mm512_set1_ps(most));
    return _mm512_cvt_roundps_epi32(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline __m512 product(const std::int32_t* sums, const float* multiplier, __mmask16 mask) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask, sums)),
                         _mm512_maskz_loadu_ps(mask, multiplier));
}

inline __m512 leaky_product(const DenseOutput& out, const std::int32_t* sums, int c, __mmask16 mask) {
    const __m512i sum = _mm512_maskz_loadu_epi32(mask, sums + c);
    const __m512 above = _mm512_maskz_loadu_ps(mask, out.above + c), below = _mm512_maskz_loadu_ps(mask, out.below + c);
    const __mmask16 negative = _mm512_movepi32_mask(sum);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mask_blend_ps(negative, above, below));
}

inline __m512i zeros(const DenseOutput& out, int c, __mmask16 mask) {
    return _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, out.zero + c));
}

inline void store_bytes(std::uint8_t* to, __mmask16 mask, __m512i value) {
    _mm_mask_storeu_epi8(to, mask, _mm512_cvtusepi32_epi8(_mm512_max_epi32(value, _mm512_setzero_si512())));
}

// Into the stream, and bytes of it.
inline void store_both(const DenseOutput& out, int p, int c, __mmask16 mask, __m512i value) {
    _mm256_mask_storeu_epi16(out.stream + p * out.stream_pixel + c, mask, _mm512_cvtepi32_epi16(value));
    const __m512i half = _mm512_set1_epi32(1 << (kStreamBits - 1));
    const __m512i coarse = _mm512_srai_epi32(_mm512_add_epi32(value, half), kStreamBits);
    const __m512i zero = zeros(out, c, mask);
    __m512i byte = _mm512_add_epi32(coarse, zero);
    store_bytes(out.bytes + p * out.bytes_pixel + c, mask, byte);
    if (out.rest == nullptr) return;
    constexpr int kShift = kStreamBits - kRestBits;
    byte = _mm512_min_epi32(_mm512_max_epi32(byte, _mm512_setzero_si512()), _mm512_set1_epi32(255));
    const __m512i rest = _mm512_sub_epi32(value, _mm512_slli_epi32(_mm512_sub_epi32(byte, zero), kStreamBits));
    const __m512i fine = _mm512_srai_epi32(_mm512_add_epi32(rest, _mm512_set1_epi32(1 << (kShift - 1))), kShift);
    store_bytes(out.rest + p * out.bytes_pixel + c, mask, _mm512_add_epi32(fine, _mm512_set1_epi32(kRestZero)));
}

void leaky_stream(const DenseOutput& out) {
    for (int p = 0; p < out.pixels; ++p) {
        for (int c = 0; c < out.channels; c += 16) {
            const __mmask16 mask = lanes(out.channels, c);
            const __m512 value = leaky_product(out, out.sums + p * out.sums_pixel, c, mask);
            store_both(out, p, c, mask, round_within(value, -32767.0f, 32767.0f));
        }
    }
}

void leaky_bytes(const DenseOutput& out) {
    for (int p = 0; p < out.pixels; ++p) {
        for (int c = 0; c < out.channels; c += 16) {
            const __mmask16 mask = lanes(out.channels, c);
            const __m512 value = leaky_product(out, out.sums + p * out.sums_pixel, c, mask);
            const __m512i integers = round_within(value, -kDenseClamp, kDenseClamp);
            store_bytes(out.bytes + p * out.bytes_pixel + c, mask, _mm512_add_epi32(integers, zeros(out, c, mask)));
        }
    }
}

void residual(const DenseOutput& out) {
    for (int p = 0; p < out.pixels; ++p) {
        const std::int16_t* const stream = out.stream + p * out.stream_pixel;
        for (int c = 0; c < out.channels; c += 16) {
            const __mmask16 mask = lanes(out.channels, c);
            const __m512 value = product(out.sums + p * out.sums_pixel + c, out.above + c, mask);
            const __m512i added = round_within(value, -kDenseClamp, kDenseClamp);
            const __m512i before = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, stream + c));
            const __m512 total = _mm512_cvtepi32_ps(_mm512_add_epi32(added, before));
            const __m512 scaled = _mm512_mul_ps(total, _mm512_maskz_loadu_ps(mask, out.scale + c));
            store_both(out, p, c, mask, round_within(scaled, -32768.0f, 32767.0f));
        }
    }
}

void words(const DenseOutput& out) {
    for (int p = 0; p < out.pixels; ++p) {
        for (int c = 0; c < out.channels; c += 16) {
            const __mmask16 mask = lanes(out.channels, c);
            const __m512 value = product(out.sums + p * out.sums_pixel + c, out.above + c, mask);
            _mm256_mask_storeu_epi16(out.stream + p * out.stream_pixel + c, mask,
                                     _mm512_cvtepi32_epi16(round_within(value, -32768.0f, 32767.0f)));
        }
    }
}

}  // namespace

extern const DenseBackend kDenseAvx512 = {"avx512vnni", /*step=*/4, /*weight_bytes=*/1, /*scratch_bytes=*/0,
                                          sums,         matrix,     leaky_stream,       leaky_bytes,
                                          residual,     words};

}  // namespace l2c

#endif  // __x86_64__
