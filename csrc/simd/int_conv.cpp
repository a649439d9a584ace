// Packs the weights, divides a layer's work into tasks, and hands them to the back end and the threads.

#include "simd/int_conv.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "core/aligned_buffer.h"
#include "core/thread_pool.h"
#include "simd/int_conv_kernels.h"

namespace l2c {
namespace {

constexpr std::int64_t kPatchBytes = 128 << 10;  // input of one task: a fraction of the second-level cache
constexpr std::int64_t kMaxTaskWidth = 256;
constexpr std::int64_t kMinTaskPixels = 24;    // whole tiles of every size but one
constexpr std::int64_t kTasksPerThread = 4;    // evens out threads that are slowed by other programs
constexpr std::ptrdiff_t kMaxRow = 1 << 29;    // bytes: places in three rows fit in 31 bits
constexpr int kMaxInputs = 1 << 25;            // of one output: places in the weights of a block fit in 31 bits
constexpr std::int64_t kSerialMacs = 1 << 20;  // below some 10 us of work, waking a thread does not pay

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}
std::int64_t round_up(std::int64_t a, std::int64_t b) {
    return ceil_div(a, b) * b;
}

const ConvBackend& backend_of(Cpu cpu) {
#if defined(__x86_64__)
    if (cpu == Cpu::kAvx512) return cpu_has_avx512_vnni() ? kConvAvx512 : kConvAvx2;
    if (cpu == Cpu::kAvx2) return kConvAvx2;
#elif defined(__aarch64__)
    if (cpu == Cpu::kNeon) return cpu_has_neon_dot() ? kConvNeonDot : kConvNeon;
#endif
    (void)cpu;
    return kConvScalar;
}

// int8 [O][I][k][k] -> T [block][k][k][padded I / step][16][step], zeros where there is no channel.
template <typename T>
void pack_weights(const std::vector<std::int8_t>& weight, int out_channels, int in_channels, int kernel, int step,
                  AlignedBuffer& buffer) {
    const std::size_t taps = static_cast<std::size_t>(kernel) * kernel;
    const std::size_t groups = static_cast<std::size_t>(ceil_div(in_channels, step));
    const std::size_t blocks = static_cast<std::size_t>(ceil_div(out_channels, kConvBlock));
    const std::size_t size = blocks * taps * groups * kConvBlock * step;
    T* packed = static_cast<T*>(buffer.reserve(size * sizeof(T)));
    std::fill(packed, packed + size, T{0});
    const std::int8_t* from = weight.data();
    const std::size_t tap_size = groups * kConvBlock * step;
    for (std::size_t o = 0; o < static_cast<std::size_t>(out_channels); ++o) {
        T* block = packed + (o / kConvBlock) * taps * tap_size + o % kConvBlock * step;
        for (int i = 0; i < in_channels; i += step, block += kConvBlock * step) {
            for (int n = 0; n < std::min(step, in_channels - i); ++n) {
                for (std::size_t tap = 0; tap < taps; ++tap) block[tap * tap_size + n] = *from++;
            }
        }
    }
}

// Turns packed int8 weights w into uint8 w + 128, but for those of the inputs that have an offset.
void flip_signs(int out_channels, int in_channels, int kernel, int step, int offset_channels, AlignedBuffer& buffer) {
    const std::size_t groups = static_cast<std::size_t>(ceil_div(in_channels, step));
    const std::size_t taps = static_cast<std::size_t>(kernel) * kernel;
    const std::size_t tap_size = groups * kConvBlock * step;
    const std::size_t kept = static_cast<std::size_t>(offset_channels) * kConvBlock;
    auto* tap = static_cast<std::uint8_t*>(buffer.data());
    for (std::size_t n = static_cast<std::size_t>(ceil_div(out_channels, kConvBlock)) * taps; n > 0; --n) {
        for (std::size_t i = kept; i < tap_size; ++i) tap[i] ^= 0x80;
        tap += tap_size;
    }
}

// sum |weight| of n weights.
std::int64_t sum_of_sizes(const std::int8_t* weight, std::size_t n) {
    constexpr std::size_t kPiece = 1 << 16;  // whose sum fits in 32 bits
    std::int64_t total = 0;
    for (std::size_t begin = 0; begin < n; begin += kPiece) {
        std::int32_t sum = 0;
        for (std::size_t i = begin; i < std::min(begin + kPiece, n); ++i) sum += std::abs(static_cast<int>(weight[i]));
        total += sum;
    }
    return total;
}

// Bit t: whether tap t of int8 [O][I][taps] has a weight that is not zero.
unsigned used_taps(const std::vector<std::int8_t>& weight, int taps) {
    const unsigned all = (1u << taps) - 1;
    unsigned used = 0;
    for (std::size_t i = 0; i < weight.size() && used != all; i += static_cast<std::size_t>(taps)) {
        for (int tap = 0; tap < taps; ++tap) used |= (weight[i + static_cast<std::size_t>(tap)] != 0 ? 1u : 0u) << tap;
    }
    return used;
}

// `count` values and zeros up to whole blocks.
template <typename T>
void pad_blocks(const T* values, int count, AlignedBuffer& buffer) {
    const std::int64_t padded = round_up(count, kConvBlock);
    T* out = static_cast<T*>(buffer.reserve(static_cast<std::size_t>(padded) * sizeof(T)));
    std::copy(values, values + count, out);
    std::fill(out + count, out + padded, T{0});
}

// How a call is cut into tasks: a grid of rectangles times ranges of output blocks.
struct Plan {
    std::int64_t rows, cols;          // of a rectangle
    std::int64_t num_rows, num_cols;  // rectangles down and across
    std::int64_t num_ranges;          // ranges of blocks
    std::int64_t blocks;

