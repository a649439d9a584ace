// numpy in, numpy out for D and E in integers; the work is in exact/.

#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "bindings/common.h"
#include "exact/decoder.h"
#include "exact/encoder.h"
#include "exact/tables.h"

namespace l2c {
namespace {

constexpr py::ssize_t kMaxSize = 1 << 24;

template <class T>
py::array_t<T> shaped(const py::object& object, const char* name, std::vector<py::ssize_t> shape) {
    auto array = array_arg<T>(object, name, static_cast<int>(shape.size()));
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (array.shape(static_cast<py::ssize_t>(i)) != shape[i]) {
            throw py::value_error(std::string(name) + ": axis " + std::to_string(i) + " must have " +
                                  std::to_string(shape[i]) + " entries, not " +
                                  std::to_string(array.shape(static_cast<py::ssize_t>(i))));
        }
    }
    return array;
}

// (weight int8 [O, I, k, k], bias int32 [O], multiplier float32 [O], zero uint8 [I]), held by `arrays`.
ExactLayerView layer_arg(const py::handle& layer, std::vector<py::array>& arrays) {
    const auto parts = py::cast<py::tuple>(layer);
    if (parts.size() != 4) throw py::value_error("a layer must be (weight, bias, multiplier, zero)");
    const auto weight = array_arg<std::int8_t>(parts[0], "weight", 4);
    for (py::ssize_t axis = 0; axis < 4; ++axis) {
        if (weight.shape(axis) > kMaxSize) throw py::value_error("a weight is too large");
    }
    if (weight.shape(2) != weight.shape(3)) throw py::value_error("a weight must be [O, I, k, k]");
    const auto bias = shaped<std::int32_t>(parts[1], "bias", {weight.shape(0)});
    const auto multiplier = shaped<float>(parts[2], "multiplier", {weight.shape(0)});
    const auto zero = shaped<std::uint8_t>(parts[3], "zero", {weight.shape(1)});
    for (const py::array& array : {py::array(weight), py::array(bias), py::array(multiplier), py::array(zero)}) {
        arrays.push_back(array);
    }
    return {static_cast<int>(weight.shape(0)),
            static_cast<int>(weight.shape(1)),
            static_cast<int>(weight.shape(2)),
            weight.data(),
            bias.data(),
            multiplier.data(),
            zero.data()};
}

// Layers by name, as views of arrays that `arrays` holds.
class Layers {
 public:
    Layers(const py::dict& layers, std::vector<py::array>& arrays) : layers_(layers), arrays_(arrays) {}

    bool contains(const char* name) const { return layers_.contains(name); }

    ExactLayerView take(const std::string& name) const {
        if (!layers_.contains(name.c_str())) throw py::value_error("there is no layer " + name);
        return layer_arg(layers_[name.c_str()], arrays_);
    }

    // conv1, conv2 of each residual block.
    std::vector<ExactLayerView> blocks(int count) const {
        if (count < 0 || count > 64) throw py::value_error("blocks is out of range");
        std::vector<ExactLayerView> found;
        for (int i = 0; i < count; ++i) {
            for (const char* part : {".conv1", ".conv2"}) {
                found.push_back(take("blocks." + std::to_string(i) + part));
            }
        }
        return found;
    }

