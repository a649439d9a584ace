#include "exact/decoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

#include "core/aligned_buffer.h"
#include "core/thread_pool.h"
#include "simd/dense_conv.h"
#include "simd/dense_pack.h"

namespace l2c {
namespace {

constexpr float kSlope = 0.1f;      // of every LeakyReLU
constexpr float kClamp = 65536.0f;  // of products before they become integers
constexpr int kLowBits = 9;         // these four as in l2c/exact/weights.py
constexpr int kPixelBits = 13;
constexpr int kDetailBits = 6;
constexpr int kFactorStepBits = 7;
constexpr int kMostBlock = 64;      // s at most
constexpr int kTilePixels = 36;     // whole tiles of the kernels; sums of 192 channels fit in the first-level cache
constexpr int kTasksPerThread = 6;  // at least, where a picture has so many pixels

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}
int round_up(int a, int b) {
    return (a + b - 1) / b * b;
}

// A convolution as the kernels read it.
struct PackedLayer {
    int outputs = 0, inputs = 0, kernel = 0, in_padded = 0, blocks = 0;
    int first_bias = 0;               // of the changes of biases; -1: none
    std::vector<int> order;           // output o is the model's output order[o]
    std::vector<std::int8_t> weight;  // [outputs][inputs][kernel][kernel], in that order
    std::vector<std::int32_t> bias;   // [outputs]
    std::vector<float> above, below;  // [outputs]
    std::vector<std::uint8_t> zero;   // [in_padded]
    mutable std::once_flag once[kNumCpus];
    mutable DensePacked packed[kNumCpus];

    int padded() const { return blocks * kDenseBlock; }
};

const DensePacked& packed_for(const PackedLayer& layer, Cpu cpu, const DenseBackend& backend) {
    const int index = static_cast<int>(cpu);
    std::call_once(layer.once[index], [&] {
        pack_dense(backend, layer.outputs, layer.inputs, layer.in_padded, layer.kernel, layer.weight.data(),
                   layer.bias.data(), layer.packed[index]);
    });
    return layer.packed[index];
}

std::unique_ptr<PackedLayer> make_layer(const ExactLayerView& view, int first_bias, std::vector<int> order = {}) {
    auto layer = std::make_unique<PackedLayer>();
    if (view.outputs < 1 || view.inputs < 1 || (view.kernel != 1 && view.kernel != 3)) {
        throw std::invalid_argument("a layer needs channels and a kernel of 1x1 or 3x3");
    }
    layer->outputs = view.outputs;
    layer->inputs = view.inputs;
    layer->kernel = view.kernel;
    layer->in_padded = round_up(view.inputs, 4);
    layer->blocks = round_up(view.outputs, kDenseBlock) / kDenseBlock;
    layer->first_bias = first_bias;
    if (order.empty()) {
        for (int o = 0; o < view.outputs; ++o) order.push_back(o);
    }
    const std::size_t per_output = static_cast<std::size_t>(view.inputs) * view.kernel * view.kernel;
    for (int o = 0; o < view.outputs; ++o) {
        const int from = order[static_cast<std::size_t>(o)];
        const std::int8_t* weight = view.weight + from * per_output;
        std::int64_t bound = std::abs(static_cast<std::int64_t>(view.bias[from]));
        for (std::size_t i = 0; i < per_output; ++i) bound += 255 * std::abs(static_cast<int>(weight[i]));
        if (bound >= std::int64_t{1} << 31) throw std::invalid_argument("255 * sum|weight| + |bias| reaches 2^31");
        if (!std::isfinite(view.multiplier[from])) throw std::invalid_argument("a multiplier is not finite");
        layer->weight.insert(layer->weight.end(), weight, weight + per_output);
        layer->bias.push_back(view.bias[from]);
        layer->above.push_back(view.multiplier[from]);
        layer->below.push_back(view.multiplier[from] * kSlope);
    }
    layer->zero.assign(view.zero, view.zero + view.inputs);
    layer->zero.resize(static_cast<std::size_t>(layer->in_padded));
    layer->order = std::move(order);
    return layer;
}

// A square int16 matrix, rows are outputs, for the kernels. Throws std::invalid_argument: its sums could wrap.
void check_and_pack(const std::int16_t* matrix, int size, AlignedBuffer& buffer) {
    for (int o = 0; o < size; ++o) {
        std::int64_t bound = 0;
        for (int i = 0; i < size; ++i) bound += std::abs(static_cast<int>(matrix[std::ptrdiff_t{o} * size + i]));
        if (bound << 15 >= std::int64_t{1} << 31) throw std::invalid_argument("the transform's sums reach 2^31");
    }
    pack_matrix(matrix, size, size, round_up(size, 2), buffer);
}

// Bytes [height + 2][width + 2][channels] whose border is filled, and what lies beside them.
struct Activations {
    std::int64_t height = 0, width = 0;
    int channels = 0;  // padded
    AlignedBuffer memory;

