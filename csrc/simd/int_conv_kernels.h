// What the driver (int_conv.cpp) and the instruction-set back ends of the integer convolution share.
//
// Read me first:
//   - This header is compiled once per instruction set, so it holds plain structs and functions of internal
//     linkage only. An ordinary inline function or a std:: container here could be compiled for AVX-512 and
//     then be picked by the linker for every caller, the scalar path included.
//   - All back ends read weights in one layout, [block][K / step][16][step]: blocks of 16 output channels
//   (the last
//     one padded with zeros), K = kernel * kernel * padded input channels in the order (dy, dx, channel), and
//     `step` neighbouring input channels that one instruction multiplies and adds. Input channels are padded
//     with zero weights to a multiple of `step`.
//   - The three taps of one kernel row are neighbours in memory (NHWC), so a 3x3 convolution is three runs of
//     3 * channels elements and a 1x1 convolution one run of `channels`; no kernel knows more about taps than
//     that.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace l2c {

constexpr int kConvBlock = 16;  // output channels of one block

// The byte that stands for 0 in the first ConvCall::offset_channels input channels; the others have 0.
constexpr int kConvOffset = 128;

// Tiles of one row whose lists of inputs are made together; a list holds two numbers for each entry.
constexpr int kConvListTiles = 8;
constexpr int kConvLists = 2 * kConvListTiles;

// Limit on |float32(acc) * multiplier| before it becomes an integer. Any limit >= 32768 + 255 gives the same
// outputs; this one keeps the conversion to int32 defined.
constexpr float kConvClamp = 65536.0f;

// Strides of one [height, width, channels] array with contiguous channels, in elements.
struct ConvStrides {
    std::ptrdiff_t row;
    std::ptrdiff_t pixel;
};

// One call of IntConv::run, as the back ends see it.
struct ConvCall {
    int kernel;           // 1 or 3
    int in_channels;      // as in x
    int in_padded;        // in_channels rounded up to the back end's step
    int offset_channels;  // the first so many hold 128 more; a multiple of 4, 0 with kernel 3
    int out_channels;
    std::int64_t height;
    std::int64_t width;
    const std::uint8_t* x;
    ConvStrides x_strides;
    bool in_place;                 // x needs no zero-padded copy: in_padded channels and the border can be read
    const std::uint8_t* residual;  // or null
    ConvStrides residual_strides;
    void* out;  // uint8 or int16
    ConvStrides out_strides;
    bool out_i16;
    bool dense;           // few inputs are zero; decides nothing but the time
    unsigned taps;        // bit dy * kernel + dx: whether the tap has a weight that is not zero; others may be left out
    const void* weights;  // packed, 64-byte aligned
    std::int64_t list_length;  // room for one number of each group of `step` inputs and 16 more; a multiple of 16
    const std::int32_t* bias;  // padded with zeros to whole blocks, 64-byte aligned
    const float* multiplier;   // likewise
};

// A rectangle of output pixels and a range of output blocks; the unit of work of one thread.
struct ConvTask {
    std::int64_t y0, y1, x0, x1;
    int block0, block1;
};

// One implementation. `scratch`, 64-byte aligned, has kConvLists * list_length int32, then room for fill_patch unless
// call.in_place.
struct ConvBackend {
    const char* name;
    int step;           // input channels per instruction
    int weight_bytes;   // 1: int8, 2: int16
    int scratch_bytes;  // per element of the zero-padded copy of the input
    bool direct;        // reads x itself where call.in_place
    void (*run)(const ConvCall& call, const ConvTask& task, void* scratch);
    bool flips_signs = false;  // int8 weights are kept as uint8 with 128 more, but for those of inputs with an offset
};

extern const ConvBackend kConvScalar;
#if defined(__x86_64__)
extern const ConvBackend kConvAvx2;
extern const ConvBackend kConvAvx512;
#elif defined(__aarch64__)
extern const ConvBackend kConvNeon;
extern const ConvBackend kConvNeonDot;
#endif