 private:
    const py::dict& layers_;
    std::vector<py::array>& arrays_;
};

std::unique_ptr<ExactDecoder> make_decoder(int s, int c, int blocks, const py::dict& layers, const py::object& high,
                                           const py::object& low) {
    if (s < 1 || s > 64) throw py::value_error("s is out of range");
    std::vector<py::array> arrays;
    const Layers named(layers, arrays);
    ExactModelView view = {};
    view.s = s;
    view.c = c;
    view.blocks = blocks;
    view.first = named.take("first");
    view.convolutions = named.blocks(blocks);
    view.head = named.take("head");
    view.has_local_gain = named.contains("local_gain");
    if (view.has_local_gain) view.local_gain = named.take("local_gain");
    view.has_fine = named.contains("up");
    if (view.has_fine) {
        view.up = named.take("up");
        view.fine1 = named.take("fine_block.conv1");
        view.fine2 = named.take("fine_block.conv2");
        view.last = named.take("last");
    }
    const py::ssize_t dims = 3 * static_cast<py::ssize_t>(s) * s;
    const auto high_array = shaped<std::int16_t>(high, "high", {dims, dims});
    const auto low_array = shaped<std::int16_t>(low, "low", {dims, dims});
    view.high = high_array.data();
    view.low = low_array.data();
    return std::make_unique<ExactDecoder>(view);
}

// A map int32 [height, width] of numbers below `values`, or None where there is one value. Keeps it in `held`.
PlaceMap map_arg(const py::object& object, const char* name, py::ssize_t height, py::ssize_t width, py::ssize_t values,
                 std::vector<py::array>& held) {
    if (values < 1) throw py::value_error(std::string(name) + ": there are no values");
    if (object.is_none()) return nullptr;
    const auto map = shaped<std::int32_t>(object, name, {height, width});
    for (py::ssize_t i = 0; i < map.size(); ++i) {
        if (map.data()[i] < 0 || map.data()[i] >= values) {
            throw py::value_error(std::string(name) + " names a value that is not there");
        }
    }
    held.push_back(map);
    return map.data();
}

// Scales float32 [values, channels] of every modulator, and where they hold.
template <typename Channels>
std::vector<const float*> scales_arg(const py::sequence& scales, const py::object& scale_map, int modulators,
                                     Channels channels, py::ssize_t height, py::ssize_t width,
                                     std::vector<py::array>& held, PlaceMap& map) {
    if (static_cast<int>(py::len(scales)) != modulators) {
        throw py::value_error("there must be scales of every modulator");
    }
    std::vector<const float*> found;
    for (int k = 0; k < modulators; ++k) {
        const auto mine = array_arg<float>(py::object(scales[static_cast<std::size_t>(k)]), "scales", 2);
        shaped<float>(mine, "scales", {mine.shape(0), channels(k)});
        map = map_arg(scale_map, "scale_map", height, width, mine.shape(0), held);
        found.push_back(mine.data());
        held.push_back(mine);
    }
    return found;
}

py::array_t<std::uint8_t> run(const ExactDecoder& decoder, const py::object& levels, const py::object& level,
                              const py::object& constants_map, const py::object& input, const py::object& factor,
                              const py::object& factor_unit, const py::object& head, const py::object& last,
                              const py::object& scale_map, const py::sequence& scales, const py::object& bias_map,
                              const py::object& biases, int threads) {
    if (threads < 1) throw py::value_error("threads must be at least 1");
    const py::ssize_t c = decoder.c(), s = decoder.s(), dims = 3 * s * s;
    const auto latents = array_arg<std::uint8_t>(levels, "levels", 3);
    if (latents.shape(0) != c) throw py::value_error("levels must be [c, h, w]");
    const py::ssize_t height = latents.shape(1), width = latents.shape(2);
    if (height > kMaxSize || width > kMaxSize) throw py::value_error("levels are too large");
    std::vector<py::array> held;
    ExactPicture picture = {};
    const auto values = shaped<std::int32_t>(level, "level", {c, 256});
    const auto inputs = array_arg<std::uint8_t>(input, "input", 3);
    const py::ssize_t told = inputs.shape(0), entries = decoder.has_local_gain() ? (1 << 9) + 1 : 2;
    shaped<std::uint8_t>(input, "input", {told, 2 * c, 256});
    picture.constants_map = map_arg(constants_map, "constants_map", height, width, told, held);
    const auto factors = shaped<std::int32_t>(factor, "factor", {told, c, entries});
    const auto units = shaped<float>(factor_unit, "factor_unit", {told, c});
    const auto head_multiplier = shaped<float>(head, "head", {told, dims});
    py::array_t<float> last_multiplier;
    if (decoder.has_fine()) last_multiplier = shaped<float>(last, "last", {told, 3 * (s / 2) * (s / 2)});
    picture.scales = scales_arg(
        scales, scale_map, decoder.num_modulators(), [&](int k) { return decoder.modulator_channels(k); }, height,
        width, held, picture.scale_map);
    if (!biases.is_none()) {
        const auto changes = array_arg<std::int32_t>(biases, "biases", 2);
        shaped<std::int32_t>(biases, "biases", {changes.shape(0), decoder.num_biases()});
        if (changes.shape(0) > kMaxSize) throw py::value_error("there are too many biases");
        picture.bias_map = map_arg(bias_map, "bias_map", height, width, changes.shape(0), held);
        picture.num_biases = static_cast<int>(changes.shape(0));
        picture.biases = changes.data();
        held.push_back(changes);
    }
    picture.height = height;
    picture.width = width;
    picture.levels = latents.data();
    picture.input = inputs.data();
    picture.level = values.data();
    picture.factor = factors.data();
    picture.factor_entries = static_cast<int>(entries);
    picture.factor_unit = units.data();
    picture.head = head_multiplier.data();
    picture.last = decoder.has_fine() ? last_multiplier.data() : nullptr;
    py::array_t<std::uint8_t> out({height * s, width * s, py::ssize_t{3}});
    picture.out = out.mutable_data();
    const Cpu cpu = current_cpu();
    {
        py::gil_scoped_release release;
        decoder.run(picture, threads, cpu);
    }
    return out;
}

// Throws py::value_error where a number is not in `least`..`most`.
template <class T>
void check_range(const py::array_t<T>& array, const char* name, T least, T most) {
    for (py::ssize_t i = 0; i < array.size(); ++i) {
        if (!(array.data()[i] >= least && array.data()[i] <= most)) {
            throw py::value_error(std::string(name) + " has a number that is out of range");
        }
    }
}

py::tuple factors(const py::object& exp2, const py::object& tail, const py::object& wanted, const py::object& change,
                  const py::object& limit, const py::object& is_mean, const py::object& mean) {
    const auto powers = shaped<std::int64_t>(exp2, "exp2", {FunctionTablesView::kEntries});
    const auto tails = shaped<std::int64_t>(tail, "tail", {FunctionTablesView::kEntries});
    const auto gains = array_arg<std::int64_t>(wanted, "wanted", 1),
               changes = array_arg<std::int64_t>(change, "change", 1);
    const py::ssize_t channels = gains.size(), entries = changes.size();
    if (channels > kMaxSize || entries < 1 || entries > 1 << 16) throw py::value_error("change is too long or empty");
    const auto means = shaped<bool>(is_mean, "is_mean", {channels});
    const auto told = shaped<double>(mean, "mean", {channels});
    constexpr std::int64_t kOne = 1, kMost = kOne << 27;
    check_range(powers, "exp2", kOne << 30, kOne << 31);
    check_range<std::int64_t>(tails, "tail", 0, kOne << 24);
    check_range(gains, "wanted", -kMost, kMost);
    check_range(changes, "change", -kMost, kMost);
    if (!limit.is_none()) check_range(told, "mean", 1e-90, 1e90);
    FactorView view = {};
    py::array_t<std::int64_t> limits;
    if (!limit.is_none()) {
        limits = shaped<std::int64_t>(limit, "limit", {channels});
        check_range(limits, "limit", -kMost, kMost);
        view.limit = limits.data();
    }
    view.channels = static_cast<int>(channels);
    view.entries = static_cast<int>(entries);
    view.wanted = gains.data();
    view.change = changes.data();
    view.is_mean = means.data();
    view.mean = told.data();
    py::array_t<std::int32_t> factor({channels, entries}), shift(channels);
    exact_factors({powers.data(), tails.data()}, view, factor.mutable_data(), shift.mutable_data());
    return py::make_tuple(std::move(factor), std::move(shift));
}

py::array_t<std::uint8_t> first_input(const py::object& level, const py::object& plain, const py::object& scale,
                                      const py::object& zero) {
    const auto levels = array_arg<std::int32_t>(level, "level", 2);
    const py::ssize_t channels = levels.shape(0);
    if (channels > kMaxSize) throw py::value_error("level is too long");
    shaped<std::int32_t>(level, "level", {channels, 256});
    const auto plains = shaped<double>(plain, "plain", {channels});
    const auto scales = shaped<float>(scale, "scale", {channels});
    const auto zeros = shaped<std::uint8_t>(zero, "zero", {channels});
    check_range(plains, "plain", -1e150, 1e150);
    check_range(scales, "scale", -std::numeric_limits<float>::max(), std::numeric_limits<float>::max());
    py::array_t<std::uint8_t> out({2 * channels, py::ssize_t{256}});
    exact_first_input(static_cast<int>(channels), levels.data(), plains.data(), scales.data(), zeros.data(),
                      out.mutable_data());
    return out;
}

std::unique_ptr<IntegerEncoder> make_encoder(int blocks, const py::dict& layers) {
    std::vector<py::array> arrays;
    const Layers named(layers, arrays);
    IntegerEncoderView view = {};
    view.first = named.take("first");
    view.convolutions = named.blocks(blocks);
    view.head = named.take("head");
    view.has_local_gain = named.contains("local_gain");
    if (view.has_local_gain) view.local_gain = named.take("local_gain");
    return std::make_unique<IntegerEncoder>(view);
}

py::tuple run_encoder(const IntegerEncoder& encoder, const py::object& input, const py::object& scale_map,
                      const py::sequence& scales, int threads) {
    if (threads < 1) throw py::value_error("threads must be at least 1");
    const auto bytes = array_arg<std::uint8_t>(input, "input", 3);
    const py::ssize_t height = bytes.shape(0), width = bytes.shape(1);
    if (bytes.shape(2) != encoder.inputs()) throw py::value_error("input must be [h, w, I]");
    if (height > kMaxSize || width > kMaxSize) throw py::value_error("the input is too large");
    std::vector<py::array> held;
    IntegerEncoderPicture picture = {};
    picture.height = height;
    picture.width = width;
    picture.input = bytes.data();
    picture.scales = scales_arg(
        scales, scale_map, encoder.num_modulators(), [&](int) { return encoder.width(); }, height, width, held,
        picture.scale_map);
    py::array_t<std::int32_t> head({height, width, static_cast<py::ssize_t>(encoder.outputs())});
    picture.head = head.mutable_data();
    py::object local = py::none();
    if (encoder.has_local_gain()) {
        py::array_t<std::int32_t> sums({height, width, static_cast<py::ssize_t>(encoder.outputs())});
        picture.local_gain = sums.mutable_data();
        local = std::move(sums);
    }
    const Cpu cpu = current_cpu();
    {
        py::gil_scoped_release release;
        encoder.run(picture, threads, cpu);
    }
    return py::make_tuple(std::move(head), std::move(local));
}

}  // namespace