    void reserve(std::int64_t rows, std::int64_t columns, const PackedLayer& reader) {
        height = rows;
        width = columns;
        channels = reader.in_padded;
        memory.reserve(static_cast<std::size_t>((height + 2) * row()));
        const auto put = [&](std::int64_t y, std::int64_t x) { std::memcpy(at(y, x), reader.zero.data(), channels); };
        for (std::int64_t x = -1; x <= width; ++x) {
            put(-1, x);
            put(height, x);
        }
        for (std::int64_t y = 0; y < height; ++y) {
            put(y, -1);
            put(y, width);
        }
    }
    std::ptrdiff_t row() const { return (width + 2) * channels; }
    std::uint8_t* at(std::int64_t y, std::int64_t x) {
        return static_cast<std::uint8_t*>(memory.data()) + (y + 1) * row() + (x + 1) * channels;
    }
    const std::uint8_t* at(std::int64_t y, std::int64_t x) const { return const_cast<Activations*>(this)->at(y, x); }
};

struct Stream {
    std::int64_t width = 0;
    int channels = 0;
    AlignedBuffer memory;

    void reserve(std::int64_t rows, std::int64_t columns, int depth) {
        width = columns;
        channels = depth;
        memory.reserve(static_cast<std::size_t>(rows * columns * depth) * sizeof(std::int16_t));
    }
    std::int16_t* at(std::int64_t y, std::int64_t x) {
        return static_cast<std::int16_t*>(memory.data()) + (y * width + x) * channels;
    }
};

// A map as a layer with `fineness` positions per latent, each way, sees it.
struct LayerMap {
    PlaceMap map;
    std::int64_t width;  // of the map
    int fineness;

    std::int64_t at(std::int64_t y, std::int64_t x) const {
        return map == nullptr ? 0 : map[y / fineness * width + x / fineness];
    }
    // The end of the positions from (y, x) on, in the row, that have one value; at most `end`.
    std::int64_t until(std::int64_t y, std::int64_t x, std::int64_t end) const {
        if (map == nullptr) return end;
        const std::int64_t value = at(y, x);
        do {
            x = (x / fineness + 1) * fineness;
        } while (x < end && at(y, x) == value);
        return std::min(x, end);
    }
};

class Loop {
 public:
    // Calls body(y, x0, x1) for parts of all rows.
    template <typename Body>
    static void rows(std::int64_t height, std::int64_t width, int threads, Body body) {
        const std::int64_t wanted = threads > 1 ? threads * kTasksPerThread : 1;
        const std::int64_t most = std::max<std::int64_t>(1, ceil_div(width, kTilePixels));
        const std::int64_t parts = std::clamp<std::int64_t>(ceil_div(wanted, height), 1, most);
        Context<Body> context{&body, width, parts, {false}};
        parallel_for(threads, height * parts, task<Body>, &context);
        if (context.out_of_memory) throw std::bad_alloc();
    }

 private:
    template <typename Body>
    struct Context {
        Body* body;
        std::int64_t width, parts;
        std::atomic<bool> out_of_memory;
    };

    template <typename Body>
    static void task(void* opaque, std::int64_t i) {
        auto& context = *static_cast<Context<Body>*>(opaque);
        const std::int64_t y = i / context.parts, part = i % context.parts;
        try {
            (*context.body)(y, context.width* part / context.parts, context.width * (part + 1) / context.parts);
        } catch (const std::bad_alloc&) {
            context.out_of_memory = true;
        }
    }
};

// Memory of one thread: `count` T, 64-byte aligned.
template <typename T, int kPlace>
T* scratch(std::size_t count) {
    static thread_local AlignedBuffer buffer;
    return static_cast<T*>(buffer.reserve(count * sizeof(T)));
}

}  // namespace

