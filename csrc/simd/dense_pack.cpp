#include "simd/dense_pack.h"

#include <algorithm>
#include <cstddef>

namespace l2c {
namespace {

// int8 [outputs][inputs][taps] -> T [block][tap][in_padded / step][16][step], in zeros.
template <typename T>
void pack_weights(int step, int outputs, int inputs, int in_padded, int taps, const std::int8_t* weight, T* to) {
    for (int o = 0; o < outputs; ++o) {
        for (int tap = 0; tap < taps; ++tap) {
            const std::size_t run = static_cast<std::size_t>(o / kDenseBlock) * taps + tap;
            T* group = to + (run * in_padded * kDenseBlock + static_cast<std::size_t>(o % kDenseBlock) * step);
            const std::int8_t* from = weight + tap;
            for (int i = 0; i < inputs; group += kDenseBlock * step) {
                for (int k = 0; k < step && i < inputs; ++k, ++i, from += taps) group[k] = *from;
            }
        }
        weight += static_cast<std::size_t>(inputs) * taps;
    }
}

template <typename T>
T* zeros(std::size_t count, AlignedBuffer& buffer) {
    T* const values = static_cast<T*>(buffer.reserve(count * sizeof(T)));
    std::fill(values, values + count, T{0});
    return values;
}

std::size_t padded(int outputs) {
    return static_cast<std::size_t>((outputs + kDenseBlock - 1) / kDenseBlock) * kDenseBlock;
}

}  // namespace

void pack_dense(const DenseBackend& backend, int outputs, int inputs, int in_padded, int kernel,
                const std::int8_t* weight, const std::int32_t* bias, DensePacked& to) {
    const int taps = kernel * kernel;
    const std::size_t size = padded(outputs) * static_cast<std::size_t>(taps) * static_cast<std::size_t>(in_padded);
    if (backend.weight_bytes == 1) {
        auto* const packed = zeros<std::int8_t>(size, to.weights);
        pack_weights(backend.step, outputs, inputs, in_padded, taps, weight, packed);
    } else {
        auto* const packed = zeros<std::int16_t>(size, to.weights);
        pack_weights(backend.step, outputs, inputs, in_padded, taps, weight, packed);
    }
    auto* const biases = zeros<std::int32_t>(padded(outputs), to.bias);
    const std::size_t per_output = static_cast<std::size_t>(inputs) * static_cast<std::size_t>(taps);
    for (int o = 0; o < outputs; ++o, weight += per_output) {
        std::int32_t sum = 0;  // below 2^31 / 255
        for (std::size_t i = 0; i < per_output; ++i) sum += weight[i];
        biases[o] = bias[o] + backend.centre * sum;
    }
}

void pack_matrix(const std::int16_t* matrix, int outputs, int inputs, int in_padded, AlignedBuffer& to) {
    auto* const packed = zeros<std::int16_t>(padded(outputs) * static_cast<std::size_t>(in_padded), to);
    for (int o = 0; o < outputs; ++o) {
        for (int i = 0; i < inputs; ++i) {
            const std::size_t pair = static_cast<std::size_t>(o / kDenseBlock) * (in_padded / 2) + i / 2;
            packed[(pair * kDenseBlock + o % kDenseBlock) * 2 + i % 2] = *matrix++;
        }
    }
}

}  // namespace l2c
