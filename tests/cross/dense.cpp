// The kernels of an integer D: NEON against plain C++, bit for bit. tests/test_cross.py builds and runs this.
//
//   dense RUNS [SEED]   sums of convolutions and matrices, and what follows them; each RUNS times
//
// Arrays end where memory ends, so that a kernel that reads or writes past them is killed.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "simd/dense_conv.h"
#include "simd/dense_pack.h"
#include "tools.h"

namespace {

using namespace l2c;

constexpr std::int64_t kSumLimit = (std::int64_t{1} << 31) - 1;

int padded_to(int n, int step) {
    return (n + step - 1) / step * step;
}

template <class T>
T random_of(Random& random) {
    return static_cast<T>(random.next() >> (64 - 8 * sizeof(T)));
}

template <class T>
void fill(Random& random, Guarded<T>& values) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = random_of<T>(random);
}

// `count` values of a packed buffer.
template <class T>
void copy(const AlignedBuffer& buffer, Guarded<T>& to) {
    std::copy_n(static_cast<const T*>(buffer.data()), to.size(), to.data());
}

// ---- sums -----------------------------------------------------------------------------------------------------------

struct Layer {
    int outputs, inputs, kernel, in_padded, blocks;
    std::vector<std::int8_t> weight;
    std::vector<std::int32_t> bias;

    // `extreme`: weights of the greatest size, of one sign in many outputs; biases up to the limit that sums have.
    Layer(Random& random, bool extreme)
        : outputs(1 + random.below(70)),
          inputs(1 + random.below(random.one_in(3) ? 150 : 40)),
          kernel(random.one_in(2) ? 1 : 3),
          in_padded(padded_to(inputs, 4)),
          blocks(padded_to(outputs, kDenseBlock) / kDenseBlock) {
        const int per_output = inputs * kernel * kernel;
        for (int o = 0; o < outputs; ++o) {
            std::int64_t room = kSumLimit;
            const int sign = random.below(3);  // of all weights, or any
            for (int i = 0; i < per_output; ++i) {
                const bool negative = sign == 2 ? random.one_in(2) : sign == 1;
                const int value = extreme ? (negative ? -128 : 127) : random_of<std::int8_t>(random);
                weight.push_back(static_cast<std::int8_t>(value));
                room -= 255 * std::abs(value);
            }
            const bool most = extreme && random.one_in(2);
            const std::int64_t size =
                most ? room : static_cast<std::int64_t>(random.of_any_size(31) % static_cast<std::uint64_t>(room + 1));
            const bool down = most ? sign == 1 : random.one_in(2);
            bias.push_back(static_cast<std::int32_t>(down ? -size : size));
        }
    }

    template <class W>
    void run(const DenseBackend& backend, DenseCall call, Guarded<std::int32_t>& sums) const {
        DensePacked packed;
        pack_dense(backend, outputs, inputs, in_padded, kernel, weight.data(), bias.data(), packed);
        Guarded<W> weights(static_cast<size_t>(blocks * kDenseBlock * in_padded * kernel * kernel));
        Guarded<std::int32_t> biases(static_cast<size_t>(blocks * kDenseBlock));
        copy(packed.weights, weights);
        copy(packed.bias, biases);
        call.kernel = kernel;
        call.in_padded = in_padded;
        call.weights = weights.data();
        call.bias = biases.data();
        call.blocks = blocks;
        call.sums = sums.data();
        require(backend.scratch_bytes == 0, "a back end needs scratch memory");
        backend.sums(call, nullptr);
    }
};

void run_layer(const Layer& layer, const DenseBackend& backend, const DenseCall& call, Guarded<std::int32_t>& sums) {
    if (backend.weight_bytes == 1) {
        layer.run<std::int8_t>(backend, call, sums);
    } else {
        layer.run<std::int16_t>(backend, call, sums);
    }
}

