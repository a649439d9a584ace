// The probability model P of one model file, packed for `code_tiles` (tile_coder.h).
//
// The graph and its integers are those of l2c/entropy/multiscale, whose words are used here: a *cell* is
// the 2x2 positions of z^(scale) around one position of z^(scale + 1), q is the context that the steps hand on, and a
// step codes one group of channels at one position of all cells.

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "simd/int_conv.h"
#include "simd/int_layer.h"

namespace l2c {

constexpr int kPositions = 4;                            // of a cell; p is at row p / 2, column p % 2
constexpr int kCodingOrder[kPositions - 1] = {3, 1, 2};  // position 0 is known from the coarser scale
constexpr int kMaxScales = 6;
constexpr int kHeadBlock = 8;  // channels that stand together in the output of a head

// Inputs of w1: [4 c values | 4 G availability | planes | q]; outputs of w4: [3][K][size of the group].
struct StepLayers {
    LayerView w1, w2, w3, w4;
};

struct ModelView {
    std::vector<int> channel_groups;  // sizes, G of them; they sum to c
    int num_scales;                   // M, 1..6
    int num_mixtures;                 // K, 1..8
    std::vector<StepLayers> steps;    // [3 G], in coding order
    bool learned_prior;
    LayerView prior_w1, prior_w2;     // planes -> width -> [3][K][c]; read with a learned prior only
    const std::int8_t* compand;       // [256], indexed by latent + 128
    const std::uint16_t* exp_table;   // [256]
    const std::uint16_t* inv_scales;  // [256]
};

// In which order the hidden channels of each step are kept: place i holds the model's channel order[i]. It changes no
// result. The convolutions leave out groups of 4 channels that are all zero, so channels that are seldom zero should
// stand together (choose_orders in tile_coder.h).
struct ChannelOrders {
    std::vector<std::vector<int>> q;  // of h1 and the step's q, which are added
    std::vector<std::vector<int>> h2;
};

// How the input of w1 lies in a cell, in bytes: [value_pitch] for each position, availability [4 G] at `available`,
// q at `q`, padded to a multiple of 4.
struct CellLayout {
    int value_pitch, available, q, pitch;
};

// w1 of all steps without bias, for tiles that use at most so many channels. In the inputs before q, 128 stands for 0.
struct FirstLayers {
    std::once_flag once;
    std::vector<std::unique_ptr<IntConv>> layers;
};

// Immutable but for what it packs at first use; safe from several threads.
class TileModel {
 public:
    // Copies everything. `orders` has one permutation for each step, or none: the model's own order.
    // Throws std::invalid_argument: shapes that do not fit each other, sums that can wrap (IntConv), sizes or tables
    // out of range.
    explicit TileModel(const ModelView& view, const ChannelOrders& orders = {});

    int channels() const { return channels_; }
    int width() const { return width_; }
    int q_pitch() const;
    int num_groups() const { return static_cast<int>(group_sizes_.size()); }
    int num_steps() const { return static_cast<int>(steps_.size()); }
    int num_scales() const { return num_scales_; }
    int num_mixtures() const { return num_mixtures_; }
    int num_planes() const { return num_planes_; }

    int group_start(int group) const { return group_starts_[group]; }
    // How many channels of a group are coded when `used` channels of the tile are.
    int group_used(int group, int used) const;

    CellLayout layout(int used) const;
    const IntConv& w1(int step, int used) const;
    // Bias of w1 of a step under constant planes: int32 [width].
    void first_bias(int step, const std::uint8_t* planes, std::int32_t* bias) const;

    const IntConv& w2(int step) const { return *steps_[step].w2; }
    const IntConv& w3(int step) const { return *steps_[step].w3; }
    // Outputs [block of kHeadBlock channels][3][K][kHeadBlock]: the used channels come first.
    const IntConv& w4(int step) const { return *steps_[step].w4; }
    bool learned_prior() const { return prior_w1_ != nullptr; }
    const IntConv& prior_w1() const { return *prior_w1_; }
    const IntConv& prior_w2() const { return *prior_w2_; }  // outputs as w4's

    const std::int8_t* compand() const { return compand_; }
    const std::uint16_t* exp_table() const { return exp_table_; }
    const std::uint16_t* inv_scales() const { return inv_scales_; }

 private:
    struct Step {
        Layer w1;
        std::unique_ptr<IntConv> w2, w3, w4;
    };

    Step make_step(const ModelView& view, std::size_t index, const ChannelOrders& orders) const;
    int variant(int used) const;

    std::vector<int> group_sizes_, group_starts_;
    int channels_, num_scales_, num_mixtures_, width_, num_planes_;
    std::vector<Step> steps_;
    std::unique_ptr<IntConv> prior_w1_, prior_w2_;
    std::int8_t compand_[256];
    std::uint16_t exp_table_[256], inv_scales_[256];
    int variant_step_;  // used channels are rounded up to a multiple of this, so that few forms of w1 exist
    std::unique_ptr<FirstLayers[]> variants_;
};

}  // namespace l2c