void register_exact(py::module_& m) {
    py::class_<ExactDecoder>(m, "ExactDecoder", "D of the block family in integers; see csrc/exact/decoder.h.")
        .def(py::init(&make_decoder), py::arg("s"), py::arg("c"), py::arg("blocks"), py::arg("layers"), py::arg("high"),
             py::arg("low"),
             R"(layers: {name: (weight int8 [O, I, k, k], bias int32 [O], multiplier float32 [O], zero uint8 [I])};
high, low: int16 [3 s^2, 3 s^2], rows are pixels. Raises ValueError: sizes that do not fit, sums beyond int32.)")
        .def("run", &run, py::arg("levels"), py::arg("level"), py::arg("constants_map"), py::arg("input"),
             py::arg("factor"), py::arg("factor_unit"), py::arg("head"), py::arg("last"), py::arg("scale_map"),
             py::arg("scales"), py::arg("bias_map"), py::arg("biases"), py::arg("threads"),
             R"(Latents + 128, uint8 [c, h, w] -> uint8 [s h, s w, 3].

The tables are those of l2c.exact.constants.Constants, `input` to `last` with a leading axis of values. scales: float32
[values, channels] of every modulator; biases: int32 [values, B] or None; maps: int32 [h, w], which value holds at each
latent, or None: the first. Raises ValueError: shapes, types or maps that do not fit.)");
    m.def(
        "exact_factors", &factors, py::arg("exp2"), py::arg("tail"), py::arg("wanted"), py::arg("change"),
        py::arg("limit"), py::arg("is_mean"), py::arg("mean"),
        R"(Factors int32 [c, entries] below 2^23 and int32 [c], by how many bits they were moved; see csrc/exact/tables.h.

exp2, tail: int64 [1025]. wanted: int64 [c]; change: int64 [entries]; limit: int64 [c] or None; is_mean: bool [c];
mean: float64 [c], positive with a limit. Raises ValueError: shapes, types or numbers that do not fit.)");
    m.def("exact_first_input", &first_input, py::arg("level"), py::arg("plain"), py::arg("scale"), py::arg("zero"),
          R"(Both bytes of the first layer's input for each latent, uint8 [2 c, 256]; see csrc/exact/tables.h.

level: int32 [c, 256]; plain: float64 [c]; scale: float32 [c]; zero: uint8 [c]. Raises ValueError: shapes, types or
numbers that do not fit.)");
    py::class_<IntegerEncoder>(m, "IntegerEncoder", "The convolutions of E in integers; see csrc/exact/encoder.h.")
        .def(py::init(&make_encoder), py::arg("blocks"), py::arg("layers"),
             "layers: as those of ExactDecoder. Raises ValueError: sizes that do not fit, sums beyond int32.")
        .def("run", &run_encoder, py::arg("input"), py::arg("scale_map"), py::arg("scales"), py::arg("threads"),
             R"(Bytes [h, w, I] -> sums int32 [h, w, O] of the head, and of the local gains or None.

scales: float32 [values, channels] of every modulator; scale_map: int32 [h, w], which value holds at each latent, or
None: the first. Raises ValueError: shapes, types or maps that do not fit.)");
}

}  // namespace l2c
