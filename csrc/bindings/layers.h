// Layers as Python passes them.

#pragma once

#include <vector>

#include "bindings/common.h"
#include "simd/int_layer.h"

namespace l2c {

// A layer as Python passes it, (weight int8 [O, I, k, k], bias int32 [O], multiplier float32 [O]), held by its arrays.
class Layers {
 public:
    LayerView add(const py::handle& layer) {
        const auto parts = py::cast<py::tuple>(layer);
        if (parts.size() != 3) throw py::value_error("a layer must be (weight, bias, multiplier)");
        const auto weight = array_arg<std::int8_t>(parts[0], "weight", 4);
        const auto bias = array_arg<std::int32_t>(parts[1], "bias", 1);
        const auto multiplier = array_arg<float>(parts[2], "multiplier", 1);
        for (py::ssize_t axis = 0; axis < 4; ++axis) {
            if (weight.shape(axis) > kMaxSize) throw py::value_error("a weight is too large");
        }
        if (weight.shape(2) != weight.shape(3) || bias.size() != weight.shape(0) ||
            multiplier.size() != weight.shape(0)) {
            throw py::value_error("a layer must have weight [O, I, k, k], bias [O] and multiplier [O]");
        }
        for (const py::array& array : {py::array(weight), py::array(bias), py::array(multiplier)}) hold(array);
        return {static_cast<int>(weight.shape(0)),
                static_cast<int>(weight.shape(1)),
                static_cast<int>(weight.shape(2)),
                weight.data(),
                bias.data(),
                multiplier.data()};
    }

    // Keeps an array alive as long as the layers.
    void hold(const py::array& array) { arrays_.push_back(array); }

 private:
    static constexpr py::ssize_t kMaxSize = 1 << 24;
    std::vector<py::array> arrays_;
};

}  // namespace l2c
