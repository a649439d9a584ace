// Exact integer convolution with requantisation: the layers of the probability network P.
//
// Definition, per output pixel and channel o, with zeros outside the picture:
//
//     acc = bias[o] + sum over taps and input channels of weight * x       int32, exact; x - 128 where said so
//     r   = round_half_even(float32(acc) * multiplier[o])                  one float32 product, nothing fused
//     u8:  clamp(r + residual, 0, 255)        i16:  clamp(r, -32768, 32767)
//
// float32(acc) is exact for |acc| < 2^24, which the export of a model guarantees for every layer (then
// float32 convolutions elsewhere give the same integers); beyond that it is rounded to nearest even, on every
// path alike. The product is clamped to +-65536 before the conversion to an integer, which changes no output.
// The default floating-point rounding mode is assumed; denormals flushed to zero or not give the same
// integers.
//
// Every instruction-set path, thread count and stride gives the same integers.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/cpu.h"

namespace l2c {

// A [height, width, channels] array with contiguous channels; strides in elements.
template <typename T>
struct ImageView {
    T* data = nullptr;
    std::ptrdiff_t row_stride = 0;
    std::ptrdiff_t pixel_stride = 0;
};

struct IntConvArguments {
    std::int64_t height;                     // >= 1
    std::int64_t width;                      // >= 1
    ImageView<const std::uint8_t> x;         // in_channels
    ImageView<const std::uint8_t> residual;  // out_channels; data may be null; must be null with out_i16
    ImageView<std::uint8_t> out_u8;          // out_channels; exactly one of the two outputs has data
    ImageView<std::int16_t> out_i16;
    int threads;  // >= 1

    // What a caller that lays out its own buffers can offer or ask for; zeros are always right.
    int x_readable;            // channels of x that may be read, whatever they hold: in_channels and some padding
    bool x_bordered;           // x has a border of one pixel of zeros on all sides, which a 3x3 kernel then reads
    int out_channels;          // only the first so many; 0: all
    bool dense;                // few inputs are zero, and the layer is wide: choose tiles for that
    const std::int32_t* bias;  // instead of the layer's, under its bound; 64-byte aligned whole blocks of 16
};

// What runs for a CPU level: "scalar", "avx2", "avx512vnni", "neon" or "neondot". The level avx512 on a machine without
// VNNI gets "avx2"; the level neon gets "neondot" where there are dot products.
const char* int_conv_backend(Cpu cpu);

// One layer. Immutable after construction; run may be called from several threads at once.
class IntConv {
 public:
    // weight      int8 [out_channels][in_channels][kernel][kernel], kernel 1 or 3
    // bias        int32 [out_channels]
    // multiplier  float32 [out_channels], finite
    // offset_channels  the first so many input channels hold 128 more than they stand for; a multiple of 4, 0 with
    //                  kernel 3
    // Throws std::invalid_argument for other kernels or sizes, a multiplier that is not finite, or
    // 255 * sum|weight| + |bias| >= 2^31 in an output channel: below that bound no partial sum can wrap.
    IntConv(int out_channels, int in_channels, int kernel, const std::int8_t* weight, const std::int32_t* bias,
            const float* multiplier, int offset_channels = 0);
    ~IntConv();

    // The output may share memory with `residual` only where both are the same elements, and with `x`
    // nowhere; the caller checks that. Throws std::bad_alloc.
    void run(const IntConvArguments& arguments, Cpu cpu) const;

    int out_channels() const { return out_channels_; }
    int in_channels() const { return in_channels_; }
    int kernel() const { return kernel_; }

 private:
    struct Packed;

    const void* packed_weights(Cpu cpu) const;

    int out_channels_;
    int in_channels_;
    int kernel_;
    int offset_channels_;
    unsigned taps_;  // those with weights that are not zero, a bit each
    std::vector<std::int8_t> weight_;
    std::unique_ptr<Packed> packed_;
};

}  // namespace l2c
