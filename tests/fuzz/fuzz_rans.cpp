// Fuzzes the coder: no input may crash it, hang it, or make two instruction sets differ.
//
// From the repository root, with or without clang (one command, F holds the flags of all files):
//
//   F="-std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Icsrc"; A=build/fuzz/rans;
//   S=csrc/simd/rans; mkdir -p $A && g++ $F -c ${S}_scalar.cpp -o $A/scalar.o &&
//   g++ $F -mavx2 -c ${S}_avx2.cpp -o $A/avx2.o &&
//   g++ $F -mavx512f -mavx512bw -mavx512dq -mavx512vl -c ${S}_avx512.cpp -o $A/avx512.o &&
//   g++ $F tests/fuzz/fuzz_rans.cpp $A/*.o -o build/fuzz/fuzz_rans && build/fuzz/fuzz_rans 200000
//
// With clang, -fsanitize=fuzzer,address,undefined -DL2C_LIBFUZZER makes it a libFuzzer target.
//
// An input is: a byte that chooses what to do, 8 bytes of seed for models and symbols, then the stream to decode (or,
// for round trips, where and how to damage one).

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/rans.h"

namespace {

using namespace l2c;

void require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "fuzz_rans: %s\n", what);
    std::abort();
}

class Random {
 public:
    explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
    uint64_t next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_ * 0x9E3779B97F4A7C15u;
    }
    uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }

 private:
    uint64_t state_;
};

// One push or pop with its model and symbols, all derived from the seed.
struct Operation {
    int kind;  // 0 mixture, 1 table, 2 uniform, 3 raw
    size_t n;
    int K = 1, bits = 8;
    std::vector<uint16_t> weights, inv_scales;
    std::vector<int16_t> means;
    std::vector<uint8_t> bytes;
    std::vector<int32_t> ints, indexes;
    std::vector<uint32_t> numbers, cdf;
    int32_t table_size = 0;
    uint32_t size = 1;

    explicit Operation(Random& random) : kind(static_cast<int>(random.below(4))), n(random.below(300)) {
        if (random.below(8) == 0) n *= 10;
        if (kind == 0) {
            K = 1 + static_cast<int>(random.below(8));
            bits = 1 + static_cast<int>(random.below(8));
            weights.resize(K * n), inv_scales.resize(K * n), means.resize(K * n), bytes.resize(n);
            const bool extreme = random.below(2) == 0;
            for (size_t j = 0; j < n; ++j) {
                uint32_t rest = kWeightSum;
                for (int k = 0; k < K; ++k) {
                    const uint32_t w = k + 1 == K ? rest : random.below(rest + 1);
                    rest -= w;
                    weights[k * n + j] = static_cast<uint16_t>(w);
                    means[k * n + j] = static_cast<int16_t>(extreme ? random.next() >> 48 : random.below(4000) - 2000);
                    inv_scales[k * n + j] = static_cast<uint16_t>(extreme ? 1 + random.below(32767)
                                                                          : 1 + random.below(1 << random.below(15)));
                }
                bytes[j] = static_cast<uint8_t>(random.below(1u << bits));
            }
        } else if (kind == 1) {
            bits = 4 + static_cast<int>(random.below(17));
            table_size = 2 + static_cast<int32_t>(random.below(12));
            cdf.assign(2 * 16, 0);
            for (uint32_t t = 0; t < 2; ++t) {
                for (int32_t i = 1; i < table_size; ++i) cdf[16 * t + i] = random.below((1u << bits) + 1);
                std::sort(cdf.begin() + 16 * t, cdf.begin() + 16 * t + table_size);
                cdf[16 * t] = 0;
                cdf[16 * t + table_size - 1] = 1u << bits;
            }
            for (size_t j = 0; j < n; ++j) {
                indexes.push_back(static_cast<int32_t>(random.below(2)));
                const uint32_t* row = cdf.data() + 16 * indexes[j];
                int32_t symbol = static_cast<int32_t>(random.below(static_cast<uint32_t>(table_size - 1)));
                while (row[symbol] == row[symbol + 1]) symbol = (symbol + 1) % (table_size - 1);
                ints.push_back(symbol);
            }
        } else if (kind == 2) {
            size = 1 + random.below(1u << random.below(21));
            for (size_t j = 0; j < n; ++j) numbers.push_back(random.below(size));
        } else {
            bits = static_cast<int>(random.below(33));
            for (size_t j = 0; j < n; ++j) {
                numbers.push_back(bits == 0 ? 0 : static_cast<uint32_t>(random.next() >> (64 - bits)));
            }
        }
    }