struct ExactDecoder::Impl {
    int s, c, dims, blocks, num_biases;
    std::unique_ptr<PackedLayer> first, head, local_gain, up, fine1, fine2, last;
    std::vector<std::unique_ptr<PackedLayer>> convolutions;
    AlignedBuffer high, low;

    class Run;
};

// One picture.
class ExactDecoder::Impl::Run {
 public:
    Run(const Impl& model, const ExactPicture& picture, int threads, Cpu cpu)
        : model_(model), picture_(picture), threads_(threads), cpu_(cpu), backend_(dense_backend(cpu)) {
        prepare(*model.first);
        for (const auto& layer : model.convolutions) prepare(*layer);
        prepare(*model.head);
        if (model.local_gain) prepare(*model.local_gain);
        for (const auto* layer : {model.up.get(), model.fine1.get(), model.fine2.get(), model.last.get()}) {
            if (layer != nullptr) prepare(*layer);
        }
    }

    void decode() {
        const std::int64_t height = picture_.height, width = picture_.width;
        const int channels = model_.first->outputs, blocks = model_.blocks;
        Activations bytes, inner;
        Stream stream;
        read_levels(inner);
        stream.reserve(height, width, channels);
        const auto reader = [&](int i) { return i < blocks ? model_.convolutions[2 * i].get() : model_.head.get(); };
        bytes.reserve(height, width, *reader(0));
        layer(
            *model_.first, inner, 1,
            [&](DenseOutput& out, std::int64_t y, std::int64_t x) {
                out.stream = stream.at(y, x);
                out.stream_pixel = channels;
                out.bytes = bytes.at(y, x);
                out.bytes_pixel = bytes.channels;
                backend_.leaky_stream(out);
            },
            reader(0));
        for (int i = 0; i < blocks; ++i) {
            block(*model_.convolutions[2 * i], *model_.convolutions[2 * i + 1], reader(i + 1), i, 1, bytes, inner,
                  stream);
        }
        Activations fine;
        if (model_.up) fine_stage(bytes, fine);
        Loop::rows(height, width, threads_, [&](std::int64_t y, std::int64_t x0, std::int64_t x1) {
            for (std::int64_t x = x0; x < x1; x += kTilePixels) {
                finish(bytes, fine, y, x, static_cast<int>(std::min<std::int64_t>(kTilePixels, x1 - x)));
            }
        });
    }

 private:
    // What this picture makes of a layer: its biases where they are changed, and its zero points in 16 bits.
    struct Prepared {
        const PackedLayer* layer;
        AlignedBuffer biases;  // int32 [values][padded], where they are changed
        std::vector<std::int16_t> zero;
    };

    void prepare(const PackedLayer& layer) {
        prepared_.emplace_back();
        Prepared& mine = prepared_.back();
        mine.layer = &layer;
        mine.zero.assign(layer.zero.begin(), layer.zero.end());
        const std::int32_t* const plain = packed_for(layer, cpu_, backend_).biases();
        if (picture_.biases == nullptr || layer.first_bias < 0) return;
        const std::size_t count = static_cast<std::size_t>(picture_.num_biases);
        auto* const to = static_cast<std::int32_t*>(
            mine.biases.reserve(count * static_cast<std::size_t>(layer.padded()) * sizeof(std::int32_t)));
        for (std::size_t i = 0; i < count; ++i) {
            const std::int32_t* changes = picture_.biases + i * model_.num_biases + layer.first_bias;
            std::int32_t* row = to + i * static_cast<std::size_t>(layer.padded());
            std::copy(plain, plain + layer.padded(), row);
            for (int o = 0; o < layer.outputs; ++o) row[o] += changes[layer.order[static_cast<std::size_t>(o)]];
        }
    }

    const Prepared& prepared(const PackedLayer& layer) const {
        for (const Prepared& one : prepared_) {
            if (one.layer == &layer) return one;
        }
        std::abort();  // every layer is prepared
    }

    // Which biases a layer has at each position.
    LayerMap bias_map(const PackedLayer& layer, int fineness) const {
        return {prepared(layer).biases.data() == nullptr ? nullptr : picture_.bias_map, picture_.width, fineness};
    }

    const std::int32_t* biases(const PackedLayer& layer, std::int64_t which) const {
        const Prepared& mine = prepared(layer);
        if (mine.biases.data() == nullptr) return packed_for(layer, cpu_, backend_).biases();
        return static_cast<const std::int32_t*>(mine.biases.data()) + which * layer.padded();
    }

