#include "tile_model.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>

#include "mixture_cdf.h"

namespace l2c {
namespace {

constexpr int kChannelStep = 4;  // input channels that a vector instruction multiplies and adds
constexpr int kVariants = 8;     // forms of w1
constexpr int kMaxChannels = 1 << 16;

int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}
int round_up(int a, int b) {
    return ceil_div(a, b) * b;
}

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

void require_shape(const LayerView& layer, int outputs, int inputs, int kernel, const std::string& name) {
    require(layer.out_channels == outputs && layer.in_channels == inputs && layer.kernel == kernel,
            "the weights of " + name + " must be [" + std::to_string(outputs) + ", " + std::to_string(inputs) + ", " +
                std::to_string(kernel) + ", " + std::to_string(kernel) + "]");
}

std::unique_ptr<IntConv> pack(const LayerView& layer, const std::string& name) {
    try {
        return std::make_unique<IntConv>(layer.out_channels, layer.in_channels, layer.kernel, layer.weight, layer.bias,
                                         layer.multiplier);
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(name + ": " + error.what());
    }
}

// [3][K][size] reordered to [block][3][K][kHeadBlock]; channels that fill the last block give zeros.
std::unique_ptr<IntConv> pack_head(const LayerView& layer, int size, int num_mixtures, const std::string& name) {
    const int runs = 3 * num_mixtures, rows = round_up(size, kHeadBlock) * runs;
    const std::size_t inputs = static_cast<std::size_t>(layer.in_channels);
    std::vector<std::int8_t> weight(rows * inputs);
    std::vector<std::int32_t> bias(rows);
    std::vector<float> multiplier(rows);
    for (int run = 0; run < runs; ++run) {
        for (int channel = 0; channel < size; ++channel) {
            const int from = run * size + channel;
            const int to = (channel / kHeadBlock * runs + run) * kHeadBlock + channel % kHeadBlock;
            std::copy_n(layer.weight + from * inputs, inputs, weight.data() + to * inputs);
            bias[to] = layer.bias[from];
            multiplier[to] = layer.multiplier[from];
        }
    }
    return pack({rows, layer.in_channels, 1, weight.data(), bias.data(), multiplier.data()}, name);
}

std::int64_t sum_of_magnitudes(const std::int8_t* values, std::size_t n) {
    return std::accumulate(values, values + n, std::int64_t{0},
                           [](std::int64_t sum, std::int8_t value) { return sum + std::abs(int{value}); });
}

}  // namespace

TileModel::TileModel(const ModelView& view)
    : group_sizes_(view.channel_groups), num_scales_(view.num_scales), num_mixtures_(view.num_mixtures) {
    require(num_scales_ >= 1 && num_scales_ <= kMaxScales, "the number of scales must be 1..6");
    require(num_mixtures_ >= 1 && num_mixtures_ <= kMaxMixtures, "number of mixture components must be 1..8");
    require(!group_sizes_.empty() && group_sizes_.size() <= kMaxChannels, "there must be a channel group");
    channels_ = 0;
    for (int size : group_sizes_) {
        require(size >= 1 && size <= kMaxChannels - channels_, "channel groups must be positive sizes");
        group_starts_.push_back(channels_);
        channels_ += size;
    }
    require(view.steps.size() == group_sizes_.size() * (kPositions - 1), "there must be a step for each group and position");
    width_ = view.steps[0].w1.out_channels;
    num_planes_ = view.steps[0].w1.in_channels - kPositions * (channels_ + num_groups()) - width_;
    require(width_ >= 1 && width_ <= kMaxChannels && num_planes_ >= 0, "w1 has too few inputs");
    for (std::size_t i = 0; i < view.steps.size(); ++i) {
        steps_.push_back(make_step(view.steps[i], group_sizes_[i % group_sizes_.size()], "step " + std::to_string(i)));
    }
    if (view.learned_prior) {
        require_shape(view.prior_w1, width_, num_planes_, 1, "the prior's w1");
        require_shape(view.prior_w2, 3 * num_mixtures_ * channels_, width_, 1, "the prior's w2");
        prior_w1_ = pack(view.prior_w1, "the prior's w1");
        prior_w2_ = pack_head(view.prior_w2, channels_, num_mixtures_, "the prior's w2");
    }
    std::copy_n(view.compand, 256, compand_);
    std::copy_n(view.exp_table, 256, exp_table_);
    std::copy_n(view.inv_scales, 256, inv_scales_);
    require(exp_table_[0] > 0, "exp_table[0] must not be 0");
    require(std::all_of(inv_scales_, inv_scales_ + 256, [](int v) { return v >= 1 && v <= 32767; }),
            "an inverse scale is not in 1..32767");
    // The inputs of unused channels can be left out where they are zero, as they are in every model so far.
    const int padded = round_up(channels_, kChannelStep);
    variant_step_ = compand_[128] != 0 ? padded : round_up(ceil_div(padded, kVariants), kChannelStep);
    variants_ = std::make_unique<FirstLayers[]>(static_cast<std::size_t>(ceil_div(padded, variant_step_)));
}

