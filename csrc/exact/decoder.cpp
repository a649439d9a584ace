#include "exact/decoder.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "core/aligned_buffer.h"
#include "exact/layers.h"
#include "simd/dense_conv.h"
#include "simd/dense_pack.h"

namespace l2c {
namespace {

constexpr float kClamp = 2097152.0f;  // of products before they become integers
constexpr int kLowBits = 9;           // these four as in l2c/exact/weights.py
constexpr int kPixelBits = 13;
constexpr int kDetailBits = 6;
constexpr int kFactorStepBits = 7;
constexpr int kMostBlock = 64;  // s at most

int round_up(int a, int b) {
    return (a + b - 1) / b * b;
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

}  // namespace

struct ExactDecoder::Impl {
    int s, c, dims, blocks, num_biases;
    std::unique_ptr<PackedLayer> first, head, local_gain, up, fine1, fine2, last;
    std::vector<std::unique_ptr<PackedLayer>> convolutions;
    AlignedBuffer high, low;

    class Run;
};

// One picture.
class ExactDecoder::Impl::Run : private LayerRun {
 public:
    Run(const Impl& model, const ExactPicture& picture, int threads, Cpu cpu)
        : LayerRun({picture.width, picture.scale_map, picture.bias_map, picture.num_biases, picture.biases,
                    model.num_biases},
                   layers_of(model), threads, cpu),
          model_(model),
          picture_(picture) {}

    void decode() {
        const std::int64_t height = picture_.height, width = picture_.width;
        Activations bytes, levels;
        read_levels(levels);
        trunk(*model_.first, model_.convolutions, *model_.head, picture_.scales, levels, bytes);
        Activations fine;
        if (model_.up) fine_stage(bytes, fine);
        Loop::rows(height, width, threads_, [&](std::int64_t y, std::int64_t x0, std::int64_t x1) {
            for (std::int64_t x = x0; x < x1; x += kTilePixels) {
                finish(bytes, fine, y, x, static_cast<int>(std::min<std::int64_t>(kTilePixels, x1 - x)));
            }
        });
    }

 private:
    static std::vector<const PackedLayer*> layers_of(const Impl& model) {
        std::vector<const PackedLayer*> layers = {model.first.get(), model.head.get(),  model.local_gain.get(),
                                                  model.up.get(),    model.fine1.get(), model.fine2.get(),
                                                  model.last.get()};
        for (const auto& layer : model.convolutions) layers.push_back(layer.get());
        return layers;
    }

    void read_levels(Activations& to) const {
        const std::int64_t height = picture_.height, width = picture_.width, plane = height * width;
        to.reserve(height, width, *model_.first);
        Loop::rows(height, width, threads_, [&](std::int64_t y, std::int64_t x0, std::int64_t x1) {
            const LayerMap told = constants_map(1);
            for (std::int64_t at = x0, end; at < x1; at = end) {
                end = told.until(y, at, std::min(x1, at + kTilePixels));  // a tile's latents stay in the cache
                const std::uint8_t* table = picture_.input + told.at(y, at) * 2 * model_.c * 256;
                for (int i = 0; i < to.channels; ++i) {
                    std::uint8_t* const out = to.at(y, at) + i;
                    const bool is_there = i < 2 * model_.c;
                    const std::uint8_t* level = picture_.levels + i % model_.c * plane + y * width + at;
                    for (std::int64_t p = 0; p < end - at; ++p) {
                        out[p * to.channels] = is_there ? table[i * 256 + level[p]] : std::uint8_t{0};
                    }
                }
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
        block(*model_.fine1, *model_.fine2, *model_.last, picture_.scales.back(), 2, bytes, inner, stream);
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

    // Blocks of pixels of neighbouring latents, from sums [pixels][pitch] and details of the fine stage, or null.
    void write(std::int64_t y, std::int64_t x0, int pixels, const std::int32_t* high, const std::int32_t* low,
               int pitch, const std::int16_t* detail) const {
        const std::ptrdiff_t row_bytes = picture_.width * model_.s * 3;
        std::uint8_t* out = picture_.out + y * model_.s * row_bytes + x0 * model_.s * 3;
        const std::size_t cell = static_cast<std::size_t>(3) * (model_.s / 2) * (model_.s / 2);  // details of a place
        const auto write_one = model_.s == 8 ? write_block<8> : write_block<0>;
        for (int p = 0; p < pixels; ++p) {
            write_one(model_.s, high + p * pitch, low + p * pitch,
                      detail == nullptr ? nullptr : detail + static_cast<std::size_t>(2) * p * cell,
                      static_cast<std::ptrdiff_t>(2 * kTilePixels * cell), out + p * model_.s * 3, row_bytes);
        }
    }

    // Sums [3][s][s] of one latent, details [places in a row][3][s / 2][s / 2] in two rows. kBlock: s, or 0.
    template <int kBlock>
    static void write_block(int block, const std::int32_t* __restrict high, const std::int32_t* __restrict low,
                            const std::int16_t* __restrict detail, std::ptrdiff_t detail_row, std::uint8_t* out,
                            std::ptrdiff_t out_row) {
        constexpr std::int32_t kMiddle = (255 << (kPixelBits - 1)) + (1 << (kPixelBits - 1));
        const int s = kBlock > 0 ? kBlock : block, half = s / 2, places = half * half, dims = 3 * s * s;
        std::int32_t sum[kBlock > 0 ? 3 * kBlock * kBlock : 3 * kMostBlock * kMostBlock];
        std::uint8_t pixel[kBlock > 0 ? 3 * kBlock * kBlock : 3 * kMostBlock * kMostBlock];
        for (int i = 0; i < dims; ++i) {
            sum[i] = high[i] + ((low[i] + (1 << (kLowBits - 1))) >> kLowBits) + kMiddle;
        }
        for (int part = 0; detail != nullptr && part < 4; ++part) {
            const std::int16_t* values = detail + part / 2 * detail_row + part % 2 * 3 * places;
            std::int32_t* const corner = sum + part / 2 * half * s + part % 2 * half;
            for (int colour = 0; colour < 3; ++colour) {
                for (int dy = 0; dy < half; ++dy, values += half) {
                    std::int32_t* const row = corner + (colour * s + dy) * s;
                    for (int dx = 0; dx < half; ++dx) row[dx] += values[dx] * (1 << (kPixelBits - kDetailBits));
                }
            }
        }
        for (int i = 0; i < dims; ++i) {
            pixel[i] = static_cast<std::uint8_t>(std::clamp(sum[i] >> kPixelBits, 0, 255));
        }
        for (int dy = 0; dy < s; ++dy, out += out_row) {
            for (int dx = 0; dx < s; ++dx) {
                for (int colour = 0; colour < 3; ++colour) out[3 * dx + colour] = pixel[(colour * s + dy) * s + dx];
            }
        }
    }

    const Impl& model_;
    const ExactPicture& picture_;
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