void try_sums(Random& random, const DenseBackend& neon) {
    const bool extreme = random.one_in(2);
    const Layer layer(random, extreme);
    const int pixels = 1 + random.below(random.one_in(3) ? 36 : 9), columns = pixels + layer.kernel - 1;
    DenseCall call = {};
    call.pixels = pixels;
    call.x_pixel = layer.in_padded;
    call.x_row = (columns + random.below(3)) * call.x_pixel;
    Guarded<std::uint8_t> x(static_cast<size_t>((layer.kernel - 1) * call.x_row + columns * call.x_pixel));
    const int kind = extreme ? random.below(3) : 2;  // 255 everywhere, 0 or 255, anything
    for (size_t i = 0; i < x.size(); ++i) {
        x[i] = random_of<std::uint8_t>(random);
        if (kind < 2) x[i] = kind == 0 || random.one_in(2) ? 255 : 0;
    }
    call.x = x.data();
    const size_t size = static_cast<size_t>(pixels * layer.blocks * kDenseBlock);
    Guarded<std::int32_t> sums(size), expected(size);
    run_layer(layer, kDenseScalar, call, expected);
    run_layer(layer, neon, call, sums);
    require(sums == expected, "sums of a convolution differ");
    if (!extreme || kind != 0) return;  // and are what they should be, at the limit too
    const size_t per_output = static_cast<size_t>(layer.inputs * layer.kernel * layer.kernel);
    for (int o = 0; o < layer.outputs; ++o) {
        std::int64_t sum = layer.bias[static_cast<size_t>(o)];
        for (size_t i = 0; i < per_output; ++i) sum += 255 * layer.weight[static_cast<size_t>(o) * per_output + i];
        require(sums[static_cast<size_t>(o)] == sum, "a sum at the limit is wrong");
    }
}

void try_matrix(Random& random, const DenseBackend& neon) {
    const int inputs = 1 + random.below(200), in_padded = padded_to(inputs, 2), outputs = 1 + random.below(70);
    const int blocks = padded_to(outputs, kDenseBlock) / kDenseBlock, pixels = 1 + random.below(37);
    std::vector<std::int16_t> matrix;
    for (int o = 0; o < outputs; ++o) {
        int room = 65535;  // of sizes: times 2^15 below 2^31
        for (int i = 0; i < inputs; ++i) {
            int value = static_cast<int>(random.of_any_size(random.one_in(8) ? 16 : 10));
            value = std::min({value, room, 32768});
            room -= value;
            const bool down = value == 32768 || random.one_in(2);
            matrix.push_back(static_cast<std::int16_t>(down ? -value : value));
        }
    }
    AlignedBuffer packed;
    pack_matrix(matrix.data(), outputs, inputs, in_padded, packed);
    Guarded<std::int16_t> weights(static_cast<size_t>(blocks * kDenseBlock * in_padded));
    copy(packed, weights);
    Guarded<std::int16_t> x(static_cast<size_t>(pixels * in_padded));
    const bool extreme = random.one_in(2);
    for (size_t i = 0; i < x.size(); ++i) {
        x[i] = random_of<std::int16_t>(random);
        if (extreme) x[i] = random.one_in(2) ? 32767 : -32768;
    }
    const size_t size = static_cast<size_t>(pixels * blocks * kDenseBlock);
    Guarded<std::int32_t> sums(size), expected(size);
    kDenseScalar.matrix({x.data(), in_padded, weights.data(), blocks, pixels, expected.data()});
    neon.matrix({x.data(), in_padded, weights.data(), blocks, pixels, sums.data()});
    require(sums == expected, "sums of a matrix differ");
}

// ---- what follows them ----------------------------------------------------------------------------------------------

// What one call reads.
struct Inputs {
    int pixels, channels, gap;
    bool two_bytes;
    Guarded<std::int32_t> sums;
    Guarded<float> above, below, scale;
    Guarded<std::int16_t> zero, stream;  // the stream as it is before

    Inputs(int num_pixels, int num_channels, int distance, bool rest)
        : pixels(num_pixels),
          channels(num_channels),
          gap(distance),
          two_bytes(rest),
          sums(size_of(num_channels + distance)),
          above(static_cast<size_t>(num_channels)),
          below(above.size()),
          scale(above.size()),
          zero(above.size()),
          stream(sums.size()) {}

    // Of an array whose pixels are so far apart, the last one without what follows its channels.
    size_t size_of(int distance) const { return static_cast<size_t>((pixels - 1) * distance + channels); }
};

// What it writes; all of the arrays is compared.
struct Outputs {
    Guarded<std::int16_t> stream;
    Guarded<std::uint8_t> bytes;

