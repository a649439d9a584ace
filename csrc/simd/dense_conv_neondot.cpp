// The sums of an integer D with dot products (ARMv8.2, most ARM64 since 2018): four bytes times four, added to an
// int32.
//
// There are products of signed and of unsigned bytes, none of both (that came with i8mm), so 128 is taken from each
// input on the way (one instruction for 16 of them) and the biases make up for it: `DenseBackend::centre`.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>

#include "simd/dense_conv_kernels.h"
#include "simd/dense_conv_neon.h"

namespace l2c {
namespace {

using Tile = DenseTile<std::uint8_t, std::int8_t>;

constexpr int kQuad = 4;
constexpr int kCentre = 128;

// x - 128 as signed bytes.
inline int8x16_t centred(uint8x16_t x) {
    return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(kCentre)));
}

// Four inputs, and any bytes after them.
inline uint8x16_t load_quad(const std::uint8_t* x) {
    std::uint32_t quad;
    std::memcpy(&quad, x, sizeof(quad));
    return vreinterpretq_u8_u32(vdupq_n_u32(quad));
}

// The inputs of one lane, whose weights come next.
template <int kLane, int P>
inline void add_quad(const int8x16_t (&value)[P], const std::int8_t*& w, int32x4_t (&acc)[P][4]) {
    int8x16_t weight[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) weight[n] = vld1q_s8(w + 16 * n);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) acc[p][n] = vdotq_laneq_s32(acc[p][n], weight[n], value[p], kLane);
    }
    keep_loads_below();
    w += kQuad * kDenseBlock;
}

template <int P>
void run_tile(const Tile& tile) {
    int32x4_t acc[P][4];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) acc[p][n] = vld1q_s32(tile.bias + 4 * n);
    }
    const std::int8_t* w = tile.weights;
    for (int row = 0; row < tile.rows; ++row) {
        const std::uint8_t* x = tile.x + row * tile.x_row;
        int left = tile.inputs;
        int8x16_t value[P];
        for (; left >= 4 * kQuad; left -= 4 * kQuad, x += 4 * kQuad) {
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) value[p] = centred(vld1q_u8(x + p * tile.x_pixel));
            add_quad<0>(value, w, acc);
            add_quad<1>(value, w, acc);
            add_quad<2>(value, w, acc);
            add_quad<3>(value, w, acc);
        }
        for (; left > 0; left -= kQuad, x += kQuad) {
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) value[p] = centred(load_quad(x + p * tile.x_pixel));
            add_quad<0>(value, w, acc);
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) vst1q_s32(tile.sums + p * tile.sums_pixel + 4 * n, acc[p][n]);
    }
}

constexpr void (*kTiles[kMostPixels + 1])(const Tile&) = {nullptr, run_tile<1>, run_tile<2>, run_tile<3>, run_tile<4>};

void sums(const DenseCall& call, void*) {
    run_tiles(kTiles, first_tile<std::uint8_t, std::int8_t>(call), block_size(call), call.blocks, call.pixels);
}

}  // namespace

extern const DenseBackend kDenseNeonDot = {"neondot",           /*step=*/kQuad, /*weight_bytes=*/1,
                                           /*scratch_bytes=*/0, sums,           neon::matrix,       neon::leaky_stream,
                                           neon::leaky_bytes,   neon::residual, neon::words,        kCentre};

}  // namespace l2c

#endif  // __aarch64__
