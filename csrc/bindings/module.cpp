// Python module l2c._C: arrays in, arrays out, GIL released, C++ errors to l2c.errors. No arithmetic here.
//
// Arrays must be numpy arrays of exactly the dtype named, C-contiguous; they are used in place, never copied or
// converted (a torch CPU tensor passes its .numpy()). Anything else is a ValueError.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "bindings/common.h"
#include "core/cpu.h"
#include "core/rans.h"

namespace py = pybind11;

namespace l2c {
void register_exact(py::module_& m);         // exact.cpp
void register_hyperprior(py::module_& m);    // hyperprior.cpp
void register_int_conv(py::module_& m);      // int_conv.cpp
void register_mixture_bits(py::module_& m);  // mixture_bits.cpp
void register_tile_coder(py::module_& m);    // tile_coder.cpp
}  // namespace l2c

namespace {

using namespace l2c;

// Arrays of a mixture, held while the GIL is released.
struct MixtureArrays {
    py::array_t<uint16_t> weights;
    py::array_t<int16_t> means;
    py::array_t<uint16_t> inv_scales;
    MixtureView view;
    size_t size;

    MixtureArrays(const py::object& w, const py::object& m, const py::object& v, int bits)
        : weights(array_arg<uint16_t>(w, "weights", 2)),
          means(array_arg<int16_t>(m, "means", 2)),
          inv_scales(array_arg<uint16_t>(v, "inv_scales", 2)),
          view{weights.data(),
               means.data(),
               inv_scales.data(),
               static_cast<size_t>(weights.shape(1)),
               static_cast<int>(std::min<py::ssize_t>(weights.shape(0), kMaxMixtures + 1)),
               bits},
          size(view.stride) {
        for (int axis = 0; axis < 2; ++axis) {
            if (means.shape(axis) != weights.shape(axis) || inv_scales.shape(axis) != weights.shape(axis)) {
                throw std::invalid_argument("weights, means and inv_scales must have one shape [K, n]");
            }
        }
        check_view(view);
    }
};

struct TableArrays {
    py::array_t<uint32_t> cdf;
    py::array_t<int32_t> sizes, indexes;
    TableView view;
    size_t size;

