// An integer D on pictures that Python wrote down (tests/test_cross.py, where the CRC in a model file vouches for their
// pixels): the same pixels must come out by every path that this machine has, on one thread and on two.
//
//   exact FILE
//
// The file, little-endian, int32 unless said otherwise:
//
//   s, c, blocks, 1 with local gains, 1 with a fine stage;  all layers in the order of ExactModelView, each
//   O, I, kernel, weight int8 [O][I][k][k], bias [O], multiplier float32 [O], zero uint8 [I];
//   high, low int16 [3 s^2][3 s^2];
//   number of pictures, each: height, width, numbers of constants, of entries of a table of factors, of scales, of
//   biases; levels uint8 [c][h][w], level [c][256], input uint8 [constants][2 c][256], factor [constants][c][entries],
//   factor_unit float32 [constants][c], head float32 [constants][3 s^2], with a fine stage last float32 [constants]
//   [3 (s / 2)^2], scales of each modulator float32 [scales][channels], biases [biases][B]; maps [h][w] of constants,
//   scales and biases, each only where there are several; pixels uint8 [s h][s w][3]

#include <cstdio>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "exact/decoder.h"
#include "simd/dense_conv.h"
#include "tools.h"

namespace {

using namespace l2c;

// Arrays that views point at.
class Store {
 public:
    explicit Store(Reader& reader) : reader_(reader) {}

    template <class T>
    const T* take(size_t count) {
        auto values = std::make_shared<std::vector<T>>(reader_.array<T>(count));
        held_.push_back(values);
        return values->data();
    }
    int number() { return reader_.number(); }

 private:
    Reader& reader_;
    std::vector<std::shared_ptr<void>> held_;
};

ExactLayerView take_layer(Store& store) {
    ExactLayerView view = {};
    view.outputs = store.number();
    view.inputs = store.number();
    view.kernel = store.number();
    const auto outputs = static_cast<size_t>(view.outputs), inputs = static_cast<size_t>(view.inputs);
    view.weight = store.take<std::int8_t>(outputs * inputs * static_cast<size_t>(view.kernel * view.kernel));
    view.bias = store.take<std::int32_t>(outputs);
    view.multiplier = store.take<float>(outputs);
    view.zero = store.take<std::uint8_t>(inputs);
    return view;
}

std::unique_ptr<ExactDecoder> take_decoder(Store& store) {
    ExactModelView view = {};
    view.s = store.number();
    view.c = store.number();
    view.blocks = store.number();
    view.has_local_gain = store.number() != 0;
    view.has_fine = store.number() != 0;
    view.first = take_layer(store);
    for (int i = 0; i < 2 * view.blocks; ++i) view.convolutions.push_back(take_layer(store));
    view.head = take_layer(store);
    if (view.has_local_gain) view.local_gain = take_layer(store);
    if (view.has_fine) {
        for (ExactLayerView* layer : {&view.up, &view.fine1, &view.fine2, &view.last}) *layer = take_layer(store);
    }
    const auto dims = static_cast<size_t>(3 * view.s * view.s);
    view.high = store.take<std::int16_t>(dims * dims);
    view.low = store.take<std::int16_t>(dims * dims);
    return std::make_unique<ExactDecoder>(view);
}

struct Case {
    ExactPicture picture = {};
    std::vector<std::uint8_t> expected;

    Case(Reader& reader, Store& store, const ExactDecoder& decoder) {
        picture.height = store.number();
        picture.width = store.number();
        const size_t constants = reader.size(), entries = reader.size(), scales = reader.size();
        const size_t biases = reader.size();
        const auto c = static_cast<size_t>(decoder.c()), s = static_cast<size_t>(decoder.s());
        const auto latents = static_cast<size_t>(picture.height * picture.width);
        picture.levels = store.take<std::uint8_t>(c * latents);
        picture.level = store.take<std::int32_t>(c * 256);
        picture.input = store.take<std::uint8_t>(constants * 2 * c * 256);
        picture.factor = store.take<std::int32_t>(constants * c * entries);
        picture.factor_entries = static_cast<int>(entries);
        picture.factor_unit = store.take<float>(constants * c);
        picture.head = store.take<float>(constants * 3 * s * s);
        if (decoder.has_fine()) picture.last = store.take<float>(constants * 3 * (s / 2) * (s / 2));
        for (int k = 0; k < decoder.num_modulators(); ++k) {
            picture.scales.push_back(store.take<float>(scales * static_cast<size_t>(decoder.modulator_channels(k))));
        }
        picture.num_biases = static_cast<int>(biases);
        if (biases > 0) picture.biases = store.take<std::int32_t>(biases * static_cast<size_t>(decoder.num_biases()));
        if (constants > 1) picture.constants_map = store.take<std::int32_t>(latents);
        if (scales > 1) picture.scale_map = store.take<std::int32_t>(latents);
        if (biases > 1) picture.bias_map = store.take<std::int32_t>(latents);
        expected = reader.array<std::uint8_t>(latents * s * s * 3);
    }

    void check(const ExactDecoder& decoder, int threads, Cpu cpu) {
        std::vector<std::uint8_t> pixels(expected.size());
        picture.out = pixels.data();
        decoder.run(picture, threads, cpu);
        if (pixels != expected) {
            fail(std::string("the pixels differ by ") + dense_backend(cpu).name + " on " + std::to_string(threads) +
                 " threads");
        }
    }
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) fail("name one file");
    Reader reader(argv[1]);
    Store store(reader);
    const auto decoder = take_decoder(store);
    std::deque<Case> cases;
    for (size_t i = reader.size(); i > 0; --i) cases.emplace_back(reader, store, *decoder);
    if (!reader.done()) fail("the file has bytes too many");
    std::string paths;
    for (Cpu cpu : kAllCpus) {
        if (!cpu_has(cpu)) continue;
        for (Case& one : cases) {
            for (int threads : {1, 2}) one.check(*decoder, threads, cpu);
        }
        paths += std::string(" ") + dense_backend(cpu).name;
    }
    std::printf("exact: %zu pictures by%s, equal\n", cases.size(), paths.c_str());
    return 0;
}