    Outputs(Inputs& in, void (*kernel)(const DenseOutput&))
        : stream(in.stream.size()), bytes(in.size_of(2 * in.channels + in.gap) + static_cast<size_t>(in.channels)) {
        std::copy_n(in.stream.data(), stream.size(), stream.data());
        DenseOutput out = {};
        out.sums = in.sums.data();
        out.sums_pixel = out.stream_pixel = in.channels + in.gap;
        out.pixels = in.pixels;
        out.channels = in.channels;
        out.above = in.above.data();
        out.below = in.below.data();
        out.scale = in.scale.data();
        out.zero = in.zero.data();
        out.stream = stream.data();
        out.bytes = bytes.data();
        out.bytes_pixel = 2 * in.channels + in.gap;
        if (in.two_bytes) out.rest = bytes.data() + in.channels;
        kernel(out);
    }

    bool operator==(const Outputs& other) const { return stream == other.stream && bytes == other.bytes; }
};

void compare(Inputs& in, const DenseBackend& neon) {
    using Kernel = void (*DenseBackend::*)(const DenseOutput&);
    constexpr std::pair<const char*, Kernel> kKernels[] = {{"leaky_stream", &DenseBackend::leaky_stream},
                                                           {"leaky_bytes", &DenseBackend::leaky_bytes},
                                                           {"residual", &DenseBackend::residual},
                                                           {"words", &DenseBackend::words}};
    const bool rest = in.two_bytes;
    for (const auto& [name, kernel] : kKernels) {
        in.two_bytes = rest && kernel == &DenseBackend::residual;
        require(Outputs(in, neon.*kernel) == Outputs(in, kDenseScalar.*kernel), std::string(name) + " differs");
    }
}

float random_factor(Random& random) {
    if (random.one_in(3)) return random.one_in(2) ? 0.5f : 0x1p-7f;  // many ties
    return random.one_in(4) ? 1.0f : random_multiplier(random);
}

void try_outputs(Random& random, const DenseBackend& neon) {
    Inputs in(1 + random.below(9), 1 + random.below(70), random.below(3), random.one_in(2));
    const int bits = 1 + random.below(31);
    for (size_t i = 0; i < in.sums.size(); ++i) {
        const auto size = static_cast<std::int32_t>(random.of_any_size(bits));
        in.sums[i] = random.one_in(2) ? size : ~size;
        in.stream[i] = random_of<std::int16_t>(random);
        if (random.one_in(4)) in.stream[i] = random.one_in(2) ? 32767 : -32768;
    }
    for (size_t c = 0; c < in.above.size(); ++c) {
        in.above[c] = random_factor(random);
        in.below[c] = random.one_in(4) ? random_factor(random) : in.above[c] * 0.1f;
        in.scale[c] = random_factor(random);
        in.zero[c] = random_of<std::uint8_t>(random);
        if (random.one_in(4)) in.zero[c] = random.one_in(2) ? 255 : 0;
    }
    compare(in, neon);
}

// Every int16 as the value of a stream, and as a sum, with some zero points.
void try_all_values(const DenseBackend& neon) {
    constexpr int kValues = 65536;
    Inputs in(1, kValues, 0, true);
    for (int zero : {0, 1, 100, 254, 255}) {
        for (float above : {0.0f, 1.0f, 0.5f, 0x1p-6f}) {
            for (size_t i = 0; i < kValues; ++i) {
                in.sums[i] = static_cast<std::int32_t>(i) - 32768;
                in.stream[i] = static_cast<std::int16_t>(in.sums[i]);
                in.above[i] = above;
                in.below[i] = 0.1f * above;
                in.scale[i] = above == 0.0f ? 1.0f : 0.75f;
                in.zero[i] = static_cast<std::int16_t>(zero);
            }
            compare(in, neon);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const int runs = argc > 1 ? std::atoi(argv[1]) : 1000;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    if (!cpu_has(Cpu::kNeon)) fail("this machine has no neon");
    const DenseBackend& neon = dense_backend(Cpu::kNeon);
    try_all_values(neon);
    for (int run = 0; run < runs; ++run) {
        Random random((seed << 32) + static_cast<uint64_t>(run));
        try_sums(random, neon);
        try_matrix(random, neon);
        try_outputs(random, neon);
    }
    std::printf("dense: %d runs of %s, equal\n", runs, neon.name);
    return 0;
}
