// NEON against the portable paths, bit for bit, on any ARM64 or under emulation: tests/test_cross.py builds and runs
// this, docs/BUILDING.md says how to do it by hand.
//
//   neon coder RUNS [SEED]     the coder's kernels one by one, on likely and on extreme parameters
//   neon conv RUNS [SEED]      the integer convolution: shapes, strides, borders, extreme weights and multipliers
//   neon streams RUNS [SEED]   whole streams: equal bytes, and each path decodes the other's
//
// Arrays end where memory ends, so that a kernel that reads or writes past them is killed.

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "core/rans.h"
#include "simd/int_conv.h"
#include "tools.h"

namespace {

using namespace l2c;

// ---- mixtures -------------------------------------------------------------------------------------------------------

struct Mixture {
    size_t n;
    int num_mixtures, bits;
    Guarded<uint16_t> weights, inv_scales;
    Guarded<int16_t> means;

    Mixture(Random& random, size_t count, int components, int b)
        : n(count),
          num_mixtures(components),
          bits(b),
          weights(count * static_cast<size_t>(components)),
          inv_scales(weights.size()),
          means(weights.size()) {
        const bool likely = random.one_in(2);
        for (size_t j = 0; j < n; ++j) {
            uint32_t left = kWeightSum;
            for (int k = 0; k < num_mixtures; ++k) {
                const size_t at = static_cast<size_t>(k) * n + j;
                uint32_t weight = static_cast<uint32_t>(random.below(static_cast<int>(left) + 1));
                if (random.one_in(8)) weight = random.one_in(2) ? left : 0;
                if (k + 1 == num_mixtures) weight = left;
                left -= weight;
                weights[at] = static_cast<uint16_t>(weight);
                if (likely) {
                    means[at] = static_cast<int16_t>(random.below(6000) - 3000);
                    inv_scales[at] = static_cast<uint16_t>(100 + random.below(3000));
                } else {
                    constexpr uint16_t kScales[] = {1, 2, 22, 23, 31, 32, 33, 1024, 32766, 32767};
                    const int16_t extreme = random.one_in(2) ? -32768 : 32767;
                    means[at] = random.one_in(8) ? extreme : static_cast<int16_t>(random.next() >> 48);
                    inv_scales[at] = random.one_in(4) ? kScales[random.below(10)]
                                                      : static_cast<uint16_t>(1 + random.of_any_size(15) % 32767);
                }
            }
        }
    }

    MixtureView view() { return {weights.data(), means.data(), inv_scales.data(), n, num_mixtures, bits}; }

    // What a model would see where `likely`, else any symbol: all intervals, however short.
    void draw(Random& random, bool likely, Guarded<uint8_t>& symbols) {
        const MixtureView all = view();
        for (size_t j = 0; j < n; ++j) {
            int i = random.below(1 << bits);
            if (likely) {
                const uint32_t slot = static_cast<uint32_t>(random.below(kProbabilityOne));
                for (i = 0; mixture_cdf_at(all, j, i + 1) <= slot;) ++i;
            }
            symbols[j] = static_cast<uint8_t>(i);
        }
    }
};

Mixture random_mixture(Random& random, size_t n) {
    const int components = 1 + random.below(kMaxMixtures);
    return Mixture(random, n, components, 1 + random.below(8));
}

const Kernels& kernels_of(Cpu cpu) {
    set_cpu(cpu_name(cpu));
    return current_kernels();
}

struct Coder {
    const Kernels& plain = kernels_of(Cpu::kScalar);
    const Kernels& neon = kernels_of(Cpu::kNeon);

    // Every z of one component: v = 32 makes z = d, and the means and edges give all of -32768..32767.
    void try_all_sigmas() {
        constexpr size_t kCount = 65536;
        Guarded<uint16_t> weights(kCount), inv_scales(kCount);
        Guarded<int16_t> means(kCount);
        std::vector<int32_t> edges(kCount);
        std::vector<uint32_t> expected(kCount), found(kCount);
        for (int edge : {1, 128, 255}) {
            for (size_t j = 0; j < kCount; ++j) {
                weights[j] = kWeightSum;
                inv_scales[j] = 32;
                means[j] = static_cast<int16_t>(j);
                edges[j] = edge;
            }
            const MixtureView view = {weights.data(), means.data(), inv_scales.data(), kCount, 1, 8};
            plain.mixture_cdf(view, edges.data(), kCount, expected.data());
            neon.mixture_cdf(view, edges.data(), kCount, found.data());
            require(found == expected, "a sigma differs");
        }
    }