    void sums(const PackedLayer& layer, const Activations& x, std::int64_t y, std::int64_t x0, int pixels,
              std::int64_t which, std::int32_t* out) const {
        const int radius = layer.kernel / 2;
        DenseCall call;
        call.x = x.at(y - radius, x0 - radius);
        call.x_row = x.row();
        call.x_pixel = x.channels;
        call.kernel = layer.kernel;
        call.in_padded = layer.in_padded;
        call.weights = packed_for(layer, cpu_, backend_).weights.data();
        call.bias = biases(layer, which);
        call.blocks = layer.blocks;
        call.pixels = pixels;
        call.sums = out;
        const std::size_t inputs =
            static_cast<std::size_t>(layer.kernel) * (pixels + layer.kernel - 1) * layer.in_padded;
        backend_.sums(call, scratch<unsigned char, 0>(inputs * backend_.scratch_bytes));
    }

    // A whole layer at so many positions per latent; `finish` puts the outputs of neighbouring pixels from (y, x) on.
    template <typename Finish>
    void layer(const PackedLayer& layer, const Activations& x, int fineness, Finish finish, const PackedLayer* reader,
               const float* scales = nullptr) const {
        const LayerMap biased = bias_map(layer, fineness);
        const LayerMap scaled = {scales == nullptr ? nullptr : picture_.scale_map, picture_.width, fineness};
        const std::int16_t* zero = reader == nullptr ? nullptr : prepared(*reader).zero.data();
        Loop::rows(x.height, x.width, threads_, [&](std::int64_t y, std::int64_t x0, std::int64_t x1) {
            auto* const buffer = scratch<std::int32_t, 1>(static_cast<std::size_t>(kTilePixels) * layer.padded());
            for (std::int64_t at = x0, end; at < x1; at = end) {
                end = std::min<std::int64_t>(x1, at + kTilePixels);
                end = scaled.until(y, at, biased.until(y, at, end));
                const int pixels = static_cast<int>(end - at);
                sums(layer, x, y, at, pixels, biased.at(y, at), buffer);
                DenseOutput out = {};
                out.sums = buffer;
                out.sums_pixel = layer.padded();
                out.pixels = pixels;
                out.channels = layer.outputs;
                out.above = layer.above.data();
                out.below = layer.below.data();
                out.zero = zero;
                if (scales != nullptr) out.scale = scales + scaled.at(y, at) * layer.outputs;
                finish(out, y, at);
            }
        });
    }

    // (stream + conv2(LeakyReLU(conv1(bytes)))) times the scales of modulator k -> stream and bytes.
    void block(const PackedLayer& conv1, const PackedLayer& conv2, const PackedLayer* reader, int k, int fineness,
               Activations& bytes, Activations& inner, Stream& stream) {
        inner.reserve(bytes.height, bytes.width, conv2);
        layer(
            conv1, bytes, fineness,
            [&](DenseOutput& out, std::int64_t y, std::int64_t x) {
                out.bytes = inner.at(y, x);
                out.bytes_pixel = inner.channels;
                backend_.leaky_bytes(out);
            },
            &conv2);
        bytes.reserve(bytes.height, bytes.width, *reader);
        layer(
            conv2, inner, fineness,
            [&](DenseOutput& out, std::int64_t y, std::int64_t x) {
                out.stream = stream.at(y, x);
                out.stream_pixel = stream.channels;
                out.bytes = bytes.at(y, x);
                out.bytes_pixel = bytes.channels;
                if (reader->inputs == 2 * conv2.outputs)
                    out.rest = out.bytes + conv2.outputs;  // two bytes of each input
                backend_.residual(out);
            },
            reader, picture_.scales[static_cast<std::size_t>(k)]);
    }

    void read_levels(Activations& to) const {
        const std::int64_t height = picture_.height, width = picture_.width, plane = height * width;
        to.reserve(height, width, *model_.first);
        Loop::rows(height, width, threads_, [&](std::int64_t y, std::int64_t x0, std::int64_t x1) {
            for (std::int64_t x = x0; x < x1; ++x) {
                std::uint8_t* out = to.at(y, x);
                const std::uint8_t* level = picture_.levels + y * width + x;
                const std::uint8_t* table = picture_.input + constants_map(1).at(y, x) * 2 * model_.c * 256;
                for (int half = 0; half < 2; ++half) {
                    for (int i = 0; i < model_.c; ++i, table += 256) *out++ = table[level[i * plane]];
                }
                for (int i = 2 * model_.c; i < to.channels; ++i) *out++ = 0;
            }
        });
    }