    std::int64_t num_tasks() const { return num_rows * num_cols * num_ranges; }

    ConvTask task(std::int64_t i, const ConvCall& call) const {
        const std::int64_t range = i % num_ranges;
        const std::int64_t x0 = i / num_ranges % num_cols * cols;
        const std::int64_t y0 = i / num_ranges / num_cols * rows;
        return {y0,
                std::min(y0 + rows, call.height),
                x0,
                std::min(x0 + cols, call.width),
                static_cast<int>(blocks * range / num_ranges),
                static_cast<int>(blocks * (range + 1) / num_ranges)};
    }
};

Plan make_plan(const ConvCall& call, int scratch_bytes, std::int64_t threads) {
    Plan plan;
    plan.blocks = ceil_div(call.out_channels, kConvBlock);
    std::int64_t pixels = kPatchBytes / (static_cast<std::int64_t>(call.in_padded) * scratch_bytes);
    if (threads > 1) pixels = std::min(pixels, ceil_div(call.height * call.width, threads * kTasksPerThread));
    pixels = std::max(pixels, kMinTaskPixels);
    const std::int64_t widest = std::min(pixels, kMaxTaskWidth);
    plan.cols = call.width;
    if (call.width > widest) plan.cols = round_up(ceil_div(call.width, ceil_div(call.width, widest)), kMinTaskPixels);
    plan.num_cols = ceil_div(call.width, plan.cols);
    plan.rows = std::clamp<std::int64_t>(pixels / plan.cols, 1, call.height);
    plan.rows = ceil_div(call.height, ceil_div(call.height, plan.rows));
    plan.num_rows = ceil_div(call.height, plan.rows);
    plan.num_ranges = 1;
    if (threads > 1) {
        plan.num_ranges = std::min(plan.blocks, ceil_div(2 * threads, plan.num_rows * plan.num_cols));
    }
    return plan;
}

struct LoopContext {
    const ConvBackend* backend;
    const ConvCall* call;
    const Plan* plan;
    std::size_t scratch_size;
    std::atomic<bool> out_of_memory{false};
};

void run_one_task(void* opaque, std::int64_t i) {
    static thread_local AlignedBuffer scratch;
    LoopContext& context = *static_cast<LoopContext*>(opaque);
    try {
        void* memory = scratch.reserve(context.scratch_size);
        context.backend->run(*context.call, context.plan->task(i, *context.call), memory);
    } catch (const std::bad_alloc&) {
        context.out_of_memory = true;
    }
}

}  // namespace

const char* int_conv_backend(Cpu cpu) {
    return backend_of(cpu).name;
}

// What the back ends read: weights per instruction set, made at first use, and padded bias and multiplier.
struct IntConv::Packed {
    std::once_flag once[kNumCpus];    // by Cpu
    AlignedBuffer weights[kNumCpus];  // by Cpu
    AlignedBuffer bias;
    AlignedBuffer multiplier;
};

IntConv::IntConv(int out_channels, int in_channels, int kernel, const std::int8_t* weight, const std::int32_t* bias,
                 const float* multiplier, int offset_channels)
    : out_channels_(out_channels),
      in_channels_(in_channels),
      kernel_(kernel),
      offset_channels_(offset_channels),
      taps_(0),
      packed_(new Packed) {
    if (out_channels < 1 || in_channels < 1) throw std::invalid_argument("a convolution needs at least one channel");
    if (kernel != 1 && kernel != 3) throw std::invalid_argument("the kernel must be 1x1 or 3x3");
    if (in_channels > kMaxInputs / (kernel * kernel)) throw std::invalid_argument("too many input channels");
    if (offset_channels < 0 || offset_channels > (kernel == 1 ? in_channels : 0) || offset_channels % 4 != 0) {
        throw std::invalid_argument("the number of offset channels is out of range");
    }
    const std::size_t per_output = static_cast<std::size_t>(in_channels) * kernel * kernel;
    for (int o = 0; o < out_channels; ++o) {
        const std::int64_t bound =
            std::abs(static_cast<std::int64_t>(bias[o])) + 255 * sum_of_sizes(weight + o * per_output, per_output);
        if (bound >= std::int64_t{1} << 31) {
            throw std::invalid_argument("255 * sum|weight| + |bias| reaches 2^31 in output channel " +
                                        std::to_string(o));
        }
        if (!std::isfinite(multiplier[o])) {
            throw std::invalid_argument("multiplier is not finite in output channel " + std::to_string(o));
        }
    }
    weight_.assign(weight, weight + per_output * out_channels);
    taps_ = used_taps(weight_, kernel * kernel);
    pad_blocks(bias, out_channels, packed_->bias);
    pad_blocks(multiplier, out_channels, packed_->multiplier);
}