TileModel::Step TileModel::make_step(const StepLayers& layers, int group_size, const std::string& name) const {
    const LayerView& w1 = layers.w1;
    const int maps = kPositions * (channels_ + num_groups());
    require_shape(w1, width_, maps + num_planes_ + width_, 1, "w1 of " + name);
    require_shape(layers.w2, width_, width_, 3, "w2 of " + name);
    require_shape(layers.w3, width_, width_, 3, "w3 of " + name);
    require_shape(layers.w4, 3 * num_mixtures_ * group_size, width_, 1, "w4 of " + name);
    pack(w1, "w1 of " + name);  // its checks
    Step step;
    for (int o = 0; o < width_; ++o) {
        const std::int8_t* row = w1.weight + static_cast<std::size_t>(o) * w1.in_channels;
        // Whatever planes of 0..255 add to the bias, and the 128 of the inputs: the bound of IntConv holds.
        const std::int64_t bound = std::abs(std::int64_t{w1.bias[o]}) +
                                   (255 + 128) * sum_of_magnitudes(row, static_cast<std::size_t>(w1.in_channels));
        require(bound < std::int64_t{1} << 31, "the sums of w1 of " + name + " can wrap");
        step.maps.insert(step.maps.end(), row, row + maps);
        step.planes.insert(step.planes.end(), row + maps, row + maps + num_planes_);
        step.q.insert(step.q.end(), row + maps + num_planes_, row + w1.in_channels);
    }
    step.bias.assign(w1.bias, w1.bias + width_);
    step.multiplier.assign(w1.multiplier, w1.multiplier + width_);
    step.w2 = pack(layers.w2, "w2 of " + name);
    step.w3 = pack(layers.w3, "w3 of " + name);
    step.w4 = pack_head(layers.w4, group_size, num_mixtures_, "w4 of " + name);
    return step;
}

int TileModel::q_pitch() const {
    return round_up(width_, kChannelStep);
}

int TileModel::group_used(int group, int used) const {
    return std::clamp(used - group_starts_[group], 0, group_sizes_[group]);
}

int TileModel::variant(int used) const {
    return ceil_div(std::max(used, 1), variant_step_) - 1;
}

CellLayout TileModel::layout(int used) const {
    CellLayout cell;
    cell.value_pitch = std::min((variant(used) + 1) * variant_step_, round_up(channels_, kChannelStep));
    cell.available = kPositions * cell.value_pitch;
    cell.q = cell.available + kPositions * num_groups();
    cell.pitch = cell.q + q_pitch();
    return cell;
}

const FirstLayers& TileModel::first_layers(int used) const {
    FirstLayers& first = variants_[variant(used)];
    std::call_once(first.once, [&] {
        const CellLayout cell = layout(used);
        const int kept = std::min(cell.value_pitch, channels_);
        const std::size_t outputs = static_cast<std::size_t>(width_), pitch = static_cast<std::size_t>(cell.pitch);
        const std::vector<std::int32_t> no_bias(outputs);
        std::vector<std::unique_ptr<IntConv>> layers;
        std::vector<std::vector<std::int32_t>> offsets;
        for (const Step& step : steps_) {
            std::vector<std::int8_t> weight(outputs * pitch);
            std::vector<std::int32_t> offset(outputs);
            for (std::size_t o = 0; o < outputs; ++o) {
                std::int8_t* to = weight.data() + o * pitch;
                const std::int8_t* from = step.maps.data() + o * (step.maps.size() / outputs);
                for (int p = 0; p < kPositions; ++p) std::copy_n(from + p * channels_, kept, to + p * cell.value_pitch);
                std::copy_n(from + kPositions * channels_, kPositions * num_groups(), to + cell.available);
                offset[o] = 128 * std::accumulate(to, to + cell.q, 0);
                std::copy_n(step.q.data() + o * outputs, outputs, to + cell.q);
            }
            layers.push_back(std::make_unique<IntConv>(width_, cell.pitch, 1, weight.data(), no_bias.data(),
                                                       step.multiplier.data()));
            offsets.push_back(std::move(offset));
        }
        first.layers = std::move(layers);
        first.offsets = std::move(offsets);
    });
    return first;
}

void TileModel::first_bias(int step, int used, const std::uint8_t* planes, std::int32_t* bias) const {
    const std::vector<std::int32_t>& offset = first_layers(used).offsets[step];
    const std::int8_t* weight = steps_[step].planes.data();
    for (int o = 0; o < width_; ++o, weight += num_planes_) {
        bias[o] = std::inner_product(planes, planes + num_planes_, weight, steps_[step].bias[o] - offset[o]);
    }
}

}  // namespace l2c