    void try_intervals(Random& random) {
        Mixture mixture = random_mixture(random, static_cast<size_t>(random.below(70)));
        const size_t n = mixture.n;
        Guarded<uint8_t> symbols(n), high(n), expected_high(n);
        Guarded<uint32_t> low(n), expected_low(n);
        mixture.draw(random, false, symbols);
        if (n > 0 && random.one_in(4)) spoil(random, mixture, symbols);
        const Status status =
            plain.mixture_intervals(mixture.view(), symbols.data(), n, expected_low.data(), expected_high.data());
        require(neon.mixture_intervals(mixture.view(), symbols.data(), n, low.data(), high.data()) == status,
                "intervals: another status");
        require(status != kOk || (low == expected_low && high == expected_high), "intervals differ");

        Guarded<int32_t> edges(n);
        Guarded<uint32_t> cdf(n), expected_cdf(n);
        for (size_t j = 0; j < n; ++j) edges[j] = random.below((1 << mixture.bits) + 1);
        const Status of_cdf = plain.mixture_cdf(mixture.view(), edges.data(), n, expected_cdf.data());
        require(neon.mixture_cdf(mixture.view(), edges.data(), n, cdf.data()) == of_cdf, "cdf: another status");
        require(of_cdf != kOk || cdf == expected_cdf, "cdf differs");
    }

    // One thing that is not valid.
    static void spoil(Random& random, Mixture& mixture, Guarded<uint8_t>& symbols) {
        const size_t j = static_cast<size_t>(random.below(static_cast<int>(mixture.n)));
        switch (random.below(3)) {
            case 0:
                mixture.inv_scales[j] = random.one_in(2) ? 0 : 32768;
                break;
            case 1:
                mixture.weights[j] ^= static_cast<uint16_t>(1 << random.below(16));
                break;
            default:
                if (mixture.bits < 8) symbols[j] = static_cast<uint8_t>(1 << mixture.bits);
        }
    }

    void try_encoding(Random& random, int lanes) {
        const size_t rows = static_cast<size_t>(random.below(6)), n = rows * static_cast<size_t>(lanes);
        Guarded<uint32_t> low(n);
        Guarded<uint8_t> high(n);
        for (size_t j = 0; j < n; ++j) {
            const uint32_t freq = 1 + static_cast<uint32_t>(random.of_any_size(20));
            const uint32_t start = static_cast<uint32_t>(random.below(static_cast<int>(kProbabilityOne - freq + 1)));
            low[j] = pack_low(start, freq);
            high[j] = pack_high(freq);
        }
        std::vector<uint64_t> states = random_states(random, lanes), expected_states = states;
        std::vector<uint16_t> words(2 * n + 2 * kWordMargin), expected = words;
        uint16_t* const end = expected.data() + expected.size();
        const size_t expected_count = static_cast<size_t>(
            end - plain.encode_rows(low.data(), high.data(), rows, lanes, expected_states.data(), end));
        uint16_t* const its_end = words.data() + words.size();
        const size_t count = static_cast<size_t>(
            its_end - neon.encode_rows(low.data(), high.data(), rows, lanes, states.data(), its_end));
        require(count == expected_count && states == expected_states, "encoder states differ");
        require(std::equal(end - count, end, its_end - count), "encoded words differ");
    }

    static std::vector<uint64_t> random_states(Random& random, int lanes) {
        std::vector<uint64_t> states(static_cast<size_t>(lanes));
        for (uint64_t& x : states) {
            x = kStateLow + random.next() % ((uint64_t{1} << kStateBits) - kStateLow);
            if (random.one_in(8)) x = random.one_in(2) ? kStateLow : (uint64_t{1} << kStateBits) - 1;
        }
        return states;
    }

