// What follows the sums of a dense convolution, written plainly: the scalar path, and the channels that are left over
// from vectors on the others. Compiled once per instruction set, so internal linkage alone: see int_conv_kernels.h.
// `first` is the channel to begin at.

#pragma once

#include "simd/dense_conv.h"

namespace l2c {
namespace {

// Limit on a product before it becomes an integer, and the number that rounds a float32 below 2^22 to nearest even when
// it is added and taken away again (the default rounding mode is assumed).
constexpr float kDenseClamp = 65536.0f;
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

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
