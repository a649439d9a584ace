// What both NEON forms of the integer convolution share: tiles of a row, and the way from sums to outputs.
//
// A tile is up to 6 pixels x one block of 16 outputs, whose 24 registers of sums leave 8 for weights and inputs (with
// dot products, 5: GCC loads all inputs first, and would spill sums). Groups of inputs (of `step` channels of one tap)
// that are zero in all pixels of a tile add nothing and are left out (int_conv_avx512.cpp): each tile starts with a
// list of its other groups. Eight tiles are listed together, so that a block's weights are still in the first-level
// cache for the next tile.

#pragma once

#include <arm_neon.h>

#include "simd/int_conv_kernels.h"

namespace l2c {
namespace {  // internal linkage, see int_conv_kernels.h

constexpr int kMaxPixels = 6;  // of any form

template <typename T, typename W>
struct Tile {
    const T* x;  // first tap of the tile's first pixel
    std::ptrdiff_t x_pixel;
    const std::int32_t* x_at;         // where the groups are, from x
    const std::int32_t* w_at;         // and their weights, from weights
    int num_groups, num_offset;       // the first num_offset groups have offset inputs
    std::uint32_t start[kMaxPixels];  // added to the bias, mod 2^32
    const W* weights;
    const std::int32_t* bias;
    std::int32_t* acc;  // [pixels][16]
};

inline int32x4_t requantise4(const std::int32_t* acc, const float* multiplier) {
    float32x4_t product = vmulq_f32(vcvtq_f32_s32(vld1q_s32(acc)), vld1q_f32(multiplier));
    product = vmaxq_f32(product, vdupq_n_f32(-kConvClamp));
    product = vminq_f32(product, vdupq_n_f32(kConvClamp));
    return vcvtnq_s32_f32(product);  // half to even
}

// Eight channels, saturated: an output that is already beyond int16 is beyond uint8 with any residual.
inline int16x8_t requantise8(const std::int32_t* acc, const float* multiplier) {
    return vcombine_s16(vqmovn_s32(requantise4(acc, multiplier)), vqmovn_s32(requantise4(acc + 4, multiplier + 4)));
}

// Requantises and writes 16 channels of one pixel.
inline void store_block(const ConvCall& call, std::int64_t y, std::int64_t x, int channel, const std::int32_t* acc) {
    int16x8_t r0 = requantise8(acc, call.multiplier + channel);
    int16x8_t r1 = requantise8(acc + 8, call.multiplier + channel + 8);
    const std::ptrdiff_t at = y * call.out_strides.row + x * call.out_strides.pixel + channel;
    if (call.out_i16) {
        std::int16_t* out = static_cast<std::int16_t*>(call.out) + at;
        vst1q_s16(out, r0);
        vst1q_s16(out + 8, r1);
        return;
    }
    if (call.residual != nullptr) {
        const uint8x16_t residual =
            vld1q_u8(call.residual + y * call.residual_strides.row + x * call.residual_strides.pixel + channel);
        r0 = vqaddq_s16(r0, vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(residual))));
        r1 = vqaddq_s16(r1, vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(residual))));
    }
    vst1q_u8(static_cast<std::uint8_t*>(call.out) + at, vcombine_u8(vqmovun_s16(r0), vqmovun_s16(r1)));
}

// All of a task. `Form` has the types Input and Weight, kPixels (the most of a tile), find(call, x_row, pixels, x_at,
// w_at, tile) and kAccumulate[pixels](tile).
template <class Form>
void run_patch(const ConvCall& call, const ConvTask& task, const ConvPatch<typename Form::Input>& patch,
               std::ptrdiff_t block_size, void* scratch) {
    const std::int64_t width = task.x1 - task.x0;
    const std::int64_t num_tiles = (width + Form::kPixels - 1) / Form::kPixels;
    std::int32_t acc[Form::kPixels * kConvBlock];
    Tile<typename Form::Input, typename Form::Weight> tiles[kConvListTiles];
    const auto begin_of = [&](std::int64_t t) { return width * t / num_tiles; };  // tiles of nearly equal width
    const auto pixels_of = [&](std::int64_t t) { return static_cast<int>(begin_of(t + 1) - begin_of(t)); };
    for (std::int64_t y = task.y0; y < task.y1; ++y) {
        for (std::int64_t t0 = 0; t0 < num_tiles; t0 += kConvListTiles) {
            const int count = static_cast<int>(num_tiles - t0 < kConvListTiles ? num_tiles - t0 : kConvListTiles);
            for (int t = 0; t < count; ++t) {
                auto* const list = static_cast<std::int32_t*>(scratch) + 2 * t * call.list_length;
                tiles[t].x = patch.origin + (y - task.y0) * patch.strides.row + begin_of(t0 + t) * patch.strides.pixel;
                tiles[t].x_pixel = patch.strides.pixel;
                tiles[t].acc = acc;
                Form::find(call, patch.strides.row, pixels_of(t0 + t), list, list + call.list_length, tiles[t]);
            }
            for (int block = task.block0; block < task.block1; ++block) {
                const int channel = block * kConvBlock, left = call.out_channels - channel;
                for (int t = 0; t < count; ++t) {
                    const int pixels = pixels_of(t0 + t);
                    tiles[t].weights = static_cast<const typename Form::Weight*>(call.weights) + block * block_size;
                    tiles[t].bias = call.bias + channel;
                    Form::kAccumulate[pixels](tiles[t]);
                    for (int p = 0; p < pixels; ++p) {
                        const std::int64_t x = task.x0 + begin_of(t0 + t) + p;
                        if (left >= kConvBlock) {
                            store_block(call, y, x, channel, acc + p * kConvBlock);
                        } else {
                            store_pixel(call, y, x, channel, left, acc + p * kConvBlock);
                        }
                    }
                }
            }
        }
    }
}

}  // namespace
}  // namespace l2c
