#include "hyperprior/model.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace l2c::hyperprior {
namespace {

constexpr int kChannelStep = 4;  // input channels that a vector instruction multiplies and adds
constexpr int kMaxChannels = 1 << 14;
constexpr int kParameterLayers = 3;

int round_up(int a, int b) {
    return (a + b - 1) / b * b;
}

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

// -1 stands for any number of outputs.
void require_shape(const LayerView& layer, int outputs, int inputs, int kernel, const std::string& name) {
    require(layer.weight != nullptr && (outputs < 0 || layer.out_channels == outputs) && layer.in_channels == inputs &&
                layer.kernel == kernel,
            "the weights of " + name + " must be [" + (outputs < 0 ? "O" : std::to_string(outputs)) + ", " +
                std::to_string(inputs) + ", " + std::to_string(kernel) + ", " + std::to_string(kernel) + "]");
    require(layer.out_channels >= 1 && layer.out_channels <= 4 * kMaxChannels, name + " has too many outputs");
}

std::unique_ptr<IntConv> pack(const LayerView& layer, const std::string& name, int offset_channels = 0) {
    try {
        return std::make_unique<IntConv>(layer.out_channels, layer.in_channels, layer.kernel, layer.weight, layer.bias,
                                         layer.multiplier, offset_channels);
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(name + ": " + error.what());
    }
}

void check_tables(const TableView& tables) {
    tables.check();
    for (std::size_t t = 0; t < tables.num_tables; ++t) {
        const std::uint32_t* row = tables.row(static_cast<std::int32_t>(t));
        require(std::adjacent_find(row, row + tables.row_length, std::greater_equal<>()) == row + tables.row_length,
                "a symbol of a table has no frequency");
    }
}

}  // namespace

Level::Level(const LevelView& view)
    : kind_(view.kind),
      channels_(view.channels),
      side_channels_(view.kind == Kind::kFactorized ? 0 : view.side_channels),
      fraction_(view.fraction) {
    require(fraction_ == 0 || (fraction_ == kFraction && (kind_ == Kind::kMean || kind_ == Kind::kContext)),
            "fraction must be 0, or 4 with a mean");
    require(channels_ >= 1 && channels_ <= kMaxChannels, "the number of channels must be 1..2^14");
    if (kind_ == Kind::kFactorized) {
        require(view.cdf != nullptr && view.offset != nullptr, "a factorized level needs tables and offsets");
        cdf_.assign(view.cdf, view.cdf + std::size_t{kTableSymbols + 1} * channels_);
        sizes_.assign(static_cast<std::size_t>(channels_), kTableSymbols + 1);
        offset_.assign(view.offset, view.offset + channels_);
        check_tables(latent_tables());
        require(std::all_of(offset_.begin(), offset_.end(), [](int v) { return v >= -kMaxOffset && v <= kMaxOffset; }),
                "an offset is out of range");
        return;
    }
    require(side_channels_ >= 1 && side_channels_ <= kMaxChannels, "the number of channels of z must be 1..2^14");
    require(view.side_cdf != nullptr, "a level with hyper-latents needs their tables");
    side_cdf_.assign(view.side_cdf, view.side_cdf + std::size_t{kTableSymbols + 1} * side_channels_);
    side_sizes_.assign(static_cast<std::size_t>(side_channels_), kTableSymbols + 1);
    check_tables(side_tables());
    add_hyper(view);
    if (kind_ == Kind::kContext) add_context(view);
}

// Rows of a head [sigma M][mean M] in the order of its blocks; -1 for channels that fill the last one.
std::vector<int> Level::head_rows() const {
    std::vector<int> rows;
    for (int first = 0; first < channels_; first += kHeadBlock) {
        for (int part = 0; part < head_block() / kHeadBlock; ++part) {
            for (int channel = first; channel < first + kHeadBlock; ++channel) {
                rows.push_back(channel < channels_ ? part * channels_ + channel : -1);
            }
        }
    }
    return rows;
}