    void fine_stage(const Activations& coarse, Activations& bytes) {
        const int channels = model_.fine1->inputs;
        Activations inner;
        Stream stream;
        stream.reserve(2 * picture_.height, 2 * picture_.width, channels);
        bytes.reserve(2 * picture_.height, 2 * picture_.width, *model_.fine1);
        layer(
            *model_.up, coarse, 1,
            [&](DenseOutput& out, std::int64_t y, std::int64_t x) {
                const std::int32_t* sums = out.sums;
                out.channels = channels;
                for (int part = 0; part < 4; ++part) {  // pixel_shuffle: a group of channels for each place
                    const std::int64_t row = 2 * y + part / 2, column = 2 * x + part % 2;
                    out.sums = sums + part * channels;
                    out.above = model_.up->above.data() + part * channels;
                    out.below = model_.up->below.data() + part * channels;
                    out.stream = stream.at(row, column);
                    out.stream_pixel = 2 * channels;
                    out.bytes = bytes.at(row, column);
                    out.bytes_pixel = 2 * bytes.channels;
                    backend_.leaky_stream(out);
                }
            },
            model_.fine1.get());
        block(*model_.fine1, *model_.fine2, model_.last.get(), model_.blocks, 2, bytes, inner, stream);
    }

    // Pixels of neighbouring latents in a row.
    void finish(const Activations& x, const Activations& fine, std::int64_t y, std::int64_t x0, int pixels) const {
        const int dims = model_.dims, c = model_.c;
        const int in_padded = round_up(dims, 2), transform_padded = round_up(dims, kDenseBlock);
        auto* const coefficients = scratch<std::int16_t, 2>(static_cast<std::size_t>(kTilePixels) * in_padded);
        if (in_padded != dims) std::fill(coefficients, coefficients + pixels * in_padded, std::int16_t{0});
        products(*model_.head, picture_.head, true, x, 1, y, x0, pixels, coefficients, in_padded);
        std::int16_t* local = nullptr;
        if (model_.local_gain) {
            local = scratch<std::int16_t, 3>(static_cast<std::size_t>(kTilePixels) * c);
            products(*model_.local_gain, model_.local_gain->above.data(), false, x, 1, y, x0, pixels, local, c);
        }
        add_latents(y, x0, pixels, local, coefficients, in_padded);
        std::int32_t* parts[2];
        parts[0] = scratch<std::int32_t, 4>(static_cast<std::size_t>(kTilePixels) * transform_padded);
        parts[1] = scratch<std::int32_t, 5>(static_cast<std::size_t>(kTilePixels) * transform_padded);
        for (int i = 0; i < 2; ++i) {
            const AlignedBuffer& matrix = i == 0 ? model_.high : model_.low;
            backend_.matrix({coefficients, in_padded, static_cast<const std::int16_t*>(matrix.data()),
                             transform_padded / kDenseBlock, pixels, parts[i]});
        }
        std::int16_t* detail = nullptr;
        const int details = model_.up ? model_.last->outputs : 0;
        if (model_.up) {
            const std::size_t row = static_cast<std::size_t>(2) * kTilePixels * details;
            detail = scratch<std::int16_t, 6>(2 * row);
            for (int i = 0; i < 2; ++i) {
                for (int part = 0; part < 2; ++part) {  // a tile is at most kTilePixels long
                    const int begin = pixels * part, length = pixels;
                    products(*model_.last, picture_.last, true, fine, 2, 2 * y + i, 2 * x0 + begin, length,
                             detail + i * row + static_cast<std::size_t>(begin) * details, details);
                }
            }
        }
        write(y, x0, pixels, parts[0], parts[1], transform_padded, detail);
    }

    LayerMap constants_map(int fineness) const { return {picture_.constants_map, picture_.width, fineness}; }

