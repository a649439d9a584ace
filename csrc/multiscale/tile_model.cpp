#include "multiscale/tile_model.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "core/mixture_cdf.h"

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

// Rows of a head [3][K][size] in the order [block][3][K][kHeadBlock]; -1 for channels that fill the last block.
std::vector<int> head_rows(int size, int num_mixtures) {
    std::vector<int> rows;
    for (int first = 0; first < size; first += kHeadBlock) {
        for (int run = 0; run < 3 * num_mixtures; ++run) {
            for (int channel = first; channel < first + kHeadBlock; ++channel) {
                rows.push_back(channel < size ? run * size + channel : -1);
            }
        }
    }
    return rows;
}

}  // namespace

TileModel::TileModel(const ModelView& view, const ChannelOrders& orders)
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
    require(view.steps.size() == group_sizes_.size() * (kPositions - 1),
            "there must be a step for each group at each of three positions");
    width_ = view.steps[0].w1.out_channels;
    num_planes_ = view.steps[0].w1.in_channels - kPositions * (channels_ + num_groups()) - width_;
    require(width_ >= 1 && width_ <= kMaxChannels && num_planes_ >= 0, "w1 has too few inputs");
    ChannelOrders complete = orders;
    complete.q.resize(view.steps.size(), numbers(0, width_));
    complete.h2.resize(view.steps.size(), numbers(0, width_));
    for (std::size_t i = 0; i < view.steps.size(); ++i) steps_.push_back(make_step(view, i, complete));
    if (view.learned_prior) {
        require_shape(view.prior_w1, width_, num_planes_, 1, "the prior's w1");
        require_shape(view.prior_w2, 3 * num_mixtures_ * channels_, width_, 1, "the prior's w2");
        prior_w1_ = pack(view.prior_w1, "the prior's w1");
        const Layer head = take(view.prior_w2, head_rows(channels_, num_mixtures_), numbers(0, width_));
        prior_w2_ = pack(head.view(), "the prior's w2");
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

TileModel::Step TileModel::make_step(const ModelView& view, std::size_t index, const ChannelOrders& orders) const {
    const StepLayers& layers = view.steps[index];
    const std::string of = " of step " + std::to_string(index);
    const int size = group_sizes_[index % group_sizes_.size()];
    const int before_q = kPositions * (channels_ + num_groups()) + num_planes_;
    require_shape(layers.w1, width_, before_q + width_, 1, "w1" + of);
    require_shape(layers.w2, width_, width_, 3, "w2" + of);
    require_shape(layers.w3, width_, width_, 3, "w3" + of);
    require_shape(layers.w4, 3 * num_mixtures_ * size, width_, 1, "w4" + of);
    const std::vector<int>& q = orders.q[index];
    const std::vector<int>& h2 = orders.h2[index];
    std::vector<int> inputs = numbers(0, before_q);
    for (int channel : orders.q[(index + view.steps.size() - 1) % view.steps.size()]) {
        inputs.push_back(before_q + channel);
    }
    Step step;
    step.w1 = take(layers.w1, q, inputs);
    pack(step.w1.view(), "w1" + of);  // checks the sums, those of the planes as well
    step.w2 = pack(take(layers.w2, h2, q).view(), "w2" + of);
    step.w3 = pack(take(layers.w3, q, h2).view(), "w3" + of);
    step.w4 = pack(take(layers.w4, head_rows(size, num_mixtures_), q).view(), "w4" + of);
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

const IntConv& TileModel::w1(int step, int used) const {
    FirstLayers& first = variants_[variant(used)];
    std::call_once(first.once, [&] {
        const CellLayout cell = layout(used);
        std::vector<int> inputs;
        const auto append = [&](int from, int count, int room) {
            for (int i = 0; i < room; ++i) inputs.push_back(i < count ? from + i : -1);
        };
        const int kept = std::min(cell.value_pitch, channels_), maps = kPositions * (channels_ + num_groups());
        for (int p = 0; p < kPositions; ++p) append(p * channels_, kept, cell.value_pitch);
        append(kPositions * channels_, kPositions * num_groups(), kPositions * num_groups());
        append(maps + num_planes_, width_, q_pitch());
        std::vector<std::unique_ptr<IntConv>> layers;
        for (const Step& step : steps_) {
            const Layer layer = take(step.w1.view(), numbers(0, width_), inputs);
            layers.push_back(std::make_unique<IntConv>(width_, cell.pitch, 1, layer.weight.data(), layer.bias.data(),
                                                       layer.multiplier.data(), cell.q));
        }
        first.layers = std::move(layers);
    });
    return *first.layers[step];
}

void TileModel::first_bias(int step, const std::uint8_t* planes, std::int32_t* bias) const {
    const Layer& w1 = steps_[step].w1;
    const std::int8_t* weight = w1.weight.data() + kPositions * (channels_ + num_groups());
    for (int o = 0; o < width_; ++o, weight += w1.in_channels) {
        bias[o] = std::inner_product(planes, planes + num_planes_, weight, w1.bias[o]);
    }
}

}  // namespace l2c
