// The convolutions of E of the block family in integers, as D has them (decoder.h): inputs in bytes -> sums of the last
// layers. Nothing that E gives has to be the same everywhere; this is for speed. What comes before and after, in
// floats, is in l2c/exact/encoder.py.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/cpu.h"
#include "exact/model.h"

namespace l2c {

struct IntegerEncoderView {
    ExactLayerView first, head;
    std::vector<ExactLayerView> convolutions;  // conv1, conv2 of each block
    bool has_local_gain;
    ExactLayerView local_gain;
};

struct IntegerEncoderPicture {
    std::int64_t height, width;  // of the latents
    const std::uint8_t* input;   // [height][width][inputs]
    PlaceMap scale_map;
    std::vector<const float*> scales;  // of each modulator: [values][channels]
    std::int32_t* head;                // sums [height][width][outputs]
    std::int32_t* local_gain;          // likewise, or null
};

class IntegerEncoder {
 public:
    // Copies everything. Throws std::invalid_argument: sizes that do not fit, sums that could pass 2^31.
    explicit IntegerEncoder(const IntegerEncoderView& model);
    ~IntegerEncoder();

    // May run in several threads at once. Throws std::bad_alloc.
    void run(const IntegerEncoderPicture& picture, int threads, Cpu cpu) const;

    int inputs() const;
    int width() const;
    int outputs() const;
    int num_modulators() const;
    bool has_local_gain() const;

 private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace l2c