    // Decodes noise: as good as a stream to a kernel, and it reaches all symbols and all lengths of words.
    void try_decoding(Random& random, int lanes) {
        const size_t rows = static_cast<size_t>(random.below(5)), n = rows * static_cast<size_t>(lanes);
        Mixture mixture = random_mixture(random, n);
        std::vector<uint64_t> states = random_states(random, lanes), expected_states = states;
        const size_t num_words = random.one_in(3) ? static_cast<size_t>(random.below(static_cast<int>(n) + 1)) : 2 * n;
        std::vector<uint16_t> words(num_words + kWordMargin);
        for (size_t i = 0; i < num_words; ++i) words[i] = static_cast<uint16_t>(random.next() >> 48);
        Guarded<uint8_t> symbols(n), expected(n);
        const uint16_t *next = words.data(), *expected_next = next, *end = next + num_words;
        const Status status = plain.decode_mixture(mixture.view(), expected.data(), rows, lanes, expected_states.data(),
                                                   &expected_next, end);
        require(neon.decode_mixture(mixture.view(), symbols.data(), rows, lanes, states.data(), &next, end) == status,
                "decoder: another status");
        if (status != kOk) return;
        require(symbols == expected, "decoded symbols differ");
        require(states == expected_states && next == expected_next, "decoder states differ");
    }
};

void test_coder(int runs, uint64_t seed) {
    Coder coder;
    coder.try_all_sigmas();
    for (int run = 0; run < runs; ++run) {
        Random random((seed << 32) + static_cast<uint64_t>(run));
        coder.try_intervals(random);
        for (int lanes = 1; lanes <= kMaxLanes; lanes *= 2) {
            coder.try_encoding(random, lanes);
            coder.try_decoding(random, lanes);
        }
    }
    std::printf("coder: %d runs, equal\n", runs);
}

// ---- integer convolution --------------------------------------------------------------------------------------------

template <class T>
ImageView<T> view_of(T* data, std::int64_t width, std::ptrdiff_t pixel) {
    return {data, width * pixel, pixel};
}

// One layer on one picture, by both paths.
void try_conv(Random& random) {
    const int kernel = random.one_in(2) ? 1 : 3;
    const int inputs = 1 + random.below(random.one_in(3) ? 150 : 40), outputs = 1 + random.below(70);
    const std::int64_t height = 1 + random.below(5), width = 1 + random.below(random.one_in(3) ? 60 : 15);
    const int taps = kernel * kernel, offset = kernel == 1 && random.one_in(2) ? 4 * random.below(inputs / 4 + 1) : 0;
    const bool extreme = random.one_in(3);
    std::vector<int8_t> weight(static_cast<size_t>(outputs * inputs * taps));
    const int skipped_tap = random.one_in(3) ? random.below(taps) : -1;
    for (size_t i = 0; i < weight.size(); ++i) {
        weight[i] = static_cast<int8_t>(random.next() >> 56);
        if (extreme) weight[i] = random.one_in(2) ? -128 : 127;
        if (static_cast<int>(i) % taps == skipped_tap) weight[i] = 0;
    }
    std::vector<int32_t> bias(static_cast<size_t>(outputs));
    std::vector<float> multiplier(bias.size());
    for (int32_t& value : bias) value = static_cast<int32_t>(random.of_any_size(30)) * (random.one_in(2) ? 1 : -1);
    for (float& value : multiplier) value = random_multiplier(random);
    const IntConv layer(outputs, inputs, kernel, weight.data(), bias.data(), multiplier.data(), offset);

    // As a caller that lays out its own buffers (channels padded, a border of zeros) or as any other.
    const bool laid_out = random.one_in(2);
    const int readable = laid_out ? (inputs + 3) / 4 * 4 : inputs;
    const std::ptrdiff_t pixel = kernel == 3 && laid_out ? readable : readable + random.below(3);
    const std::int64_t border = kernel == 3 && laid_out ? 1 : 0, row = (width + 2 * border) * pixel;
    // No more than the last pixel's channels lie behind its start.
    Guarded<uint8_t> x(static_cast<size_t>((height + 2 * border) * row - (pixel - readable)));
    std::memset(x.data(), 0, x.size());
    const int density = 1 + random.below(4);
    uint8_t* const first = x.data() + border * (row + pixel);
    for (std::int64_t y = 0; y < height; ++y) {
        for (std::int64_t column = 0; column < width; ++column) {
            for (int c = 0; c < readable; ++c) {
                const int value = extreme ? 255 * random.below(2) : static_cast<int>(random.next() >> 56);
                const int zero = c < offset ? 128 : 0;
                first[y * row + column * pixel + c] = static_cast<uint8_t>(random.one_in(density) ? value : zero);
            }
        }
    }
    const int used = random.one_in(3) ? 1 + random.below(outputs) : outputs;
    const std::ptrdiff_t out_pixel = outputs + random.below(3);
    const size_t out_size = static_cast<size_t>(height * width * out_pixel);
    Guarded<uint8_t> residual(out_size), u8(out_size), expected_u8(out_size);
    Guarded<int16_t> i16(out_size), expected_i16(out_size);
    for (size_t i = 0; i < out_size; ++i) residual[i] = static_cast<uint8_t>(random.next() >> 56);
    const bool wide = random.one_in(2), added = !wide && random.one_in(2);
    IntConvArguments arguments = {};
    arguments.height = height;
    arguments.width = width;
    arguments.x = {first, row, pixel};
    if (added) arguments.residual = view_of<const uint8_t>(residual.data(), width, out_pixel);
    arguments.threads = 1;
    arguments.x_readable = readable;
    arguments.x_bordered = border > 0;
    arguments.out_channels = used;
    arguments.dense = random.one_in(2);
    for (Cpu cpu : {Cpu::kScalar, Cpu::kNeon}) {
        auto& bytes = cpu == Cpu::kScalar ? expected_u8 : u8;
        auto& words = cpu == Cpu::kScalar ? expected_i16 : i16;
        if (wide) {
            arguments.out_i16 = view_of(words.data(), width, out_pixel);
        } else {
            arguments.out_u8 = view_of(bytes.data(), width, out_pixel);
        }
        layer.run(arguments, cpu);
    }
    require(u8 == expected_u8 && i16 == expected_i16, "a convolution differs");
}

void test_conv(int runs, uint64_t seed) {
    for (int run = 0; run < runs; ++run) {
        Random random((seed << 32) + static_cast<uint64_t>(run));
        try_conv(random);
    }
    std::printf("conv: %d runs of %s, equal\n", runs, int_conv_backend(Cpu::kNeon));
}

// ---- streams --------------------------------------------------------------------------------------------------------

// What is pushed into one stream: some mixtures.
struct Content {
    std::vector<std::unique_ptr<Mixture>> mixtures;
    std::vector<std::unique_ptr<Guarded<uint8_t>>> symbols;