namespace {  // internal linkage, see above

// Whether a row of taps has a weight that is not zero.
inline bool row_counts(const ConvCall& call, int row) {
    return (call.taps >> (row * call.kernel) & ((1u << call.kernel) - 1)) != 0;
}

// Input pixels as a kernel walks them: `origin` is the first tap of the task's first output pixel.
template <typename T>
struct ConvPatch {
    const T* origin;
    ConvStrides strides;
};

template <typename T>
T* patch_memory(const ConvCall& call, void* scratch) {
    return reinterpret_cast<T*>(static_cast<std::int32_t*>(scratch) + kConvLists * call.list_length);
}

// The task's input pixels where they are.
inline ConvPatch<std::uint8_t> patch_in_place(const ConvCall& call, const ConvTask& task) {
    const int radius = call.kernel / 2;
    return {call.x + (task.y0 - radius) * call.x_strides.row + (task.x0 - radius) * call.x_strides.pixel,
            call.x_strides};
}

// Copies the task's rectangle and its border into `scratch`, channels padded with zeros to call.in_padded and
// zeros outside the picture, so that no kernel needs a branch at the border. Where T is signed, the offset is taken
// away.
template <typename T>
ConvPatch<T> fill_patch(const ConvCall& call, const ConvTask& task, T* scratch) {
    const int radius = call.kernel / 2;
    const std::ptrdiff_t pitch = call.in_padded;
    const std::ptrdiff_t row_pitch = (task.x1 - task.x0 + 2 * radius) * pitch;
    const std::int64_t x_begin = task.x0 - radius < 0 ? 0 : task.x0 - radius;
    const std::int64_t x_end = task.x1 + radius > call.width ? call.width : task.x1 + radius;
    for (std::int64_t y = task.y0 - radius; y < task.y1 + radius; ++y) {
        T* row = scratch + (y - task.y0 + radius) * row_pitch;
        if (y < 0 || y >= call.height) {
            std::memset(row, 0, static_cast<std::size_t>(row_pitch) * sizeof(T));
            continue;
        }
        T* dst = row + (x_begin - (task.x0 - radius)) * pitch;
        std::memset(row, 0, static_cast<std::size_t>(dst - row) * sizeof(T));
        const std::uint8_t* src = call.x + y * call.x_strides.row + x_begin * call.x_strides.pixel;
        for (std::int64_t x = x_begin; x < x_end; ++x) {
            for (int c = 0; c < call.in_channels; ++c) dst[c] = src[c];
            if constexpr (std::is_signed_v<T>) {
                for (int c = 0; c < call.offset_channels; ++c) dst[c] = static_cast<T>(dst[c] - kConvOffset);
            }
            for (int c = call.in_channels; c < call.in_padded; ++c) dst[c] = 0;
            dst += pitch;
            src += call.x_strides.pixel;
        }
        std::memset(dst, 0, static_cast<std::size_t>(row + row_pitch - dst) * sizeof(T));
    }
    return {scratch, {row_pitch, pitch}};
}

// round_half_even(float32(acc) * multiplier): one correctly rounded float32 product in the default rounding
// mode.
inline std::int32_t requantise(std::int32_t acc, float multiplier) {
    float product = static_cast<float>(acc) * multiplier;
    product = product < -kConvClamp ? -kConvClamp : product;
    product = product > kConvClamp ? kConvClamp : product;
    return static_cast<std::int32_t>(std::nearbyint(product));
}

// Requantises and writes `count` channels of one output pixel; the plain form of what the vector paths do.
inline void store_pixel(const ConvCall& call, std::int64_t y, std::int64_t x, int channel, int count,
                        const std::int32_t* acc) {
    const std::ptrdiff_t at = y * call.out_strides.row + x * call.out_strides.pixel + channel;
    if (call.out_i16) {
        std::int16_t* out = static_cast<std::int16_t*>(call.out) + at;
        for (int o = 0; o < count; ++o) {
            const std::int32_t r = requantise(acc[o], call.multiplier[channel + o]);
            out[o] = static_cast<std::int16_t>(r < -32768 ? -32768 : r > 32767 ? 32767 : r);
        }
        return;
    }
    std::uint8_t* out = static_cast<std::uint8_t*>(call.out) + at;
    const std::uint8_t* residual = nullptr;
    if (call.residual != nullptr) {
        residual = call.residual + y * call.residual_strides.row + x * call.residual_strides.pixel + channel;
    }
    for (int o = 0; o < count; ++o) {
        const std::int32_t r = requantise(acc[o], call.multiplier[channel + o]) + (residual ? residual[o] : 0);
        out[o] = static_cast<std::uint8_t>(r < 0 ? 0 : r > 255 ? 255 : r);
    }
}

}  // namespace
}  // namespace l2c
