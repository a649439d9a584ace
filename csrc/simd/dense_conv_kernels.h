// What kernels share: tiles of one block of outputs, and what follows the sums of a dense convolution, written plainly:
// the scalar path, and the channels that are left over from vectors on the others (`first` is the channel to begin at).
// Compiled once per instruction set, so internal linkage alone: see int_conv_kernels.h.

#pragma once

#include "simd/dense_conv.h"

namespace l2c {
namespace {

// Neighbouring pixels of one block of outputs.
template <typename X, typename W>
struct DenseTile {
    const X* x;
    std::ptrdiff_t x_row, x_pixel;  // elements
    int rows, inputs;               // runs of taps, and what is multiplied in one
    const W* weights;               // of the block
    const std::int32_t* bias;       // or null
    std::int32_t* sums;
    std::ptrdiff_t sums_pixel;
};

// All blocks and pixels of a call, whose first tile is given: kernels[P] does P pixels, and widths are nearly equal.
template <std::size_t kKernels, typename X, typename W>
void run_tiles(void (*const (&kernels)[kKernels])(const DenseTile<X, W>&), DenseTile<X, W> tile,
               std::ptrdiff_t block_size, int blocks, int pixels) {
    constexpr int kMost = static_cast<int>(kKernels) - 1;
    const DenseTile<X, W> whole = tile;
    const int tiles = (pixels + kMost - 1) / kMost;
    for (int block = 0; block < blocks; ++block) {
        tile.weights = whole.weights + block * block_size;
        tile.bias = whole.bias == nullptr ? nullptr : whole.bias + block * kDenseBlock;
        for (int t = 0; t < tiles; ++t) {
            const int begin = pixels * t / tiles, length = pixels * (t + 1) / tiles - begin;
            tile.x = whole.x + begin * tile.x_pixel;
            tile.sums = whole.sums + begin * tile.sums_pixel + block * kDenseBlock;
            kernels[length](tile);
        }
    }
}

// The first tile of a call, and the weights of a block, for back ends that read a call's own inputs.
template <typename X, typename W>
DenseTile<X, W> first_tile(const DenseCall& call) {
    return {call.x,
            call.x_row,
            call.x_pixel,
            call.kernel,
            call.kernel * call.in_padded,
            static_cast<const W*>(call.weights),
            call.bias,
            call.sums,
            std::ptrdiff_t{call.blocks} * kDenseBlock};
}

inline DenseTile<std::int16_t, std::int16_t> first_tile(const MatrixCall& call) {
    return {call.x,
            0,
            call.in_padded,
            1,
            call.in_padded,
            call.weights,
            nullptr,
            call.sums,
            std::ptrdiff_t{call.blocks} * kDenseBlock};
}

inline std::ptrdiff_t block_size(const DenseCall& call) {
    return std::ptrdiff_t{call.kernel} * call.kernel * call.in_padded * kDenseBlock;
}

inline std::ptrdiff_t block_size(const MatrixCall& call) {
    return std::ptrdiff_t{call.in_padded} * kDenseBlock;
}

// Limit on a product before it becomes an integer, and the number that rounds a float32 below 2^22 to nearest even when
// it is added and taken away again (the default rounding mode is assumed).
constexpr float kDenseClamp = 2097152.0f;  // 2^21
constexpr float kRounder = 12582912.0f;    // 1.5 * 2^23

// round_half_even(value) in -most..most.
inline float rounded_within(float value, float least, float most) {
    value = value < least ? least : value;
    value = value > most ? most : value;
    return (value + kRounder) - kRounder;
}

inline std::int32_t clamped(std::int32_t value, std::int32_t least, std::int32_t most) {
    value = value < least ? least : value;
    return value > most ? most : value;
}

inline float leaky(std::int32_t sum, float above, float below) {
    return static_cast<float>(sum) * (sum < 0 ? below : above);
}

// A place of a residual stream as an input of the next convolution.
inline std::uint8_t byte_of(std::int32_t value, std::int16_t zero) {
    return static_cast<std::uint8_t>(clamped(((value + (1 << (kStreamBits - 1))) >> kStreamBits) + zero, 0, 255));
}

// What the byte leaves of it, as a second byte.
inline std::uint8_t rest_of(std::int32_t value, std::uint8_t byte, std::int16_t zero) {
    constexpr int kShift = kStreamBits - kRestBits;
    const std::int32_t rest = value - (byte - zero) * (1 << kStreamBits);
    return static_cast<std::uint8_t>(clamped(((rest + (1 << (kShift - 1))) >> kShift) + kRestZero, 0, 255));
}

inline void plain_leaky_stream(const DenseOutput& out, int first) {
    for (int p = 0; p < out.pixels; ++p) {
        const std::int32_t* __restrict sums = out.sums + p * out.sums_pixel;
        std::int16_t* __restrict stream = out.stream + p * out.stream_pixel;
        std::uint8_t* __restrict bytes = out.bytes + p * out.bytes_pixel;
        const float* __restrict above = out.above;
        const float* __restrict below = out.below;
        const std::int16_t* __restrict zero = out.zero;
        for (int c = first; c < out.channels; ++c) {
            const auto value =
                static_cast<std::int32_t>(rounded_within(leaky(sums[c], above[c], below[c]), -32767.0f, 32767.0f));
            stream[c] = static_cast<std::int16_t>(value);
            bytes[c] = byte_of(value, zero[c]);
        }
    }
}

inline void plain_leaky_bytes(const DenseOutput& out, int first) {
    for (int p = 0; p < out.pixels; ++p) {
        const std::int32_t* __restrict sums = out.sums + p * out.sums_pixel;
        std::uint8_t* __restrict bytes = out.bytes + p * out.bytes_pixel;
        const float* __restrict above = out.above;
        const float* __restrict below = out.below;
        const std::int16_t* __restrict zero = out.zero;
        for (int c = first; c < out.channels; ++c) {
            const auto value = static_cast<std::int32_t>(
                rounded_within(leaky(sums[c], above[c], below[c]), -kDenseClamp, kDenseClamp));
            bytes[c] = static_cast<std::uint8_t>(clamped(value + zero[c], 0, 255));
        }
    }
}

inline void plain_residual(const DenseOutput& out, int first) {
    for (int p = 0; p < out.pixels; ++p) {
        const std::int32_t* __restrict sums = out.sums + p * out.sums_pixel;
        std::int16_t* __restrict stream = out.stream + p * out.stream_pixel;
        std::uint8_t* __restrict bytes = out.bytes + p * out.bytes_pixel;
        const float* __restrict above = out.above;
        const float* __restrict scale = out.scale;
        const std::int16_t* __restrict zero = out.zero;
        for (int c = first; c < out.channels; ++c) {
            const float product = rounded_within(static_cast<float>(sums[c]) * above[c], -kDenseClamp, kDenseClamp);
            const float total = static_cast<float>(stream[c]) + product;  // exact: below 2^24
            const auto value = static_cast<std::int32_t>(rounded_within(total * scale[c], -32768.0f, 32767.0f));
            stream[c] = static_cast<std::int16_t>(value);
            bytes[c] = byte_of(value, zero[c]);
            if (out.rest != nullptr) out.rest[p * out.bytes_pixel + c] = rest_of(value, bytes[c], zero[c]);
        }
    }
}

inline void plain_words(const DenseOutput& out, int first) {
    for (int p = 0; p < out.pixels; ++p) {
        const std::int32_t* __restrict sums = out.sums + p * out.sums_pixel;
        std::int16_t* __restrict stream = out.stream + p * out.stream_pixel;
        const float* __restrict above = out.above;
        for (int c = first; c < out.channels; ++c) {
            stream[c] = static_cast<std::int16_t>(
                static_cast<std::int32_t>(rounded_within(static_cast<float>(sums[c]) * above[c], -32768.0f, 32767.0f)));
        }
    }
}

}  // namespace
}  // namespace l2c