void Level::add_hyper(const LevelView& view) {
    require(!view.hyper.empty(), "h_s has no layer");
    int inputs = 2 * side_channels_, scale = 1;
    for (std::size_t i = 0; i < view.hyper.size(); ++i) {
        const auto& [layer, shuffle] = view.hyper[i];
        const std::string name = "layer " + std::to_string(i) + " of h_s";
        const bool last = i + 1 == view.hyper.size();
        require(!last || !shuffle, "the last layer of h_s has no shuffle");
        require_shape(layer, last ? (kind_ == Kind::kScale ? 1 : 2) * channels_ : -1, inputs, 3, name);
        HyperLayer packed;
        packed.shuffle = shuffle;
        packed.in_pitch = round_up(inputs, kChannelStep);
        const std::vector<int> columns = numbers(0, inputs);
        if (shuffle) {
            require(layer.out_channels % 4 == 0, name + " needs a multiple of 4 outputs");
            inputs = layer.out_channels / 4;
            scale *= 2;
            packed.out_pitch = round_up(inputs, kChannelStep);
            for (int part = 0; part < 4; ++part) {
                std::vector<int> rows;
                for (int c = 0; c < packed.out_pitch; ++c) rows.push_back(c < inputs ? 4 * c + part : -1);
                packed.parts[part] = pack(take(layer, rows, columns).view(), name);
            }
        } else if (last && kind_ != Kind::kContext) {
            const std::vector<int> rows = head_rows();
            packed.out_pitch = static_cast<int>(rows.size());
            packed.parts[0] = pack(take(layer, rows, columns).view(), name);
        } else {
            inputs = layer.out_channels;
            // Zeros up to the pitch are written with the outputs; the last layer's readers have no padding.
            packed.out_pitch = last ? inputs : round_up(inputs, kChannelStep);
            std::vector<int> rows = numbers(0, inputs);
            rows.resize(static_cast<std::size_t>(packed.out_pitch), -1);
            packed.parts[0] = pack(take(layer, rows, columns).view(), name);
        }
        hyper_.push_back(std::move(packed));
    }
    require(scale == kHyperStride, "h_s must have two shuffles");
}

void Level::add_context(const LevelView& view) {
    require(view.parameters.size() == kParameterLayers, "there must be three parameter layers");
    require(view.shift != nullptr, "a context needs shifts");
    for (int c = 0; c < channels_; ++c) {
        require(view.shift[c] <= kMaxShift, "a shift is above 8");
        tap_factor_.push_back(static_cast<std::int16_t>(1 << (kMaxShift - view.shift[c])));
        shifts_ = shifts_ || view.shift[c] != 0;
    }
    require_shape(view.context, 2 * channels_, kTaps * channels_, 1, "the context");
    context_ = pack(view.context, "the context", kTaps * channels_);
    const std::string of = "a parameter layer";
    require_shape(view.parameters[0], -1, 4 * channels_, 1, of);
    require_shape(view.parameters[1], -1, view.parameters[0].out_channels, 1, of);
    require_shape(view.parameters[2], 2 * channels_, view.parameters[1].out_channels, 1, of);
    parameters_.push_back(pack(view.parameters[0], of, 4 * channels_));
    parameters_.push_back(pack(view.parameters[1], of));
    parameters_.push_back(
        pack(take(view.parameters[2], head_rows(), numbers(0, view.parameters[2].in_channels)).view(), of));
}

Model::Model(std::vector<LevelView> views) : views_(std::move(views)), slots_(new Slot[views_.size()]) {
    require(!views_.empty(), "a model needs a level");
    for (const LevelView& view : views_) {
        require(view.channels == views_[0].channels, "the levels have different numbers of channels");
    }
}

const Level& Model::level(int index) const {
    Slot& slot = slots_[static_cast<std::size_t>(index)];
    std::call_once(slot.once, [&] { slot.level = std::make_unique<Level>(view(index)); });
    return *slot.level;
}

}  // namespace l2c::hyperprior