IntConv::~IntConv() = default;

const void* IntConv::packed_weights(Cpu cpu) const {
    const int index = static_cast<int>(cpu);
    AlignedBuffer& buffer = packed_->weights[index];
    std::call_once(packed_->once[index], [&] {
        const ConvBackend& backend = backend_of(cpu);
        if (backend.weight_bytes == 1) {
            pack_weights<std::int8_t>(weight_, out_channels_, in_channels_, kernel_, backend.step, buffer);
            if (backend.flips_signs) {
                flip_signs(out_channels_, in_channels_, kernel_, backend.step, offset_channels_, buffer);
            }
        } else {
            pack_weights<std::int16_t>(weight_, out_channels_, in_channels_, kernel_, backend.step, buffer);
        }
    });
    return buffer.data();
}

void IntConv::run(const IntConvArguments& arguments, Cpu cpu) const {
    const ConvBackend& backend = backend_of(cpu);
    ConvCall call;
    call.kernel = kernel_;
    call.in_channels = in_channels_;
    call.in_padded = static_cast<int>(round_up(in_channels_, backend.step));
    call.offset_channels = offset_channels_;
    call.out_channels = arguments.out_channels > 0 ? arguments.out_channels : out_channels_;
    call.height = arguments.height;
    call.width = arguments.width;
    call.x = arguments.x.data;
    call.x_strides = {arguments.x.row_stride, arguments.x.pixel_stride};
    call.in_place = backend.direct && call.in_padded <= std::max(in_channels_, arguments.x_readable) &&
                    (kernel_ == 1 ||
                     (arguments.x_bordered && call.x_strides.pixel == call.in_padded && call.x_strides.row <= kMaxRow));
    call.residual = arguments.residual.data;
    call.residual_strides = {arguments.residual.row_stride, arguments.residual.pixel_stride};
    call.out_i16 = arguments.out_i16.data != nullptr;
    if (call.out_i16) {
        call.out = arguments.out_i16.data;
        call.out_strides = {arguments.out_i16.row_stride, arguments.out_i16.pixel_stride};
    } else {
        call.out = arguments.out_u8.data;
        call.out_strides = {arguments.out_u8.row_stride, arguments.out_u8.pixel_stride};
    }
    call.dense = arguments.dense;
    call.taps = taps_;
    call.weights = packed_weights(cpu);
    call.list_length = round_up(std::int64_t{kernel_} * kernel_ * call.in_padded / backend.step + 16, 16);
    call.bias = arguments.bias != nullptr ? arguments.bias : static_cast<const std::int32_t*>(packed_->bias.data());
    call.multiplier = static_cast<const float*>(packed_->multiplier.data());

    const auto rows_join = [&](const ConvStrides& strides) { return strides.row == call.width * strides.pixel; };
    if (kernel_ == 1 && rows_join(call.x_strides) && rows_join(call.out_strides) &&
        (call.residual == nullptr || rows_join(call.residual_strides))) {
        call.width *= call.height;  // a 1x1 convolution sees one long row
        call.height = 1;
    }

    const std::int64_t macs = call.height * call.width * in_channels_ * call.out_channels * kernel_ * kernel_;
    const int threads = macs < kSerialMacs ? 1 : arguments.threads;
    const Plan plan = make_plan(call, backend.scratch_bytes, threads);
    LoopContext context;
    context.backend = &backend;
    context.call = &call;
    context.plan = &plan;
    const std::int64_t border = kernel_ - 1, kSlack = 32;  // a vector may end after the patch
    std::int64_t scratch = kConvLists * call.list_length * static_cast<std::int64_t>(sizeof(std::int32_t)) + kSlack;
    if (!call.in_place) {
        scratch += (plan.rows + border) * (plan.cols + border) * call.in_padded * backend.scratch_bytes;
    }
    context.scratch_size = static_cast<std::size_t>(scratch);
    parallel_for(threads, plan.num_tasks(), run_one_task, &context);
    if (context.out_of_memory) throw std::bad_alloc();
}

}  // namespace l2c
