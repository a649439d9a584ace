// Portable back end of the integer convolution: the definition in int_conv.h, 16 outputs at a time.

#include "simd/int_conv_kernels.h"

namespace l2c {
namespace {

void run_task(const ConvCall& call, const ConvTask& task, void* scratch) {
    const ConvPatch<std::uint8_t> patch =
        call.in_place ? patch_in_place(call, task) : fill_patch(call, task, patch_memory<std::uint8_t>(call, scratch));
    const int run = call.kernel * call.in_channels;
    const std::ptrdiff_t block_size = static_cast<std::ptrdiff_t>(call.kernel) * run * kConvBlock;
    for (int block = task.block0; block < task.block1; ++block) {
        const int channel = block * kConvBlock;
        const int left = call.out_channels - channel;
        const int count = left < kConvBlock ? left : kConvBlock;
        for (std::int64_t y = task.y0; y < task.y1; ++y) {
            for (std::int64_t x = task.x0; x < task.x1; ++x) {
                std::int32_t acc[kConvBlock];
                std::memcpy(acc, call.bias + channel, sizeof(acc));
                const std::int16_t* w = static_cast<const std::int16_t*>(call.weights) + block * block_size;
                for (int dy = 0; dy < call.kernel; ++dy) {
                    if (!row_counts(call, dy)) {
                        w += run * kConvBlock;
                        continue;
                    }
                    const std::uint8_t* px =
                        patch.origin + (y - task.y0 + dy) * patch.strides.row + (x - task.x0) * patch.strides.pixel;
                    for (int i = 0; i < run; ++i, w += kConvBlock) {
                        const int value = px[i] - (i < call.offset_channels ? kConvOffset : 0);
                        if (value == 0) continue;  // most activations are
                        for (int o = 0; o < kConvBlock; ++o) acc[o] += value * w[o];
                    }
                }
                store_pixel(call, y, x, channel, count, acc);
            }
        }
    }
}

}  // namespace

extern const ConvBackend kConvScalar = {"scalar",        /*step=*/1, /*weight_bytes=*/2, /*scratch_bytes=*/1,
                                        /*direct=*/true, run_task};

}  // namespace l2c
