// What the networks of a model in integers are given as.

#pragma once

#include <cstdint>

namespace l2c {

// A convolution as a model file holds it.
struct ExactLayerView {
    int outputs, inputs, kernel;
    const std::int8_t* weight;  // [outputs][inputs][kernel][kernel]
    const std::int32_t* bias;   // [outputs]
    const float* multiplier;    // [outputs]
    const std::uint8_t* zero;   // [inputs]
};

// Which of some values holds at each latent: [height][width], or null: the first everywhere.
using PlaceMap = const std::int32_t*;

}  // namespace l2c
