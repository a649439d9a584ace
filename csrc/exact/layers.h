// What E and D of the block family in integers share: layers packed for the kernels, the images between them, and a run
// over one picture, whose layers are loops over rows for the thread pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/cpu.h"
#include "core/thread_pool.h"
#include "exact/model.h"
#include "simd/dense_conv.h"
#include "simd/dense_pack.h"

namespace l2c {

constexpr float kSlope = 0.1f;      // of every LeakyReLU
constexpr int kTilePixels = 36;     // whole tiles of the kernels; sums of 192 channels fit in the first-level cache
constexpr int kTasksPerThread = 6;  // at least, where a picture has so many pixels

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

// Checks and copies a layer. Throws std::invalid_argument: its sums could wrap.
// order: output o is the view's output order[o]; none: as they are.
std::unique_ptr<PackedLayer> make_layer(const ExactLayerView& view, int first_bias, std::vector<int> order = {});

// As the kernels of an instruction set read it, packed when it is first asked for.
const DensePacked& packed_for(const PackedLayer& layer, Cpu cpu, const DenseBackend& backend);

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
    static std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

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

// What differs from place to place of a picture.
struct LayerMaps {
    std::int64_t width;          // of the latents
    PlaceMap scale_map;          // of the modulators' scales
    PlaceMap bias_map;           // of the following
    int num_biases;              // values
    const std::int32_t* biases;  // changes [values][row_biases], or null
    int row_biases;
};

// Layers of one picture. What they are given has to outlive it.
class LayerRun {
 public:
    // layers: all that will be asked for; null ones are left out.
    LayerRun(const LayerMaps& maps, const std::vector<const PackedLayer*>& layers, int threads, Cpu cpu)
        : threads_(threads), cpu_(cpu), backend_(dense_backend(cpu)), maps_(maps) {
        for (const PackedLayer* layer : layers) {
            if (layer != nullptr) prepare(*layer);
        }
    }

 protected:
    // Which biases a layer has at each position.
    LayerMap bias_map(const PackedLayer& layer, int fineness) const {
        return {prepared(layer).biases.data() == nullptr ? nullptr : maps_.bias_map, maps_.width, fineness};
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
        const LayerMap scaled = {scales == nullptr ? nullptr : maps_.scale_map, maps_.width, fineness};
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

    // (stream + conv2(LeakyReLU(conv1(bytes)))) times the modulator's scales -> stream and bytes.
    void block(const PackedLayer& conv1, const PackedLayer& conv2, const PackedLayer& reader, const float* scales,
               int fineness, Activations& bytes, Activations& inner, Stream& stream) const {
        inner.reserve(bytes.height, bytes.width, conv2);
        layer(
            conv1, bytes, fineness,
            [&](DenseOutput& out, std::int64_t y, std::int64_t x) {
                out.bytes = inner.at(y, x);
                out.bytes_pixel = inner.channels;
                backend_.leaky_bytes(out);
            },
            &conv2);
        bytes.reserve(bytes.height, bytes.width, reader);
        layer(
            conv2, inner, fineness,
            [&](DenseOutput& out, std::int64_t y, std::int64_t x) {
                out.stream = stream.at(y, x);
                out.stream_pixel = stream.channels;
                out.bytes = bytes.at(y, x);
                out.bytes_pixel = bytes.channels;
                if (reader.inputs == 2 * conv2.outputs) {
                    out.rest = out.bytes + conv2.outputs;  // two bytes of each input
                }
                backend_.residual(out);
            },
            &reader, scales);
    }

    // The first layer, whose outputs are a stream, and residual blocks on it: bytes of the stream for `reader`.
    // scales: of each block's modulator. x: the first layer's input, overwritten.
    void trunk(const PackedLayer& first, const std::vector<std::unique_ptr<PackedLayer>>& convolutions,
               const PackedLayer& reader, const std::vector<const float*>& scales, Activations& x,
               Activations& bytes) const {
        const std::size_t blocks = convolutions.size() / 2;
        const auto next = [&](std::size_t i) -> const PackedLayer& {
            return i < blocks ? *convolutions[2 * i] : reader;
        };
        Stream stream;
        stream.reserve(x.height, x.width, first.outputs);
        bytes.reserve(x.height, x.width, next(0));
        layer(
            first, x, 1,
            [&](DenseOutput& out, std::int64_t y, std::int64_t column) {
                out.stream = stream.at(y, column);
                out.stream_pixel = stream.channels;
                out.bytes = bytes.at(y, column);
                out.bytes_pixel = bytes.channels;
                backend_.leaky_stream(out);
            },
            &next(0));
        for (std::size_t i = 0; i < blocks; ++i) {
            block(*convolutions[2 * i], *convolutions[2 * i + 1], next(i + 1), scales[i], 1, bytes, x, stream);
        }
    }

    const int threads_;
    const Cpu cpu_;
    const DenseBackend& backend_;

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
        if (maps_.biases == nullptr || layer.first_bias < 0) return;
        const std::size_t count = static_cast<std::size_t>(maps_.num_biases);
        auto* const to = static_cast<std::int32_t*>(
            mine.biases.reserve(count * static_cast<std::size_t>(layer.padded()) * sizeof(std::int32_t)));
        for (std::size_t i = 0; i < count; ++i) {
            const std::int32_t* changes = maps_.biases + i * maps_.row_biases + layer.first_bias;
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

    const LayerMaps maps_;
    std::vector<Prepared> prepared_;
};

}  // namespace l2c
