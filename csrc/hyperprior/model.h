// The integers of a hyperprior model, one level for each of its qualities, packed for `code_tiles` (coder.h).
//
// Words, shapes and arithmetic are those of l2c/entropy/hyperprior/integer_weights.py.

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/rans.h"
#include "simd/int_conv.h"
#include "simd/int_layer.h"

namespace l2c::hyperprior {

constexpr int kTaps = 12;        // live taps of the masked 5x5 convolution: 5, 5 and 2 of three rows
constexpr int kHeadBlock = 16;   // channels that stand together in the output of a head
constexpr int kHyperStride = 4;  // latents a side that a hyper-latent stands for
constexpr int kTableSymbols = 256;
constexpr int kTablePrecision = 16;

enum class Kind { kFactorized, kScale, kMean, kContext };

struct HyperLayerView {
    LayerView layer;
    bool shuffle;  // PixelShuffle(2) follows
};

// A level as a model file holds it.
struct LevelView {
    Kind kind;
    int channels;                       // M
    int side_channels;                  // N; 0 if factorized
    const std::uint32_t* side_cdf;      // [N][257]
    std::vector<HyperLayerView> hyper;  // none if factorized
    LayerView context;                  // of kContext
    const std::uint8_t* shift;          // [M], 0..kMaxShift; of kContext
    std::vector<LayerView> parameters;  // three of kContext, else none
    const std::int16_t* offset;         // [M], within +-kMaxOffset; of kFactorized
    const std::uint32_t* cdf;           // [M][257], of kFactorized
    int fraction;                       // bits of a latent behind the point, 0 or kFraction; 0 without a mean
};

constexpr int kMaxOffset = 4095;
constexpr int kMaxShift = 8;
constexpr int kFraction = 4;  // of latents that are rounded from their means

// A layer of h_s: with a shuffle one convolution for each of the four pixels that come of one, 2 dy + dx. (Those of a
// transposed convolution lack taps, which IntConv leaves out.)
struct HyperLayer {
    std::unique_ptr<IntConv> parts[4];  // without a shuffle the first alone
    bool shuffle;
    int in_pitch;   // bytes of an input pixel: its channels and zeros up to a multiple of 4
    int out_pitch;  // elements of an output pixel, after the shuffle
};

// One level, packed. Immutable; safe from several threads.
class Level {
 public:
    // Copies everything. Throws std::invalid_argument: shapes that do not fit each other, sums that can wrap (IntConv),
    // sizes, shifts, offsets or tables out of range.
    explicit Level(const LevelView& view);

    Kind kind() const { return kind_; }
    int channels() const { return channels_; }
    int side_channels() const { return side_channels_; }
    // Row c is the distribution of channel c.
    TableView side_tables() const { return tables(side_cdf_, side_sizes_); }
    TableView latent_tables() const { return tables(cdf_, sizes_); }
    const std::vector<std::int16_t>& offset() const { return offset_; }
    int fraction() const { return fraction_; }
    // The largest size of a latent that an encoder may be given.
    int max_latent() const { return fraction_ == 0 ? 4095 : 1535 << fraction_; }

    // The last one gives heads (kScale, kMean) or 2 M bytes that hold 128 more (kContext).
    const std::vector<HyperLayer>& hyper() const { return hyper_; }

    const IntConv& context() const { return *context_; }
    bool shifts() const { return shifts_; }  // whether any shift is not 0
    // 2^(kMaxShift - shift) of each channel.
    const std::vector<std::int16_t>& tap_factor() const { return tap_factor_; }
    const IntConv& parameters(int i) const { return *parameters_[static_cast<std::size_t>(i)]; }

    // Heads are [block of kHeadBlock channels][sigma, mean][kHeadBlock], without the means of kScale: elements of a
    // block, and of the blocks of the first `used` channels.
    int head_block() const { return kind_ == Kind::kScale ? kHeadBlock : 2 * kHeadBlock; }
    int head_size(int used) const { return (used + kHeadBlock - 1) / kHeadBlock * head_block(); }

 private:
    static TableView tables(const std::vector<std::uint32_t>& cdf, const std::vector<std::int32_t>& sizes) {
        return {cdf.data(), sizes.data(), sizes.size(), kTableSymbols + 1, kTablePrecision};
    }
    void add_hyper(const LevelView& view);
    void add_context(const LevelView& view);
    std::vector<int> head_rows() const;

    Kind kind_;
    int channels_, side_channels_, fraction_;
    std::vector<std::uint32_t> side_cdf_, cdf_;
    std::vector<std::int32_t> side_sizes_, sizes_;
    std::vector<HyperLayer> hyper_;
    std::unique_ptr<IntConv> context_;
    std::vector<std::unique_ptr<IntConv>> parameters_;
    std::vector<std::int16_t> tap_factor_;
    bool shifts_ = false;
    std::vector<std::int16_t> offset_;
};

// All levels, each packed when it is first asked for. Safe from several threads.
class Model {
 public:
    // Keeps the views: what they point at must outlive the model. Throws std::invalid_argument: no level, or levels of
    // different channels.
    explicit Model(std::vector<LevelView> views);

    int num_levels() const { return static_cast<int>(views_.size()); }
    int channels() const { return views_[0].channels; }
    const LevelView& view(int index) const { return views_[static_cast<std::size_t>(index)]; }
    // Throws std::invalid_argument as the constructor of Level.
    const Level& level(int index) const;

 private:
    struct Slot {
        std::once_flag once;
        std::unique_ptr<Level> level;
    };

    std::vector<LevelView> views_;
    std::unique_ptr<Slot[]> slots_;
};

}  // namespace l2c::hyperprior
