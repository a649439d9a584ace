// numpy in, numpy out for whole tiles; the work is in multiscale/tile_coder.cpp.

#include "multiscale/tile_coder.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/common.h"
#include "bindings/layers.h"
#include "bindings/symbol_coders.h"

namespace l2c {
namespace {

template <class T>
py::array_t<T> table_arg(const py::object& object, const char* name) {
    auto table = array_arg<T>(object, name, 1);
    if (table.size() != 256) throw py::value_error(std::string(name) + " must have 256 entries");
    return table;
}

py::array_t<std::uint8_t> planes_arg(const TileModel& model, const py::object& object) {
    auto planes = array_arg<std::uint8_t>(object, "planes", 2);
    if (planes.shape(0) != model.num_scales() + 1 || planes.shape(1) != model.num_planes()) {
        throw py::value_error("planes must be [" + std::to_string(model.num_scales() + 1) + ", " +
                              std::to_string(model.num_planes()) + "]");
    }
    return planes;
}

std::unique_ptr<TileModel> make_model(std::vector<int> channel_groups, int num_scales, int num_mixtures,
                                      const py::sequence& steps, const py::object& prior, const py::object& compand,
                                      const py::object& exp_table, const py::object& inv_scales,
                                      const py::sequence& samples) {
    Layers layers;
    ModelView view = {};
    view.channel_groups = std::move(channel_groups);
    view.num_scales = num_scales;
    view.num_mixtures = num_mixtures;
    for (const py::handle& step : steps) {
        const auto parts = py::cast<py::tuple>(step);
        if (parts.size() != 4) throw py::value_error("a step must have four layers");
        view.steps.push_back({layers.add(parts[0]), layers.add(parts[1]), layers.add(parts[2]), layers.add(parts[3])});
    }
    view.learned_prior = !prior.is_none();
    if (view.learned_prior) {
        const auto parts = py::cast<py::tuple>(prior);
        if (parts.size() != 2) throw py::value_error("the prior must have two layers");
        view.prior_w1 = layers.add(parts[0]);
        view.prior_w2 = layers.add(parts[1]);
    }
    const auto compand_table = table_arg<std::int8_t>(compand, "compand");
    const auto exp = table_arg<std::uint16_t>(exp_table, "exp_table");
    const auto inv = table_arg<std::uint16_t>(inv_scales, "inv_scales");
    view.compand = compand_table.data();
    view.exp_table = exp.data();
    view.inv_scales = inv.data();
    auto model = std::make_unique<TileModel>(view);
    std::vector<py::array_t<std::uint8_t>> planes;
    std::vector<const std::uint8_t*> pointers;
    for (const py::handle& sample : samples) {
        planes.push_back(planes_arg(*model, py::reinterpret_borrow<py::object>(sample)));
        pointers.push_back(planes.back().data());
    }
    const Cpu cpu = current_cpu();
    if (pointers.empty() || cpu == Cpu::kScalar) return model;  // the scalar path looks at every channel alone
    const py::gil_scoped_release release;
    return std::make_unique<TileModel>(view, choose_orders(*model, pointers, cpu));
}

py::list code(const TileModel& model, const py::sequence& jobs, int threads) {
    if (threads < 1) throw py::value_error("threads must be at least 1");
    std::vector<py::array_t<std::uint8_t>> planes;
    SymbolCoders coders;
    std::vector<Tile> tiles;
    py::list results;
    for (const py::handle& item : jobs) {
        const auto job = py::cast<py::tuple>(item);
        if (job.size() != 7) throw py::value_error("a job must be (height, width, bits, used, planes, coder, symbols)");
        Tile tile = {};
        tile.height = py::cast<std::int64_t>(job[0]);
        tile.width = py::cast<std::int64_t>(job[1]);
        tile.bits = py::cast<int>(job[2]);
        tile.used = py::cast<int>(job[3]);
        if (tile.height < 1 || tile.width < 1) throw py::value_error("a tile must have at least one latent");
        planes.push_back(planes_arg(model, job[4]));
        tile.planes = planes.back().data();
        const py::object symbols = job[6];
        tile.encodes = !symbols.is_none();
        tile.coder = coders.add(job[5], tile.encodes);
        py::array_t<std::uint8_t> result({py::ssize_t{model.channels()}, static_cast<py::ssize_t>(tile.height),
                                          static_cast<py::ssize_t>(tile.width)});
        tile.symbols = result.mutable_data();
        if (tile.encodes) {
            const auto known = array_arg<std::uint8_t>(symbols, "symbols", 3);
            if (known.shape(0) != model.channels() || known.shape(1) != tile.height || known.shape(2) != tile.width) {
                throw py::value_error("symbols must be [c, height, width]");
            }
            std::copy_n(known.data(), known.size(), tile.symbols);
        }
        tiles.push_back(tile);
        results.append(std::move(result));
    }
    const Cpu cpu = current_cpu();
    {
        const py::gil_scoped_release release;
        code_tiles(model, tiles, threads, cpu);
    }
    return results;
}

}  // namespace

void register_tile_coder(py::module_& module) {
    py::class_<TileModel>(module, "TileCoder", R"(P of one model with the range coder, over whole tiles.

Args:
    channel_groups: sizes of the groups; they sum to c.
    num_scales: M. num_mixtures: K.
    steps: for each group at each of three positions, in coding order, its layers (w1, w2, w3, w4); a layer is
        (weight int8 [O, I, k, k], bias int32 [O], multiplier float32 [O]).
    prior: (w1, w2) of the last scale, or None: uniform.
    compand: int8 [256]. exp_table, inv_scales: uint16 [256].
    samples: constant planes (as in `code`) under which tiles are sampled, to learn which hidden channels are seldom
        active. Only the speed depends on it.
Raises:
    ValueError: shapes that do not fit each other, sums that can wrap, sizes or tables out of range.
Exactness: the same integers for every CPU path and thread count; they are those of l2c.ops.reference.)")
        .def(py::init(&make_model), py::arg("channel_groups"), py::arg("num_scales"), py::arg("num_mixtures"),
             py::arg("steps"), py::arg("prior"), py::arg("compand"), py::arg("exp_table"), py::arg("inv_scales"),
             py::arg("samples") = py::tuple())
        .def("code", &code, R"(Codes tiles; releases the GIL.

Args:
    jobs: tuples (height, width, bits, used, planes, coder, symbols): size of the latents, b, channels coded, constant
        planes uint8 [M + 1, planes] (those of the prior last), a RangeEncoder, a RangeDecoder or an object
        that is asked by mixture(weights, means, inv_scales, symbols) and uniform(n, symbols), and uint8 [c, height, width], known when encoding, else None.
    threads: at most this many: several tiles at a time, or several threads for one tile.
Returns:
    symbols uint8 [c, height, width] of each tile; 2^(b-1) in channels that are not coded.
Raises:
    ValueError: an argument out of range. BitstreamError: a stream is not valid. BackendError: L2C_CPU names a path
    that this machine lacks. Of several errors that of the first tile.)",
             py::arg("jobs"), py::arg("threads") = 1);
}

}  // namespace l2c