    // Parameters that no model may have: they must be noticed at the latest when their symbol was decoded.
    void spoil(Random& random) {
        if (n == 0) return;
        for (size_t i = random.below(20); i > 0; --i) {
            if (!weights.empty()) weights[random.below(static_cast<uint32_t>(K * n))] ^= 1u << random.below(16);
            if (!weights.empty()) inv_scales[random.below(static_cast<uint32_t>(K * n))] = random.below(2) * 65535;
            if (!indexes.empty()) indexes[random.below(static_cast<uint32_t>(n))] = static_cast<int32_t>(random.next());
            if (!cdf.empty()) cdf[random.below(32)] ^= 1u << random.below(32);
        }
    }

    MixtureView mixture() const { return {weights.data(), means.data(), inv_scales.data(), n, K, bits}; }
    TableView table() const { return {cdf.data(), sizes_, 2, 16, bits}; }

    void push(RangeEncoder& encoder) {
        sizes_[0] = sizes_[1] = table_size;
        if (kind == 0) encoder.push_mixture(mixture(), bytes.data(), n);
        if (kind == 1) encoder.push_table(table(), ints.data(), indexes.data(), n);
        if (kind == 2) encoder.push_uniform(numbers.data(), n, size);
        if (kind == 3) encoder.push_raw(numbers.data(), n, bits);
    }

    // Whether what came out is what went in.
    bool pop(RangeDecoder& decoder) {
        sizes_[0] = sizes_[1] = table_size;
        if (kind == 0) {
            std::vector<uint8_t> out(n);
            decoder.pop_mixture(mixture(), out.data(), n);
            return out == bytes;
        }
        if (kind == 1) {
            std::vector<int32_t> out(n);
            decoder.pop_table(table(), indexes.data(), out.data(), n);
            return out == ints;
        }
        std::vector<uint32_t> out(n);
        if (kind == 2) decoder.pop_uniform(size, out.data(), n);
        if (kind == 3) decoder.pop_raw(bits, out.data(), n);
        return out == numbers;
    }

 private:
    int32_t sizes_[2] = {0, 0};
};

enum class Outcome { kSame, kOther, kRefused };

Outcome decode(const std::vector<uint8_t>& stream, std::vector<Operation>& operations) {
    try {
        RangeDecoder decoder(stream.data(), stream.size());
        bool same = true;
        for (Operation& operation : operations) same &= operation.pop(decoder);
        decoder.finish();
        return same ? Outcome::kSame : Outcome::kOther;
    } catch (const BitstreamError&) {
        return Outcome::kRefused;
    } catch (const std::invalid_argument&) {  // spoilt parameters
        return Outcome::kRefused;
    }
}

const std::vector<Cpu>& cpus() {
    static const std::vector<Cpu> all = [] {
        std::vector<Cpu> found;
        for (Cpu cpu : kAllCpus) {
            if (cpu_has(cpu)) found.push_back(cpu);
        }
        return found;
    }();
    return all;
}