    // A convolution's products as int16 [pixels][pitch], for pixels from x0 on; `differs`: whether there are
    // multipliers [values][outputs] of the constants' map.
    void products(const PackedLayer& layer, const float* multiplier, bool differs, const Activations& x, int fineness,
                  std::int64_t y, std::int64_t x0, int pixels, std::int16_t* to, int pitch) const {
        const LayerMap biased = bias_map(layer, fineness);
        const LayerMap told = {differs ? picture_.constants_map : nullptr, picture_.width, fineness};
        auto* const buffer = scratch<std::int32_t, 1>(static_cast<std::size_t>(kTilePixels) * layer.padded());
        for (std::int64_t at = x0, end; at < x0 + pixels; at = end) {
            end = told.until(y, at, biased.until(y, at, x0 + pixels));
            DenseOutput out = {};
            out.pixels = static_cast<int>(end - at);
            sums(layer, x, y, at, out.pixels, biased.at(y, at), buffer);
            out.sums = buffer;
            out.sums_pixel = layer.padded();
            out.channels = layer.outputs;
            out.above = multiplier + told.at(y, at) * layer.outputs;
            out.stream = to + (at - x0) * pitch;
            out.stream_pixel = pitch;
            backend_.words(out);
        }
    }

    // Dequantised latents are added to the coefficients.
    void add_latents(std::int64_t y, std::int64_t x0, int pixels, const std::int16_t* local, std::int16_t* coefficients,
                     int pitch) const {
        const LayerMap told = constants_map(1);
        for (std::int64_t at = x0, end; at < x0 + pixels; at = end) {
            end = told.until(y, at, x0 + pixels);
            const std::ptrdiff_t from = at - x0;
            add_latents_of(told.at(y, at), y, at, static_cast<int>(end - at),
                           local == nullptr ? nullptr : local + from * model_.c, coefficients + from * pitch, pitch);
        }
    }

    // The same where one value of the constants holds.
    void add_latents_of(std::int64_t which, std::int64_t y, std::int64_t x0, int pixels, const std::int16_t* local,
                        std::int16_t* coefficients, int pitch) const {
        constexpr float kRounder = 12582912.0f;  // rounds to nearest even, see dense_conv_kernels.h
        const std::int64_t plane = picture_.height * picture_.width;
        const int c = model_.c, entries = picture_.factor_entries;
        const std::uint8_t* levels = picture_.levels + y * picture_.width + x0;
        for (int i = 0; i < c; ++i) {
            const std::int32_t* const values = picture_.level + i * 256;
            const std::int32_t* const factors = picture_.factor + (which * c + i) * entries;
            const float unit = picture_.factor_unit[which * c + i];
            for (int p = 0; p < pixels; ++p) {
                const std::int32_t value = values[levels[i * plane + p]];
                if (value == 0) continue;  // most are
                std::int32_t factor = factors[0];
                if (local != nullptr) {
                    const std::int32_t at = local[p * c + i] + 32768, whole = at >> kFactorStepBits;
                    factor = factors[whole];
                    factor += ((factors[whole + 1] - factor) * (at & ((1 << kFactorStepBits) - 1))) >> kFactorStepBits;
                }
                float product = static_cast<float>(value) * (static_cast<float>(factor) * unit);
                product = std::min(std::max(product, -kClamp), kClamp);
                const auto rounded = static_cast<std::int32_t>((product + kRounder) - kRounder);
                std::int16_t& sum = coefficients[p * pitch + i];
                sum = static_cast<std::int16_t>(std::clamp(sum + rounded, -32768, 32767));
            }
        }
    }

    void write(std::int64_t y, std::int64_t x0, int pixels, const std::int32_t* high, const std::int32_t* low,
               int pitch, const std::int16_t* detail) const {
        constexpr std::int32_t kMiddle = (255 << (kPixelBits - 1)) + (1 << (kPixelBits - 1));
        const int s = model_.s, half = s / 2, places = half * half;
        const std::ptrdiff_t row_bytes = picture_.width * s * 3;
        const std::size_t cell = static_cast<std::size_t>(3) * places;  // details of one position of the fine stage
        std::int32_t row[kMostBlock];
        for (int p = 0; p < pixels; ++p) {
            for (int dy = 0; dy < s; ++dy) {
                std::uint8_t* out = picture_.out + (y * s + dy) * row_bytes + (x0 + p) * s * 3;
                for (int colour = 0; colour < 3; ++colour) {
                    const int from = p * pitch + (colour * s + dy) * s;
                    for (int dx = 0; dx < s; ++dx) {
                        row[dx] = high[from + dx] + ((low[from + dx] + (1 << (kLowBits - 1))) >> kLowBits) + kMiddle;
                    }
                    for (int part = 0; detail != nullptr && part < 2; ++part) {
                        const std::size_t at = static_cast<std::size_t>(dy / half) * 2 * kTilePixels + 2 * p + part;
                        const std::int16_t* values = detail + at * cell + colour * places + dy % half * half;
                        for (int dx = 0; dx < half; ++dx) {
                            row[part * half + dx] += values[dx] * (1 << (kPixelBits - kDetailBits));
                        }
                    }
                    for (int dx = 0; dx < s; ++dx) {
                        out[3 * dx + colour] = static_cast<std::uint8_t>(std::clamp(row[dx] >> kPixelBits, 0, 255));
                    }
                }
            }
        }
    }

