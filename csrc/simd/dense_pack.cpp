#include "simd/dense_pack.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <type_traits>

namespace l2c {
namespace {

// int8 [outputs][inputs][taps] -> T [block][tap][in_padded / kStep][16][kStep], in zeros.
template <int kStep, typename T>
void pack_weights(int outputs, int inputs, int in_padded, int taps, const std::int8_t* weight, T* to) {
    const std::ptrdiff_t stride = taps;
    for (int o = 0; o < outputs; ++o) {
        for (int tap = 0; tap < taps; ++tap) {
            const std::size_t run = static_cast<std::size_t>(o / kDenseBlock) * taps + tap;
            T* group = to + (run * in_padded * kDenseBlock + static_cast<std::size_t>(o % kDenseBlock) * kStep);
            const std::int8_t* from = weight + tap;
            int i = 0;
            for (; i + kStep <= inputs; i += kStep, from += kStep * stride, group += kDenseBlock * kStep) {
                for (int k = 0; k < kStep; ++k) group[k] = from[k * stride];
            }
            for (int k = 0; i < inputs; ++i, ++k) group[k] = from[k * stride];
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
    const auto pack = [&](auto* packed) {
        const auto with = [&](auto step) {
            pack_weights<decltype(step)::value>(outputs, inputs, in_padded, taps, weight, packed);
        };
        switch (backend.step) {
            case 1:
                return with(std::integral_constant<int, 1>());
            case 2:
                return with(std::integral_constant<int, 2>());
            case 4:
                return with(std::integral_constant<int, 4>());
            default:
                throw std::logic_error("no layout of weights has this step");
        }
    };
    if (backend.weight_bytes == 1) {
        pack(zeros<std::int8_t>(size, to.weights));
    } else {
        pack(zeros<std::int16_t>(size, to.weights));
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
