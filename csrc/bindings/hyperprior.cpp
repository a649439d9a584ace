// numpy in, numpy out for whole tiles of a hyperprior model; the work is in hyperprior/coder.cpp.

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/common.h"
#include "bindings/layers.h"
#include "bindings/symbol_coders.h"
#include "hyperprior/coder.h"

namespace l2c::hyperprior {
namespace {

constexpr int kEdges = kTableSymbols + 1;

Kind kind_arg(const py::handle& name) {
    const auto text = py::cast<std::string>(name);
    if (text == "factorized") return Kind::kFactorized;
    if (text == "scale") return Kind::kScale;
    if (text == "mean") return Kind::kMean;
    if (text == "context") return Kind::kContext;
    throw py::value_error("kind must be factorized, scale, mean or context, not '" + text + "'");
}

// A model, and the arrays that its views point at.
class HyperpriorCoder {
 public:
    explicit HyperpriorCoder(const py::sequence& levels) {
        std::vector<LevelView> views;
        for (const py::handle& item : levels) views.push_back(level_arg(py::cast<py::tuple>(item)));
        model_ = std::make_unique<Model>(std::move(views));
    }

    py::list code(const py::sequence& jobs, int threads) const {
        if (threads < 1) throw py::value_error("threads must be at least 1");
        SymbolCoders coders;
        std::vector<py::array> held;
        std::vector<Tile> tiles;
        py::list results;
        for (const py::handle& item : jobs) {
            const auto job = py::cast<py::tuple>(item);
            if (job.size() != 7) {
                throw py::value_error("a job must be (height, width, level, used, coder, latents, side)");
            }
            Tile tile = {};
            tile.height = py::cast<std::int64_t>(job[0]);
            tile.width = py::cast<std::int64_t>(job[1]);
            tile.level = py::cast<int>(job[2]);
            tile.used = py::cast<int>(job[3]);
            if (tile.height < 1 || tile.width < 1) throw py::value_error("a tile must have at least one latent");
            if (tile.level < 0 || tile.level >= model_->num_levels()) throw py::value_error("there is no such level");
            const py::object latents = job[5], side = job[6];
            tile.encodes = !latents.is_none();
            tile.coder = coders.add(job[4], tile.encodes);
            py::array_t<std::int16_t> result({py::ssize_t{model_->channels()}, static_cast<py::ssize_t>(tile.height),
                                              static_cast<py::ssize_t>(tile.width)});
            tile.latents = result.mutable_data();
            if (tile.encodes) {
                const auto known = array_arg<std::int16_t>(latents, "latents", 3);
                if (known.shape(0) != model_->channels() || known.shape(1) != tile.height ||
                    known.shape(2) != tile.width) {
                    throw py::value_error("latents must be [M, height, width]");
                }
                std::copy_n(known.data(), known.size(), tile.latents);
                tile.side = side_arg(side, tile, held);
            }
            tiles.push_back(tile);
            results.append(std::move(result));
        }
        const Cpu cpu = current_cpu();
        {
            const py::gil_scoped_release release;
            code_tiles(*model_, tiles, threads, cpu);
        }
        return results;
    }

 private:
    template <class T>
    const T* held_arg(const py::object& object, const char* name, py::ssize_t rows, py::ssize_t columns) {
        const auto array = array_arg<T>(object, name, columns == 0 ? 1 : 2);
        if (array.shape(0) != rows || (columns != 0 && array.shape(1) != columns)) {
            throw py::value_error(std::string(name) + " is not of its shape");
        }
        layers_.hold(array);
        return array.data();
    }

