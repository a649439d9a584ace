// Layers of an integer model before IntConv packs them: as a file holds them, and with other rows and columns.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace l2c {

// One convolution as a model file holds it.
struct LayerView {
    int out_channels, in_channels, kernel;
    const std::int8_t* weight;  // [out_channels][in_channels][kernel][kernel]
    const std::int32_t* bias;   // [out_channels]
    const float* multiplier;    // [out_channels]
};

// A layer with memory of its own.
struct Layer {
    int out_channels, in_channels, kernel;
    std::vector<std::int8_t> weight;  // as in LayerView
    std::vector<std::int32_t> bias;
    std::vector<float> multiplier;

    LayerView view() const {
        return {out_channels, in_channels, kernel, weight.data(), bias.data(), multiplier.data()};
    }
};

// first, first + 1, ...
inline std::vector<int> numbers(int first, int count) {
    std::vector<int> result(static_cast<std::size_t>(count));
    std::iota(result.begin(), result.end(), first);
    return result;
}

// The layer with other rows and columns: row i of the result is row rows[i], zeros for -1, and so are the columns.
inline Layer take(const LayerView& layer, const std::vector<int>& rows, const std::vector<int>& columns) {
    const std::size_t taps = static_cast<std::size_t>(layer.kernel) * layer.kernel, size = rows.size() * columns.size();
    Layer result = {static_cast<int>(rows.size()),
                    static_cast<int>(columns.size()),
                    layer.kernel,
                    std::vector<std::int8_t>(size * taps),
                    {},
                    {}};
    std::int8_t* to = result.weight.data();
    const bool all = columns == numbers(0, layer.in_channels);
    for (int row : rows) {
        result.bias.push_back(row < 0 ? 0 : layer.bias[row]);
        result.multiplier.push_back(row < 0 ? 0 : layer.multiplier[row]);
        if (all) {
            const std::size_t length = columns.size() * taps;
            if (row >= 0) std::copy_n(layer.weight + row * length, length, to);
            to += length;
            continue;
        }
        for (int column : columns) {
            if (row >= 0 && column >= 0) {
                const std::size_t at = static_cast<std::size_t>(row) * layer.in_channels + column;
                std::copy_n(layer.weight + at * taps, taps, to);
            }
            to += taps;
        }
    }
    return result;
}

}  // namespace l2c