// Parameters from random network output: equal in every path, within the arrays.
void fuzz_params(Random& random) {
    const size_t num_cells = random.below(40), cg = 1 + random.below(40);
    const int K = 1 + static_cast<int>(random.below(8));
    std::vector<int16_t> raw(num_cells * 3 * K * cg);
    for (int16_t& value : raw) value = static_cast<int16_t>(random.next() >> (48 + random.below(12)));
    std::vector<uint16_t> exp_table(256), inv_table(256);
    for (uint16_t& value : exp_table) value = static_cast<uint16_t>(random.next() >> 48);
    for (uint16_t& value : inv_table) value = static_cast<uint16_t>(1 + random.below(32767));
    exp_table[0] |= 1;
    std::vector<uint8_t> valid(num_cells);
    size_t num_valid = 0;
    for (uint8_t& flag : valid) num_valid += flag = static_cast<uint8_t>(random.below(2));
    const size_t m = num_valid * cg;
    std::vector<uint16_t> first_weights, first_scales;
    for (Cpu cpu : cpus()) {
        set_cpu(cpu_name(cpu));
        std::vector<uint16_t> weights(K * m), inv_scales(K * m);
        std::vector<int16_t> means(K * m);
        current_kernels().mixture_params({raw.data(), num_cells, K, cg, exp_table.data(), inv_table.data(),
                                          valid.data(), weights.data(), means.data(), inv_scales.data(), m});
        if (cpu == Cpu::kScalar) first_weights = weights, first_scales = inv_scales;
        require(weights == first_weights && inv_scales == first_scales, "parameters differ between paths");
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 9) return 0;
    uint64_t seed;
    std::memcpy(&seed, data + 1, 8);
    Random random(seed);
    const int action = data[0] % 4;
    if (action == 3) {
        fuzz_params(random);
        return 0;
    }
    std::vector<Operation> operations;
    for (uint32_t i = random.below(5); i > 0; --i) operations.emplace_back(random);
    std::vector<uint8_t> stream(data + 9, data + size);
    if (action != 0) {  // a good stream, then damage at the places the input names
        const int lanes = action == 1 ? 0 : 1 << random.below(7);
        std::vector<uint8_t> good;
        for (Cpu cpu : cpus()) {
            set_cpu(cpu_name(cpu));
            RangeEncoder encoder;
            for (Operation& operation : operations) operation.push(encoder);
            std::vector<uint8_t> bytes = encoder.finish(lanes);
            require(cpu == Cpu::kScalar || bytes == good, "streams differ between paths");
            good = std::move(bytes);
        }
        for (Cpu cpu : cpus()) {
            set_cpu(cpu_name(cpu));
            require(decode(good, operations) == Outcome::kSame, "round trip failed");
        }
        std::vector<uint8_t> damaged = good;
        for (size_t i = 0; i + 3 <= stream.size(); i += 3) {
            const size_t at = (stream[i] | static_cast<size_t>(stream[i + 1]) << 8) % (damaged.size() + 1);
            if (at == damaged.size()) {
                damaged.push_back(stream[i + 2]);
            } else if (stream[i + 2] == 0) {
                damaged.resize(at);
            } else {
                damaged[at] ^= stream[i + 2];
            }
        }
        const bool unharmed = damaged == good;
        stream = std::move(damaged);
        for (Cpu cpu : cpus()) {
            set_cpu(cpu_name(cpu));
            const Outcome outcome = decode(stream, operations);
            require(unharmed ? outcome == Outcome::kSame : outcome == Outcome::kRefused, "damage went unnoticed");
        }
        return 0;
    }
    if (random.below(4) == 0) {
        for (Operation& operation : operations) operation.spoil(random);
    }
    for (Cpu cpu : cpus()) {
        set_cpu(cpu_name(cpu));
        decode(stream, operations);
    }
    return 0;
}

#ifndef L2C_LIBFUZZER
// fuzz_rans [runs] [seed]: random inputs of 9 to 400 bytes; without a coverage guide, but also without clang.
int main(int argc, char** argv) {
    const long runs = argc > 1 ? std::atol(argv[1]) : 200000;
    Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
    std::vector<uint8_t> input;
    for (long run = 0; run < runs; ++run) {
        input.resize(9 + random.below(random.below(2) == 0 ? 12 : 392));
        for (uint8_t& byte : input) byte = static_cast<uint8_t>(random.next() >> 56);
        if (input.size() > 9) input[9] %= 8;  // most streams should have a legal lane count
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("fuzz_rans: %ld runs, nothing found\n", runs);
    return 0;
}
#endif