    explicit Content(Random& random) {
        for (int i = 1 + random.below(3); i > 0; --i) {
            const size_t n = static_cast<size_t>(random.below(random.one_in(10) ? 2000 : 150));
            const int components = 1 + random.below(kMaxMixtures);
            mixtures.push_back(std::make_unique<Mixture>(random, n, components, 1 + random.below(8)));
            symbols.push_back(std::make_unique<Guarded<uint8_t>>(n));
            mixtures.back()->draw(random, !random.one_in(4), *symbols.back());
        }
    }

    size_t size() const {
        size_t total = 0;
        for (const auto& part : symbols) total += part->size();
        return total;
    }

    std::vector<uint8_t> encode(Cpu cpu, int lanes) {
        set_cpu(cpu_name(cpu));
        RangeEncoder encoder;
        for (size_t i = 0; i < mixtures.size(); ++i) {
            encoder.push_mixture(mixtures[i]->view(), symbols[i]->data(), symbols[i]->size());
        }
        return encoder.finish(lanes);
    }

    // Throws BitstreamError where the stream is not what was pushed.
    void decode(Cpu cpu, const std::vector<uint8_t>& stream) {
        set_cpu(cpu_name(cpu));
        RangeDecoder decoder(stream.data(), stream.size());
        for (size_t i = 0; i < mixtures.size(); ++i) {
            Guarded<uint8_t> found(symbols[i]->size());
            decoder.pop_mixture(mixtures[i]->view(), found.data(), found.size());
            require(found == *symbols[i], std::string("a stream decodes to something else by ") + cpu_name(cpu));
        }
        decoder.finish();
    }
};

void test_streams(int runs, uint64_t seed) {
    size_t num_symbols = 0, num_bytes = 0;
    for (int run = 0; run < runs; ++run) {
        Random random((seed << 32) + static_cast<uint64_t>(run));
        Content content(random);
        const int lanes = random.one_in(4) ? 0 : 1 << random.below(7);
        const std::vector<uint8_t> plain = content.encode(Cpu::kScalar, lanes);
        const std::vector<uint8_t> neon = content.encode(Cpu::kNeon, lanes);
        require(plain == neon, "streams differ");
        content.decode(Cpu::kScalar, neon);
        content.decode(Cpu::kNeon, plain);
        num_symbols += content.size();
        num_bytes += plain.size();
    }
    std::printf("streams: %d of %zu symbols and %zu bytes, equal\n", runs, num_symbols, num_bytes);
}

}  // namespace

int main(int argc, char** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    const int runs = argc > 2 ? std::atoi(argv[2]) : 1000;
    const uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
    if (!cpu_has(Cpu::kNeon)) fail("this machine has no neon");
    try {
        if (what == "coder") {
            test_coder(runs, seed);
        } else if (what == "conv") {
            test_conv(runs, seed);
        } else if (what == "streams") {
            test_streams(runs, seed);
        } else {
            fail("say coder, conv or streams");
        }
    } catch (const std::exception& error) {
        fail(error.what());
    }
    return 0;
}
