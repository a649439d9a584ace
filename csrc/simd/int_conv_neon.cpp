// The integer convolution with the NEON that every ARM64 has: uint8 and int8 widened to int16, products added to int32.
//
// Exactness: 0 <= x <= 255 (-128 <= x <= 127 with an offset) and -128 <= w <= 127, so a product fits in 32 bits, and no
// partial sum can wrap: all are bounded by |bias| + 255 sum|w| < 2^31, which IntConv's constructor checks. Products of
// bytes in 16 bits (smull, then sadalp) would be 5 and not 4 to an instruction, for inputs that are signed.

#if defined(__aarch64__)

#include "simd/int_conv_neon.h"

namespace l2c {
namespace {

struct Widened {
    using Input = std::int16_t;
    using Weight = std::int16_t;
    static constexpr int kPixels = 6;
    using WidenedTile = Tile<Input, Weight>;

    template <int P>
    static void accumulate(const WidenedTile& tile) {
        int32x4_t acc[P][4];
#pragma GCC unroll 6
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) acc[p][n] = vld1q_s32(tile.bias + 4 * n);
        }
        for (int i = 0; i < tile.num_groups; ++i) {
            const std::int16_t* x = tile.x + tile.x_at[i];
            const std::int16_t* w = tile.weights + tile.w_at[i];
            const int16x8_t w0 = vld1q_s16(w), w1 = vld1q_s16(w + 8);
#pragma GCC unroll 6
            for (int p = 0; p < P; ++p) {
                const int16x8_t value = vld1q_dup_s16(x + p * tile.x_pixel);
                acc[p][0] = vmlal_s16(acc[p][0], vget_low_s16(w0), vget_low_s16(value));
                acc[p][1] = vmlal_high_s16(acc[p][1], w0, value);
                acc[p][2] = vmlal_s16(acc[p][2], vget_low_s16(w1), vget_low_s16(value));
                acc[p][3] = vmlal_high_s16(acc[p][3], w1, value);
            }
        }
#pragma GCC unroll 6
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) vst1q_s32(tile.acc + p * kConvBlock + 4 * n, acc[p][n]);
        }
    }

    static constexpr void (*kAccumulate[kPixels + 1])(const WidenedTile&) = {
        nullptr, accumulate<1>, accumulate<2>, accumulate<3>, accumulate<4>, accumulate<5>, accumulate<6>};

    // Up to 14 bytes after the last run are read.
    static void find(const ConvCall& call, std::ptrdiff_t x_row, int pixels, std::int32_t* x_at, std::int32_t* w_at,
                     WidenedTile& tile) {
        const int run = call.kernel * call.in_padded;
        int found = 0;
        for (int row = 0; row < call.kernel; ++row) {
            if (!row_counts(call, row)) continue;
            const std::int16_t* x = tile.x + row * x_row;
            for (int first = 0; first < run; first += 8) {
                int16x8_t any = vld1q_s16(x + first);
                for (int p = 1; p < pixels; ++p) any = vorrq_s16(any, vld1q_s16(x + p * tile.x_pixel + first));
                std::int16_t active[8];
                vst1q_s16(active, any);
                const int count = run - first < 8 ? run - first : 8;
                for (int i = 0; i < count; ++i) {
                    x_at[found] = static_cast<std::int32_t>(row * x_row) + first + i;
                    w_at[found] = (row * run + first + i) * kConvBlock;
                    found += active[i] != 0;
                }
            }
        }
        tile.x_at = x_at;
        tile.w_at = w_at;
        tile.num_groups = found;
    }
};

void run_task(const ConvCall& call, const ConvTask& task, void* scratch) {
    const ConvPatch<std::int16_t> patch = fill_patch(call, task, patch_memory<std::int16_t>(call, scratch));
    const std::ptrdiff_t block_size = std::ptrdiff_t{call.kernel} * call.kernel * call.in_padded * kConvBlock;
    run_patch<Widened>(call, task, patch, block_size, scratch);
}

}  // namespace

extern const ConvBackend kConvNeon = {"neon",           /*step=*/1, /*weight_bytes=*/2, /*scratch_bytes=*/2,
                                      /*direct=*/false, run_task};

}  // namespace l2c

#endif  // __aarch64__