    LevelView level_arg(const py::tuple& level) {
        if (level.size() != 9) {
            throw py::value_error(
                "a level must be (kind, z_cdf, hyper, context, shift, parameters, offset, y_cdf, fraction)");
        }
        LevelView view = {};
        view.kind = kind_arg(level[0]);
        view.fraction = py::cast<int>(level[8]);
        const auto shift = array_arg<std::uint8_t>(level[4], "shift", 1);
        if (shift.size() < 1 || shift.size() > 1 << 20) throw py::value_error("shift has no channel, or too many");
        const py::ssize_t channels = shift.size();
        view.channels = static_cast<int>(channels);
        view.shift = held_arg<std::uint8_t>(level[4], "shift", channels, 0);
        if (view.kind == Kind::kFactorized) {
            view.offset = held_arg<std::int16_t>(level[6], "offset", channels, 0);
            view.cdf = held_arg<std::uint32_t>(level[7], "y_cdf", channels, kEdges);
            return view;
        }
        const py::ssize_t side_channels = array_arg<std::uint32_t>(level[1], "z_cdf", 2).shape(0);
        if (side_channels > 1 << 20) throw py::value_error("z_cdf has too many channels");
        view.side_channels = static_cast<int>(side_channels);
        view.side_cdf = held_arg<std::uint32_t>(level[1], "z_cdf", side_channels, kEdges);
        for (const py::handle& item : py::cast<py::sequence>(level[2])) {
            const auto part = py::cast<py::tuple>(item);
            if (part.size() != 2) throw py::value_error("a layer of h_s must be (layer, shuffle)");
            view.hyper.push_back({layers_.add(part[0]), py::cast<bool>(part[1])});
        }
        if (view.kind == Kind::kContext) {
            view.context = layers_.add(level[3]);
            for (const py::handle& layer : py::cast<py::sequence>(level[5])) {
                view.parameters.push_back(layers_.add(layer));
            }
        }
        return view;
    }

    const std::uint8_t* side_arg(const py::object& object, const Tile& tile, std::vector<py::array>& held) const {
        const LevelView& view = model_->view(tile.level);
        if (view.kind == Kind::kFactorized) return nullptr;
        const auto side = array_arg<std::uint8_t>(object, "side", 3);
        if (side.shape(0) != view.side_channels || side.shape(1) != (tile.height + kHyperStride - 1) / kHyperStride ||
            side.shape(2) != (tile.width + kHyperStride - 1) / kHyperStride) {
            throw py::value_error("side must be [N, ceil(height / 4), ceil(width / 4)]");
        }
        held.push_back(side);
        return side.data();
    }

    Layers layers_;
    std::unique_ptr<Model> model_;
};

}  // namespace
}  // namespace l2c::hyperprior

namespace l2c {

void register_hyperprior(py::module_& module) {
    using hyperprior::HyperpriorCoder;
    py::class_<HyperpriorCoder>(module, "HyperpriorCoder", R"(A hyperprior model with the range coder, over whole tiles.

Args:
    levels: one for each quality, (kind, z_cdf, hyper, context, shift, parameters, offset, y_cdf, fraction) as the
        attributes of `IntegerLevel` (l2c/entropy/hyperprior/integer_weights.py); a layer is (weight int8 [O, I, k, k],
        bias int32 [O], multiplier float32 [O]), `hyper` has pairs (layer, shuffle), and what a kind has not is not looked
        at. The arrays are kept, and must not change; a level is packed when a tile first needs it.
Raises:
    ValueError: types or shapes that do not fit.
Exactness: the same integers for every CPU path and thread count; they are those of the reference backend.)")
        .def(py::init<const py::sequence&>(), py::arg("levels"))
        .def("code", &HyperpriorCoder::code, R"(Codes tiles; releases the GIL.

Args:
    jobs: tuples (height, width, level, used, coder, latents, side): size of the latents, which level, channels coded,
        a RangeEncoder, a RangeDecoder or an object that is asked by mixture(weights, means, inv_scales, symbols) and
        table(cdf, sizes, precision, indexes, symbols); and, known when encoding, else None, latents int16
        [M, height, width] (within +-4095, or +-1535 * 16) and z + 128, uint8 [N, ceil(height / 4), ceil(width / 4)].
    threads: at most this many: several tiles at a time, or several threads for one tile.
Returns:
    latents int16 [M, height, width] of each tile, as they are decoded; 0 in channels that are not coded.
Raises:
    ValueError: an argument out of range, or a level whose layers do not fit each other or whose sums can wrap.
    BitstreamError: a stream is not valid. BackendError: L2C_CPU names a path that this machine lacks. Of several errors
    that of the first tile.)",
             py::arg("jobs"), py::arg("threads") = 1);
}

}  // namespace l2c
