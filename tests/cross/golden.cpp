// Decodes and encodes tiles that Python wrote down (tests/test_cross.py, where a frozen file's CRC vouches for them):
// the symbols and the payload must come out again, by every path that this machine has.
//
//   golden FILE
//
// The file, little-endian, int32 unless said otherwise:
//
//   G, G group sizes, M, K, 1 with a learned prior;  all layers of all steps, then those of the prior, each
//   O, I, kernel, weight int8 [O][I][k][k], bias [O], multiplier float32 [O];
//   compand int8 [256], exp_table uint16 [256], inv_scales uint16 [256];
//   number of tiles, each: height, width, bits, used, size of the payload, planes uint8 [M + 1][planes], payload,
//   symbols uint8 [c][height][width]

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "multiscale/tile_coder.h"
#include "tools.h"

namespace {

using namespace l2c;

// The model, with the arrays that its view points at.
struct Model {
    std::deque<Layer> layers;
    std::vector<std::int8_t> compand;
    std::vector<std::uint16_t> exp_table, inv_scales;
    ModelView view = {};

    explicit Model(Reader& reader) {
        const size_t num_groups = reader.size();
        view.channel_groups = reader.array<int>(num_groups);
        view.num_scales = reader.number();
        view.num_mixtures = reader.number();
        view.learned_prior = reader.number() != 0;
        for (size_t i = 0; i < 3 * num_groups; ++i) {
            const LayerView w1 = layer(reader), w2 = layer(reader), w3 = layer(reader), w4 = layer(reader);
            view.steps.push_back({w1, w2, w3, w4});
        }
        if (view.learned_prior) {
            view.prior_w1 = layer(reader);
            view.prior_w2 = layer(reader);
        }
        compand = reader.array<std::int8_t>(256);
        exp_table = reader.array<std::uint16_t>(256);
        inv_scales = reader.array<std::uint16_t>(256);
        view.compand = compand.data();
        view.exp_table = exp_table.data();
        view.inv_scales = inv_scales.data();
    }

    LayerView layer(Reader& reader) {
        const int outputs = reader.number(), inputs = reader.number(), kernel = reader.number();
        const size_t rows = static_cast<size_t>(outputs);
        auto weight = reader.array<std::int8_t>(rows * static_cast<size_t>(inputs * kernel * kernel));
        auto bias = reader.array<std::int32_t>(rows);
        layers.push_back({outputs, inputs, kernel, std::move(weight), std::move(bias), reader.array<float>(rows)});
        return layers.back().view();
    }
};

struct Case {
    Tile tile = {};
    std::vector<std::uint8_t> planes, payload, symbols;

    Case(Reader& reader, const TileModel& model) {
        tile.height = reader.number();
        tile.width = reader.number();
        tile.bits = reader.number();
        tile.used = reader.number();
        const size_t size = reader.size();
        planes = reader.array<std::uint8_t>(static_cast<size_t>((model.num_scales() + 1) * model.num_planes()));
        payload = reader.array<std::uint8_t>(size);
        symbols = reader.array<std::uint8_t>(static_cast<size_t>(model.channels() * tile.height * tile.width));
        tile.planes = planes.data();
    }

    void check(const TileModel& model, Cpu cpu) {
        RangeDecoder decoder(payload.data(), payload.size());
        DecodingCoder decoding(decoder);
        std::vector<std::uint8_t> found(symbols.size());
        tile.coder = &decoding;
        tile.encodes = false;
        tile.symbols = found.data();
        code_tiles(model, {tile}, 1, cpu);
        decoder.finish();
        if (found != symbols) fail(std::string("the symbols differ by ") + cpu_name(cpu));

        RangeEncoder encoder;
        EncodingCoder encoding(encoder);
        tile.coder = &encoding;
        tile.encodes = true;
        code_tiles(model, {tile}, 1, cpu);
        if (encoder.finish(0) != payload) fail(std::string("the payload differs by ") + cpu_name(cpu));
    }
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) fail("name one file");
    Reader reader(argv[1]);
    const Model source(reader);
    const TileModel model(source.view);
    std::vector<Case> cases;
    for (size_t i = reader.size(); i > 0; --i) cases.emplace_back(reader, model);
    if (!reader.done()) fail("the file has bytes too many");
    std::string paths;
    for (Cpu cpu : kAllCpus) {
        if (!cpu_has(cpu)) continue;
        set_cpu(cpu_name(cpu));
        for (Case& one : cases) {
            one.tile.planes = one.planes.data();
            one.check(model, cpu);
        }
        paths += std::string(" ") + cpu_name(cpu) + " (" + int_conv_backend(cpu) + ")";
    }
    std::printf("golden: %zu tiles by%s, equal\n", cases.size(), paths.c_str());
    return 0;
}
