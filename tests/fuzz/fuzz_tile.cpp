// Fuzzes whole tiles: random models, sizes and streams. No input may crash, hang or race, no two instruction sets,
// thread counts or channel orders may differ, and what was encoded must come back.
//
// From the repository root (one command, F holds the flags of all files; with -fsanitize=thread instead of
// address,undefined it looks for races):
//
//   F="-std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Icsrc -pthread"; A=build/fuzz/tile;
//   S=csrc/simd; mkdir -p $A && for f in $S/rans_scalar $S/int_conv_scalar $S/int_conv csrc/multiscale/tile_model
//   csrc/multiscale/tile_coder csrc/core/thread_pool; do g++ $F -c $f.cpp -o $A/${f##*/}.o || break; done;
//   for f in rans int_conv; do g++ $F -mavx2 -mno-fma -c $S/${f}_avx2.cpp -o $A/${f}_avx2.o &&
//   g++ $F -w -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mno-fma -c $S/${f}_avx512.cpp
//   -o $A/${f}_avx512.o || break; done;
//   g++ $F tests/fuzz/fuzz_tile.cpp $A/*.o -o build/fuzz/fuzz_tile && build/fuzz/fuzz_tile 2000
//
// Arguments: runs, seed.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "multiscale/tile_coder.h"

namespace {

using namespace l2c;

void require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "fuzz_tile: %s\n", what);
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
    int below(int n) { return static_cast<int>((next() >> 32) * static_cast<uint64_t>(n) >> 32); }

 private:
    uint64_t state_;
};

Layer random_layer(Random& random, int outputs, int inputs, int kernel, double scale) {
    Layer layer = {outputs, inputs, kernel, {}, {}, {}};
    const int extreme = random.below(8) == 0 ? 128 : 20;
    for (int i = 0; i < outputs * inputs * kernel * kernel; ++i) {
        layer.weight.push_back(static_cast<int8_t>(random.below(2 * extreme) - extreme));
    }
    for (int i = 0; i < outputs; ++i) {
        layer.bias.push_back(random.below(4000) - 3000);  // mostly below zero, so that many activations are zero
        layer.multiplier.push_back(static_cast<float>(scale * (1 + random.below(100))));
    }
    return layer;
}

struct RandomModel {
    std::vector<int> groups;
    int channels = 0, scales, mixtures, width, planes;
    std::vector<Layer> layers;
    std::vector<int8_t> compand;
    std::vector<uint16_t> exp_table, inv_scales;
    ModelView view;

    explicit RandomModel(Random& random)
        : scales(1 + random.below(3)),
          mixtures(1 + random.below(random.below(4) == 0 ? 8 : 3)),
          width(1 + random.below(random.below(8) == 0 ? 130 : 40)),
          planes(random.below(7)) {
        for (int i = 1 + random.below(3); i > 0; --i) {
            groups.push_back(1 + random.below(random.below(4) == 0 ? 30 : 9));
            channels += groups.back();
        }
        const int maps = 4 * (channels + static_cast<int>(groups.size()));
        for (size_t i = 0; i < 3 * groups.size(); ++i) {
            layers.push_back(random_layer(random, width, maps + planes + width, 1, 2e-4));
            layers.push_back(random_layer(random, width, width, 3, 2e-4));
            layers.push_back(random_layer(random, width, width, 3, 2e-4));
            layers.push_back(random_layer(random, 3 * mixtures * groups[i % groups.size()], width, 1, 1e-3));
        }
        const bool learned = planes > 0 && random.below(2) == 0;
        if (learned) {
            layers.push_back(random_layer(random, width, planes, 1, 1e-3));
            layers.push_back(random_layer(random, 3 * mixtures * channels, width, 1, 1e-3));
        }
        for (int i = 0; i < 256; ++i) {
            compand.push_back(static_cast<int8_t>(i - 128));
            exp_table.push_back(static_cast<uint16_t>(random.next() >> 48));
            inv_scales.push_back(static_cast<uint16_t>(1 + random.below(32767)));
        }
        if (random.below(8) == 0) compand[128] = 3;
        exp_table[0] |= 1;
        view = {};
        view.channel_groups = groups;
        view.num_scales = scales;
        view.num_mixtures = mixtures;
        for (size_t i = 0; i < 3 * groups.size(); ++i) {
            const Layer* step = layers.data() + 4 * i;
            view.steps.push_back({step[0].view(), step[1].view(), step[2].view(), step[3].view()});
        }
        view.learned_prior = learned;
        if (learned) {
            view.prior_w1 = layers[layers.size() - 2].view();
            view.prior_w2 = layers.back().view();
        }
        view.compand = compand.data();
        view.exp_table = exp_table.data();
        view.inv_scales = inv_scales.data();
    }
};

// Some tiles with a coder each: encoders that know `symbols`, or decoders of `streams`.
struct Batch {
    std::vector<Tile> tiles;
    std::vector<std::vector<uint8_t>> symbols, streams;
    std::vector<uint8_t> planes;

