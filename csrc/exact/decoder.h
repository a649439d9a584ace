// D of the block family in integers: latents -> pixels, the same on every machine. l2c/exact/plain.py is the
// definition.
//
// Read me first:
//   - Activations are bytes [rows][pixels][channels] with a border of one pixel that holds the layer's zero points;
//   what
//     residual blocks add to is a stream of int16 beside them (layers.h).
//   - A layer is a loop over rows for the thread pool; each row goes through the kernel in tiles whose sums stay in the
//     first-level cache until they are requantised. At 192 channels a byte is used 1,700 times once it is there, so
//     nothing is gained by fusing layers.
//   - Everything that depends on the trade-off arrives as tables (l2c/exact/constants.py).

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "exact/model.h"

namespace l2c {

struct ExactModelView {
    int s, c, blocks;  // of the configuration
    ExactLayerView first, head;
    std::vector<ExactLayerView> convolutions;  // conv1, conv2 of each coarse block
    bool has_local_gain, has_fine;
    ExactLayerView local_gain, up, fine1, fine2, last;
    const std::int16_t* high;  // [3 s^2][3 s^2], rows are pixels
    const std::int16_t* low;
};

struct ExactPicture {
    std::int64_t height, width;  // of the latents
    const std::uint8_t* levels;  // [c][height][width], latents + 128
    const std::int32_t* level;   // [c][256]
    PlaceMap constants_map;      // of the following, each with a leading axis:
    const std::uint8_t* input;   // [2 c][256]: first bytes, then second ones
    const std::int32_t* factor;  // [c][entries]
    int factor_entries;
    const float* factor_unit;  // [c]
    const float* head;         // multipliers [3 s^2]
    const float* last;         // multipliers [3 (s / 2)^2], or null without a fine stage
    PlaceMap scale_map;
    std::vector<const float*> scales;  // of each modulator: [values][channels]
    PlaceMap bias_map;
    int num_biases;              // values
    const std::int32_t* biases;  // changes [values][B], or null
    std::uint8_t* out;           // [s height][s width][3]
};

class ExactDecoder {
 public:
    // Copies everything. Throws std::invalid_argument: sizes that do not fit, sums that could pass 2^31.
    explicit ExactDecoder(const ExactModelView& model);
    ~ExactDecoder();

    // May run in several threads at once. Throws std::bad_alloc.
    void run(const ExactPicture& picture, int threads, Cpu cpu) const;

    int s() const;
    int c() const;
    int num_modulators() const;
    int modulator_channels(int k) const;
    int num_biases() const;
    bool has_local_gain() const;
    bool has_fine() const;

 private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace l2c