    TableArrays(const py::object& c, const py::object& s, const py::object& i, int precision)
        : cdf(array_arg<uint32_t>(c, "cdf", 2)),
          sizes(array_arg<int32_t>(s, "cdf_sizes", 1)),
          indexes(array_arg<int32_t>(i, "indexes", 1)),
          view{cdf.data(), sizes.data(), static_cast<size_t>(cdf.shape(0)), static_cast<size_t>(cdf.shape(1)),
               precision},
          size(static_cast<size_t>(indexes.size())) {
        if (sizes.shape(0) != cdf.shape(0))
            throw std::invalid_argument("cdf_sizes must have one entry for each row of cdf");
    }
};

void check_size(size_t got, size_t wanted, const char* name) {
    if (got != wanted) {
        throw std::invalid_argument(std::string(name) + " must have " + std::to_string(wanted) + " entries, not " +
                                    std::to_string(got));
    }
}

template <class T>
py::array_t<T> new_array(py::ssize_t n) {
    if (n < 0) throw std::invalid_argument("n must not be negative");
    return py::array_t<T>(n);
}

// Runs `work` on the coder alone and without the GIL.
template <class Coder, class Work>
void run_alone(Coder& coder, Work work) {
    const Exclusive exclusive(coder.busy);
    const py::gil_scoped_release release;
    work(coder.core);
}

void set_python_error(const char* name, const char* message) {
    py::object type = py::module_::import("l2c.errors").attr(name);  // on first use only
    PyErr_SetString(type.ptr(), message);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "L2C's C++ core: range coder, integer models. Formats: csrc/core/rans.h, csrc/core/mixture_cdf.h.";

    py::register_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const BitstreamError& e) {
            set_python_error("BitstreamError", e.what());
        } catch (const BackendError& e) {
            set_python_error("BackendError", e.what());
        }
    });

    m.def(
        "cpu", [] { return cpu_name(current_cpu()); },
        "The path in use: 'avx512', 'avx2', 'neon' or 'scalar'. Reads L2C_CPU. Raises BackendError: L2C_CPU asks for "
        "what this machine lacks.");
    m.def("set_cpu", &set_cpu, py::arg("name"),
          "Chooses the path by name, before L2C_CPU; '' goes back to L2C_CPU and detection. Raises BackendError.");
    m.def(
        "cpu_has",
        [](const std::string& name) {
            for (Cpu cpu : kAllCpus) {
                if (name == cpu_name(cpu)) return cpu_has(cpu);
            }
            return false;
        },
        py::arg("name"), "Whether this machine can run a path.");

    py::class_<PyEncoder>(m, "RangeEncoder", "Entropy encoder; the stream format is at the head of csrc/core/rans.h.")
        .def(py::init<>())
        .def(
            "push_mixture",
            [](PyEncoder& self, const py::object& symbols, const py::object& weights, const py::object& means,
               const py::object& inv_scales, int bits) {
                const auto s = array_arg<uint8_t>(symbols, "symbols", 1);
                const MixtureArrays p(weights, means, inv_scales, bits);
                check_size(static_cast<size_t>(s.size()), p.size, "symbols");
                const uint8_t* data = s.data();
                run_alone(self, [&](RangeEncoder& core) { core.push_mixture(p.view, data, p.size); });
            },
            py::arg("symbols"), py::arg("weights"), py::arg("means"), py::arg("inv_scales"), py::arg("bits"),
            "Symbols uint8 [n] below 2^bits; weights uint16 [K, n], sum over K 65520; means int16 [K, n], Q6 half "
            "steps; "
            "inv_scales uint16 [K, n], 1..32767, Q10 per half step. Raises ValueError; nothing is pushed then.")
        .def(
            "push_table",
            [](PyEncoder& self, const py::object& symbols, const py::object& cdf, const py::object& cdf_sizes,
               const py::object& indexes, int precision) {
                const auto s = array_arg<int32_t>(symbols, "symbols", 1);
                const TableArrays t(cdf, cdf_sizes, indexes, precision);
                check_size(static_cast<size_t>(s.size()), t.size, "symbols");
                const int32_t *data = s.data(), *index = t.indexes.data();
                run_alone(self, [&](RangeEncoder& core) { core.push_table(t.view, data, index, t.size); });
            },
            py::arg("symbols"), py::arg("cdf"), py::arg("cdf_sizes"), py::arg("indexes"), py::arg("precision"),
            "Symbols int32 [n]; cdf uint32 [T, L+1], row t rises from 0 to 2^precision in cdf_sizes[t] entries (int32 "
            "[T]); "
            "indexes int32 [n] are rows; precision 1..20. Raises ValueError.")
        .def(
            "push_uniform",
            [](PyEncoder& self, const py::object& symbols, uint32_t size) {
                const auto s = array_arg<uint32_t>(symbols, "symbols", 1);
                const uint32_t* data = s.data();
                const size_t n = static_cast<size_t>(s.size());
                run_alone(self, [&](RangeEncoder& core) { core.push_uniform(data, n, size); });
            },
            py::arg("symbols"), py::arg("size"), "Symbols uint32 [n] below size, size 1..2^20. Raises ValueError.")
        .def(
            "push_raw",
            [](PyEncoder& self, const py::object& values, int num_bits) {
                const auto v = array_arg<uint32_t>(values, "values", 1);
                const uint32_t* data = v.data();
                const size_t n = static_cast<size_t>(v.size());
                run_alone(self, [&](RangeEncoder& core) { core.push_raw(data, n, num_bits); });
            },
            py::arg("values"), py::arg("num_bits"),
            "Values uint32 [n] below 2^num_bits, num_bits 0..32. Raises ValueError.")
        .def_property_readonly(
            "ideal_bits",
            [](PyEncoder& self) {
                double bits = 0;
                run_alone(self, [&](RangeEncoder& core) { bits = core.ideal_bits(); });
                return bits;
            },
            "-sum log2 p of everything pushed so far, from the integer probabilities. Computed at each call.")
        .def(
            "finish",
            [](PyEncoder& self, int lanes) {
                std::vector<uint8_t> stream;
                run_alone(self, [&](RangeEncoder& core) { stream = core.finish(lanes); });
                return py::bytes(reinterpret_cast<const char*>(stream.data()), stream.size());
            },
            py::arg("lanes") = 0,
            "The stream. lanes: a power of two <= 64, or 0: the largest one whose flush (6 bytes a lane) is <= 0.3 % "
            "of the "
            "stream, at least 1. The encoder stays as it is. Raises ValueError.");

    py::class_<PyDecoder>(
        m, "RangeDecoder",
        "Entropy decoder of one stream; pops must repeat the pushes in kind and order, not in grouping. "
        "Every method raises BitstreamError on a damaged stream, ValueError on wrong arguments; after an "
        "error in the middle of a pop every further call raises BitstreamError.")
        .def(py::init([](const py::buffer& data) {
                 const py::buffer_info info = data.request();
                 if (info.itemsize != 1 || info.ndim != 1 || (info.size > 0 && info.strides[0] != 1)) {
                     throw std::invalid_argument("data must be bytes or another contiguous buffer of bytes");
                 }
                 return std::make_unique<PyDecoder>(static_cast<const uint8_t*>(info.ptr),
                                                    static_cast<size_t>(info.size));
             }),
             py::arg("data"))
        .def_property_readonly(
            "lanes", [](const PyDecoder& self) { return self.core.lanes(); }, "Lanes of the stream.")
        .def(
            "pop_mixture",
            [](PyDecoder& self, const py::object& weights, const py::object& means, const py::object& inv_scales,
               int bits) {
                const MixtureArrays p(weights, means, inv_scales, bits);
                auto symbols = new_array<uint8_t>(static_cast<py::ssize_t>(p.size));
                uint8_t* data = symbols.mutable_data();
                run_alone(self, [&](RangeDecoder& core) { core.pop_mixture(p.view, data, p.size); });
                return symbols;
            },
            py::arg("weights"), py::arg("means"), py::arg("inv_scales"), py::arg("bits"), "Symbols uint8 [n].")
        .def(
            "pop_table",
            [](PyDecoder& self, const py::object& cdf, const py::object& cdf_sizes, const py::object& indexes,
               int precision) {
                const TableArrays t(cdf, cdf_sizes, indexes, precision);
                auto symbols = new_array<int32_t>(static_cast<py::ssize_t>(t.size));
                int32_t* data = symbols.mutable_data();
                const int32_t* index = t.indexes.data();
                run_alone(self, [&](RangeDecoder& core) { core.pop_table(t.view, index, data, t.size); });
                return symbols;
            },
            py::arg("cdf"), py::arg("cdf_sizes"), py::arg("indexes"), py::arg("precision"), "Symbols int32 [n].")
        .def(
            "pop_uniform",
            [](PyDecoder& self, py::ssize_t n, uint32_t size) {
                auto symbols = new_array<uint32_t>(n);
                uint32_t* data = symbols.mutable_data();
                run_alone(self, [&](RangeDecoder& core) { core.pop_uniform(size, data, static_cast<size_t>(n)); });
                return symbols;
            },
            py::arg("n"), py::arg("size"), "Symbols uint32 [n].")
        .def(
            "pop_raw",
            [](PyDecoder& self, py::ssize_t n, int num_bits) {
                auto values = new_array<uint32_t>(n);
                uint32_t* data = values.mutable_data();
                run_alone(self, [&](RangeDecoder& core) { core.pop_raw(num_bits, data, static_cast<size_t>(n)); });
                return values;
            },
            py::arg("n"), py::arg("num_bits"), "Values uint32 [n].")
        .def(
            "finish", [](PyDecoder& self) { run_alone(self, [](RangeDecoder& core) { core.finish(); }); },
            "Raises BitstreamError unless every byte was used and every lane is at its start value, which also holds a "
            "checksum of the symbols: without this call a flipped bit can go unnoticed.");

    m.def(
        "mixture_cdf",
        [](const py::object& edges, const py::object& weights, const py::object& means, const py::object& inv_scales,
           int bits) {
            const auto i = array_arg<int32_t>(edges, "edges", 1);
            const MixtureArrays p(weights, means, inv_scales, bits);
            check_size(static_cast<size_t>(i.size()), p.size, "edges");
            const int32_t* data = i.data();
            if (std::any_of(data, data + p.size, [bits](int32_t e) { return e < 0 || e > 1 << bits; })) {
                throw std::invalid_argument("an edge is not in 0..2^bits");
            }
            auto out = new_array<uint32_t>(static_cast<py::ssize_t>(p.size));
            uint32_t* to = out.mutable_data();
            {
                const py::gil_scoped_release release;
                check_status(current_kernels().mixture_cdf(p.view, data, p.size, to));
            }
            return out;
        },
        py::arg("edges"), py::arg("weights"), py::arg("means"), py::arg("inv_scales"), py::arg("bits"),
        "C(edges[j]) of symbol j, uint32 [n], 0..2^20; edges int32 [n] in 0..2^bits. For tests. Raises ValueError.");

    m.def(
        "xxh64",
        [](const py::buffer& data) {
            const py::buffer_info info = data.request();
            if (info.ndim != 1 || info.itemsize != 1 || info.strides[0] != 1) {
                throw std::invalid_argument("data must be contiguous bytes");
            }
            Xxh64 hash;
            {
                const py::gil_scoped_release release;
                hash.update(info.ptr, static_cast<size_t>(info.size));
            }
            return hash.digest();
        },
        py::arg("data"), "XXH64, seed 0, of contiguous bytes. Raises ValueError.");

    m.def(
        "sigma_table",
        [] {
            auto out = new_array<uint32_t>(65536);
            for (int32_t z = -32768; z <= 32767; ++z) out.mutable_data()[z + 32768] = logistic(z);
            return out;
        },
        "sigma(z), 0..65536, for z = -32768..32767 in this order; uint32 [65536]. For tests.");

    m.def(
        "mixture_params",
        [](const py::object& raw, int num_mixtures, py::ssize_t channels, const py::object& exp_table,
           const py::object& inv_table, const py::object& valid) {
            const auto r = array_arg<int16_t>(raw, "raw", 2);
            const auto e = array_arg<uint16_t>(exp_table, "exp_table", 1);
            const auto i = array_arg<uint16_t>(inv_table, "inv_table", 1);
            check_size(static_cast<size_t>(e.size()), 256, "exp_table");
            check_size(static_cast<size_t>(i.size()), 256, "inv_table");
            if (num_mixtures < 1 || num_mixtures > kMaxMixtures) throw std::invalid_argument("K must be 1..8");
            if (channels < 1 || r.shape(1) % (3 * num_mixtures) != 0 || r.shape(1) / (3 * num_mixtures) != channels) {
                throw std::invalid_argument("raw must be [n_cells, 3 * K * cg]");
            }
            if (e.at(0) == 0) throw std::invalid_argument("exp_table[0] must not be 0");
            const auto num_cells = static_cast<size_t>(r.shape(0));
            const uint8_t* mask = nullptr;
            py::array_t<uint8_t> v;
            size_t num_valid = num_cells;
            if (!valid.is_none()) {
                v = array_arg<uint8_t>(valid, "valid", 1);
                check_size(static_cast<size_t>(v.size()), num_cells, "valid");
                mask = v.data();
                num_valid = num_cells - static_cast<size_t>(std::count(mask, mask + num_cells, 0));
            }
            const auto n = static_cast<py::ssize_t>(num_valid) * channels;
            py::array_t<uint16_t> weights({py::ssize_t{num_mixtures}, n}), inv_scales({py::ssize_t{num_mixtures}, n});
            py::array_t<int16_t> means({py::ssize_t{num_mixtures}, n});
            const ParamsJob job = {r.data(),
                                   num_cells,
                                   num_mixtures,
                                   static_cast<size_t>(channels),
                                   e.data(),
                                   i.data(),
                                   mask,
                                   weights.mutable_data(),
                                   means.mutable_data(),
                                   inv_scales.mutable_data(),
                                   static_cast<size_t>(n)};
            {
                const py::gil_scoped_release release;
                current_kernels().mixture_params(job);
            }
            return py::make_tuple(weights, means, inv_scales);
        },
        py::arg("raw"), py::arg("K"), py::arg("cg"), py::arg("exp_table"), py::arg("inv_table"),
        py::arg("valid") = py::none(),
        "Network output int16 [n_cells, 3*K*cg] (logits, means, log inverse scales, each [k][channel]) to weights "
        "uint16, "
        "means int16, inv_scales uint16, each [K, valid cells * cg]. exp_table, inv_table uint16 [256]; valid uint8 "
        "[n_cells] or None. Definition: csrc/core/mixture_cdf.h. Raises ValueError.");

    register_exact(m);
    register_hyperprior(m);
    register_int_conv(m);
    register_mixture_bits(m);
    register_tile_coder(m);
}
