// The coders of tiles as Python passes them: a RangeEncoder, a RangeDecoder, or any object that does their work.

#pragma once

#include <algorithm>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "bindings/common.h"
#include "core/symbol_coder.h"

namespace l2c {

// A Python object with `mixture(weights, means, inv_scales, symbols)`, `uniform(n, symbols)` and
// `table(cdf, sizes, precision, indexes, symbols)`, which return symbols. It may observe what is coded, so it gets
// whole groups.
class PythonCoder final : public SymbolCoder {
 public:
    PythonCoder(py::object coder, bool encodes) : coder_(std::move(coder)), encodes_(encodes) {}

    void mixture(const MixtureView& view, std::uint8_t* symbols, std::size_t n) override {
        const py::gil_scoped_acquire acquire;
        const auto weights = copy(view.weights, view, n), inv_scales = copy(view.inv_scales, view, n);
        const auto means = copy(view.means, view, n);
        take(coder_.attr("mixture")(weights, means, inv_scales, known(symbols, n)), symbols, n);
    }
    void uniform(std::uint8_t* symbols, std::size_t n, int) override {
        const py::gil_scoped_acquire acquire;
        take(coder_.attr("uniform")(n, known(symbols, n)), symbols, n);
    }
    void table(const TableView& tables, const std::int32_t* indexes, std::uint8_t* symbols, std::size_t n) override {
        const py::gil_scoped_acquire acquire;
        const py::array_t<std::uint32_t> cdf({tables.num_tables, tables.row_length}, tables.cdf);
        const py::array_t<std::int32_t> sizes(static_cast<py::ssize_t>(tables.num_tables), tables.sizes);
        const py::array_t<std::int32_t> rows(static_cast<py::ssize_t>(n), indexes);
        take(coder_.attr("table")(cdf, sizes, tables.precision, rows, known(symbols, n)), symbols, n);
    }
    bool whole_groups() const override { return true; }

 private:
    template <class T>
    static py::array_t<T> copy(const T* values, const MixtureView& view, std::size_t n) {
        py::array_t<T> array({static_cast<std::size_t>(view.num_mixtures), n});
        for (int k = 0; k < view.num_mixtures; ++k) {
            std::copy_n(values + k * view.stride, n, array.mutable_data() + k * n);
        }
        return array;
    }
    py::object known(const std::uint8_t* symbols, std::size_t n) const {
        if (!encodes_) return py::none();
        return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(n), symbols);
    }
    void take(const py::object& result, std::uint8_t* symbols, std::size_t n) const {
        if (encodes_) return;
        const auto array = array_arg<std::uint8_t>(result, "the symbols that a coder returns", 1);
        if (static_cast<std::size_t>(array.size()) != n) throw py::value_error("a coder returned too few symbols");
        std::copy_n(array.data(), n, symbols);
    }

    py::object coder_;
    bool encodes_;
};

// The coders of one call, held and locked as long as it lasts: the caller's list may change while the GIL is released.
class SymbolCoders {
 public:
    // The coder behind an object. `encodes` says whether symbols are known; a decoder takes none, so it clears that.
    // Throws py::value_error: two tiles share a coder, or an encoder has no symbols. std::runtime_error: it is in use.
    SymbolCoder* add(const py::object& object, bool& encodes) {
        held_.push_back(object);
        if (!seen_.insert(object.ptr()).second) throw py::value_error("two tiles share a coder");
        if (py::isinstance<PyEncoder>(object)) {
            auto& encoder = py::cast<PyEncoder&>(object);
            if (!encodes) throw py::value_error("an encoder needs symbols");
            locks_.push_back(std::make_unique<Exclusive>(encoder.busy));
            coders_.push_back(std::make_unique<EncodingCoder>(encoder.core));
        } else if (py::isinstance<PyDecoder>(object)) {
            auto& decoder = py::cast<PyDecoder&>(object);
            encodes = false;
            locks_.push_back(std::make_unique<Exclusive>(decoder.busy));
            coders_.push_back(std::make_unique<DecodingCoder>(decoder.core));
        } else {
            coders_.push_back(std::make_unique<PythonCoder>(object, encodes));
        }
        return coders_.back().get();
    }

 private:
    std::vector<py::object> held_;
    std::vector<std::unique_ptr<SymbolCoder>> coders_;
    std::vector<std::unique_ptr<Exclusive>> locks_;
    std::set<const void*> seen_;
};

}  // namespace l2c