    Batch(Random& random, const RandomModel& model) {
        planes.resize(static_cast<size_t>((model.scales + 1) * model.planes) + 1);
        for (uint8_t& plane : planes) plane = static_cast<uint8_t>(random.next() >> 56);
        for (int i = 1 + random.below(4); i > 0; --i) {
            Tile tile = {};
            tile.height = 1 + random.below(random.below(3) == 0 ? 60 : 9);
            tile.width = 1 + random.below(random.below(3) == 0 ? 60 : 9);
            tile.bits = 1 + random.below(8);
            tile.used = random.below(model.channels + 1);
            tile.planes = planes.data();
            tiles.push_back(tile);
            const size_t plane = static_cast<size_t>(tile.height * tile.width);
            std::vector<uint8_t> values(plane * static_cast<size_t>(model.channels),
                                        static_cast<uint8_t>(1 << (tile.bits - 1)));
            for (size_t j = 0; j < plane * static_cast<size_t>(tile.used); ++j) {
                if (random.below(3) == 0) values[j] = static_cast<uint8_t>(random.below(1 << tile.bits));
            }
            symbols.push_back(values);
        }
    }

    void encode(const TileModel& model, int threads, Cpu cpu) {
        std::vector<RangeEncoder> encoders(tiles.size());
        std::vector<std::unique_ptr<EncodingCoder>> coders;
        for (size_t i = 0; i < tiles.size(); ++i) {
            coders.push_back(std::make_unique<EncodingCoder>(encoders[i]));
            tiles[i].coder = coders.back().get();
            tiles[i].encodes = true;
            tiles[i].symbols = symbols[i].data();
        }
        const auto known = symbols;
        code_tiles(model, tiles, threads, cpu);
        require(symbols == known, "an encoder changed its symbols");
        streams.clear();
        for (const RangeEncoder& encoder : encoders) streams.push_back(encoder.finish(0));
    }

    // The decoded symbols, or the error.
    std::string decode(const TileModel& model, int threads, Cpu cpu) {
        std::vector<std::vector<uint8_t>> found = symbols;
        try {
            std::vector<std::unique_ptr<RangeDecoder>> decoders;
            std::vector<std::unique_ptr<DecodingCoder>> coders;
            for (size_t i = 0; i < tiles.size(); ++i) {
                decoders.push_back(std::make_unique<RangeDecoder>(streams[i].data(), streams[i].size()));
                coders.push_back(std::make_unique<DecodingCoder>(*decoders[i]));
                tiles[i].coder = coders.back().get();
                tiles[i].encodes = false;
                tiles[i].symbols = found[i].data();
                std::fill(found[i].begin(), found[i].end(), uint8_t{99});
            }
            code_tiles(model, tiles, threads, cpu);
            for (const auto& decoder : decoders) decoder->finish();
        } catch (const BitstreamError& error) {
            return error.what();
        }
        std::string result;
        for (const auto& part : found) result.append(part.begin(), part.end());
        return result;
    }
};

void fuzz(uint64_t seed) {
    Random random(seed);
    const RandomModel source(random);
    Batch batch(random, source);
    std::vector<Cpu> cpus;
    for (Cpu cpu : kAllCpus) {
        if (cpu_has(cpu)) cpus.push_back(cpu);
    }
    const TileModel plain(source.view);
    std::string expected, damaged;
    std::vector<std::vector<uint8_t>> good, bad;
    for (Cpu cpu : cpus) {
        set_cpu(cpu_name(cpu));
        const TileModel model(
            source.view, random.below(2) == 0 ? ChannelOrders{} : choose_orders(plain, {batch.planes.data()}, cpu));
        const int threads = 1 + random.below(5);
        batch.encode(model, threads, cpu);
        if (cpu == Cpu::kScalar) {
            good = batch.streams;
            for (const auto& part : batch.symbols) expected.append(part.begin(), part.end());
            bad = good;
            for (auto& stream : bad) {
                for (int i = random.below(4); i > 0; --i) {
                    const size_t at = static_cast<size_t>(random.below(static_cast<int>(stream.size())));
                    if (random.below(4) == 0) stream.resize(at);
                    if (at < stream.size()) stream[at] ^= static_cast<uint8_t>(1 << random.below(8));
                    if (stream.empty()) break;
                }
            }
        }
        require(batch.streams == good, "streams differ");
        require(batch.decode(model, threads, cpu) == expected, "a round trip failed");
        batch.streams = bad;
        const std::string outcome = batch.decode(model, threads, cpu);
        if (cpu == Cpu::kScalar) damaged = outcome;
        require(outcome == damaged, "paths differ on damaged streams");
        require(bad == good || outcome != expected, "damage went unnoticed");
    }
}

}  // namespace

int main(int argc, char** argv) {
    const long runs = argc > 1 ? std::atol(argv[1]) : 2000;
    const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    for (long run = 0; run < runs; ++run) {
        fuzz((first << 32) + static_cast<uint64_t>(run));
        if (run % 500 == 499) std::fprintf(stderr, "fuzz_tile: %ld runs\n", run + 1);
    }
    std::printf("fuzz_tile: %ld runs, nothing found\n", runs);
    return 0;
}
