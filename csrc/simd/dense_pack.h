// The layers of an integer D as its kernels (dense_conv.h) read them.

#pragma once

#include <cstdint>

#include "core/aligned_buffer.h"
#include "simd/dense_conv.h"

namespace l2c {

// A layer as the kernels of one back end read it, see DenseBackend and DenseCall.
struct DensePacked {
    AlignedBuffer weights, bias;

    const std::int32_t* biases() const { return static_cast<const std::int32_t*>(bias.data()); }
};

// weight: int8 [outputs][inputs][kernel][kernel]; bias: int32 [outputs], with |bias| + 255 sum|weight| < 2^31.
// in_padded: inputs, rounded up to a multiple of 4. Padded outputs have zeros. Throws std::bad_alloc.
void pack_dense(const DenseBackend& backend, int outputs, int inputs, int in_padded, int kernel,
                const std::int8_t* weight, const std::int32_t* bias, DensePacked& to);

// int16 [outputs][inputs] -> MatrixCall::weights for in_padded >= inputs. Throws std::bad_alloc.
void pack_matrix(const std::int16_t* matrix, int outputs, int inputs, int in_padded, AlignedBuffer& to);

}  // namespace l2c