    const Impl& model_;
    const ExactPicture& picture_;
    const int threads_;
    const Cpu cpu_;
    const DenseBackend& backend_;
    std::vector<Prepared> prepared_;
};

ExactDecoder::ExactDecoder(const ExactModelView& model) : impl_(new Impl) {
    Impl& impl = *impl_;
    impl.s = model.s;
    impl.c = model.c;
    impl.dims = 3 * model.s * model.s;
    impl.blocks = model.blocks;
    if (model.s < 1 || model.s > kMostBlock || model.c < 1 || model.c > impl.dims || model.blocks < 0 ||
        model.convolutions.size() != 2 * static_cast<std::size_t>(model.blocks)) {
        throw std::invalid_argument("the sizes of the decoder do not fit together");
    }
    int biases = 0;
    const auto add = [&](const ExactLayerView& view, int outputs, int inputs, int kernel, std::vector<int> order = {}) {
        if (view.outputs != outputs || view.inputs != inputs || view.kernel != kernel) {
            throw std::invalid_argument("a layer does not fit the decoder's sizes");
        }
        auto layer = make_layer(view, biases, std::move(order));
        biases += outputs;
        return layer;
    };
    const int width = model.first.outputs;
    impl.first = add(model.first, width, 2 * model.c, 3);
    for (const ExactLayerView& view : model.convolutions) impl.convolutions.push_back(add(view, width, width, 3));
    impl.head = add(model.head, impl.dims, width, 1);
    if (model.has_local_gain) {
        if (model.local_gain.outputs != model.c || model.local_gain.inputs != width || model.local_gain.kernel != 1) {
            throw std::invalid_argument("the local gains do not fit the decoder's sizes");
        }
        impl.local_gain = make_layer(model.local_gain, -1);
    }
    if (model.has_fine) {
        if (model.s % 2 != 0) throw std::invalid_argument("a fine stage needs an even block");
        const int fine = model.up.outputs / 4;
        std::vector<int> order;  // a group of channels for each of the four places
        for (int part = 0; part < 4; ++part) {
            for (int o = 0; o < fine; ++o) order.push_back(4 * o + part);
        }
        impl.up = add(model.up, 4 * fine, width, 3, std::move(order));
        impl.fine1 = add(model.fine1, fine, fine, 3);
        impl.fine2 = add(model.fine2, fine, fine, 3);
        impl.last = add(model.last, 3 * (model.s / 2) * (model.s / 2), 2 * fine, 3);
    }
    for (const PackedLayer* layer : {impl.local_gain.get(), impl.up.get()}) {
        if (layer != nullptr && layer->zero != impl.head->zero) {
            throw std::invalid_argument("layers of one input have other zero points");
        }
    }
    impl.num_biases = biases;
    check_and_pack(model.high, impl.dims, impl.high);
    check_and_pack(model.low, impl.dims, impl.low);
}

ExactDecoder::~ExactDecoder() = default;

void ExactDecoder::run(const ExactPicture& picture, int threads, Cpu cpu) const {
    if (picture.height < 1 || picture.width < 1) return;
    Impl::Run(*impl_, picture, threads, cpu).decode();
}

int ExactDecoder::s() const {
    return impl_->s;
}
int ExactDecoder::c() const {
    return impl_->c;
}
int ExactDecoder::num_modulators() const {
    return impl_->blocks + (impl_->up ? 1 : 0);
}
int ExactDecoder::modulator_channels(int k) const {
    return k < impl_->blocks ? impl_->first->outputs : impl_->fine1->outputs;
}
int ExactDecoder::num_biases() const {
    return impl_->num_biases;
}
bool ExactDecoder::has_local_gain() const {
    return impl_->local_gain != nullptr;
}
bool ExactDecoder::has_fine() const {
    return impl_->up != nullptr;
}

}  // namespace l2c
