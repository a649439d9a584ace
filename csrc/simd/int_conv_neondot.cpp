// The integer convolution with dot products (ARMv8.2, most ARM64 since 2018): four bytes times four, added to an int32.
//
// There are products of signed and of unsigned bytes, none of both (that came with i8mm), so inputs of the two kinds
// take different ways. Where 128 stands for 0, x - 128 is a signed byte, and so is w: sdot. All other inputs are
// unsigned; their weights are kept as w + 128, also unsigned (ConvBackend::flips_signs), and
//
//   sum w x = sum (w + 128) x - 128 sum x
//
// where sum x, the same for all outputs of a pixel, is taken once a tile. Sums of the unsigned products may wrap; mod
// 2^32 nothing is lost, and the result is less than 2^31 in size, which IntConv's constructor checks.

#if defined(__aarch64__)

#include "simd/int_conv_neon.h"

namespace l2c {
namespace {

constexpr int kQuad = 4;

// Four inputs, then zeros.
inline uint8x8_t load_quad(const std::uint8_t* x) {
    std::uint32_t quad;
    std::memcpy(&quad, x, sizeof(quad));
    return vreinterpret_u8_u32(vset_lane_u32(quad, vdup_n_u32(0), 0));
}

struct Dot {
    using Input = std::uint8_t;
    using Weight = std::uint8_t;
    static constexpr int kPixels = 5;
    using DotTile = Tile<Input, Weight>;

    template <int P, bool kOffset>
    static void add_quad(const DotTile& tile, int i, uint32x4_t (&acc)[P][4]) {
        const std::uint8_t* x = tile.x + tile.x_at[i];
        const std::uint8_t* w = tile.weights + tile.w_at[i];
        uint8x16_t weight[4];
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) weight[n] = vld1q_u8(w + 16 * n);
#pragma GCC unroll 5
        for (int p = 0; p < P; ++p) {
            const uint8x8_t value = load_quad(x + p * tile.x_pixel);
            if constexpr (kOffset) {
                const int8x8_t centred = vreinterpret_s8_u8(veor_u8(value, vdup_n_u8(kConvOffset)));
#pragma GCC unroll 4
                for (int n = 0; n < 4; ++n) {
                    acc[p][n] = vreinterpretq_u32_s32(
                        vdotq_lane_s32(vreinterpretq_s32_u32(acc[p][n]), vreinterpretq_s8_u8(weight[n]), centred, 0));
                }
            } else {
#pragma GCC unroll 4
                for (int n = 0; n < 4; ++n) acc[p][n] = vdotq_lane_u32(acc[p][n], weight[n], value, 0);
            }
        }
    }

    template <int P>
    static void accumulate(const DotTile& tile) {
        uint32x4_t acc[P][4];
#pragma GCC unroll 5
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) {
                const uint32x4_t bias = vreinterpretq_u32_s32(vld1q_s32(tile.bias + 4 * n));
                acc[p][n] = vaddq_u32(bias, vdupq_n_u32(tile.start[p]));
            }
        }
        int i = 0;
        for (; i < tile.num_offset; ++i) add_quad<P, true>(tile, i, acc);
        for (; i < tile.num_groups; ++i) add_quad<P, false>(tile, i, acc);
#pragma GCC unroll 5
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) {
                vst1q_s32(tile.acc + p * kConvBlock + 4 * n, vreinterpretq_s32_u32(acc[p][n]));
            }
        }
    }

    static constexpr void (*kAccumulate[kPixels + 1])(const DotTile&) = {nullptr,       accumulate<1>, accumulate<2>,
                                                                         accumulate<3>, accumulate<4>, accumulate<5>};

    // 16 inputs, of which the first `count` quads exist. Nothing past these is read: they may be the caller's last.
    static uint8x16_t load(const std::uint8_t* x, int count) {
        if (count >= 4) return vld1q_u8(x);
        std::uint8_t bytes[16] = {};
        std::memcpy(bytes, x, static_cast<std::size_t>(count) * kQuad);
        return vld1q_u8(bytes);
    }

    // 128 in each byte of the offset ones among quads first .. first + 3.
    static uint8x16_t offsets(const ConvCall& call, int first) {
        constexpr std::uint32_t kNumbers[4] = {0, 1, 2, 3};
        const uint32x4_t number = vaddq_u32(vld1q_u32(kNumbers), vdupq_n_u32(static_cast<std::uint32_t>(first)));
        const auto end = static_cast<std::uint32_t>(call.offset_channels / kQuad);
        return vandq_u8(vreinterpretq_u8_u32(vcltq_u32(number, vdupq_n_u32(end))), vdupq_n_u8(kConvOffset));
    }

    static void find(const ConvCall& call, std::ptrdiff_t x_row, int pixels, std::int32_t* x_at, std::int32_t* w_at,
                     DotTile& tile) {
        const int quads = call.kernel * call.in_padded / kQuad;  // of one row of taps
        int found = 0, num_offset = 0;
        for (int row = 0; row < call.kernel; ++row) {
            if (!row_counts(call, row)) continue;
            const std::uint8_t* x = tile.x + row * x_row;
            for (int first = 0; first < quads; first += 4) {
                const int count = quads - first < 4 ? quads - first : 4;
                const uint8x16_t offset = offsets(call, first);
                uint8x16_t any = vdupq_n_u8(0);
                for (int p = 0; p < pixels; ++p) {
                    any = vorrq_u8(any, veorq_u8(load(x + p * tile.x_pixel + kQuad * first, count), offset));
                }
                std::uint32_t active[4];
                vst1q_u32(active, vreinterpretq_u32_u8(any));
                for (int i = 0; i < count; ++i) {
                    x_at[found] = static_cast<std::int32_t>(row * x_row) + kQuad * (first + i);
                    w_at[found] = (row * quads + first + i) * kConvBlock * kQuad;
                    found += active[i] != 0;
                    num_offset += active[i] != 0 && kQuad * (first + i) < call.offset_channels;
                }
            }
        }
        tile.x_at = x_at;
        tile.w_at = w_at;
        tile.num_groups = found;
        tile.num_offset = num_offset;
        take_sums(pixels, tile);
    }

    // start = -128 sum x over the listed inputs without an offset.
    static void take_sums(int pixels, DotTile& tile) {
        for (int p = 0; p < pixels; ++p) {
            uint32x2_t sum = vdup_n_u32(0);
            for (int i = tile.num_offset; i < tile.num_groups; ++i) {
                sum = vdot_u32(sum, load_quad(tile.x + tile.x_at[i] + p * tile.x_pixel), vdup_n_u8(1));
            }
            tile.start[p] = 0u - 128u * vget_lane_u32(sum, 0);
        }
    }
};

void run_task(const ConvCall& call, const ConvTask& task, void* scratch) {
    const ConvPatch<std::uint8_t> patch =
        call.in_place ? patch_in_place(call, task) : fill_patch(call, task, patch_memory<std::uint8_t>(call, scratch));
    const std::ptrdiff_t block_size = std::ptrdiff_t{call.kernel} * call.kernel * call.in_padded * kConvBlock;
    run_patch<Dot>(call, task, patch, block_size, scratch);
}

}  // namespace

extern const ConvBackend kConvNeonDot = {"neondot",           /*step=*/4,      /*weight_bytes=*/1,
                                         /*scratch_bytes=*/1, /*direct=*/true, run_task,
                                         /*flips_signs=*/true};

}  // namespace l2c

#endif  // __aarch64__
