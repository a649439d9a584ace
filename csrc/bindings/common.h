// What the files of the Python module share: checked arrays, and the coders as Python holds them.

#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "core/rans.h"

namespace l2c {

namespace py = pybind11;

// The array behind `object`, checked, with `ndim` dimensions. Throws std::invalid_argument (ValueError).
template <class T>
py::array_t<T> array_arg(const py::object& object, const char* name, int ndim) {
    if (py::isinstance<py::array_t<T, py::array::c_style>>(object)) {
        auto array = py::reinterpret_borrow<py::array_t<T>>(object);
        if (array.ndim() == ndim && reinterpret_cast<uintptr_t>(array.data()) % alignof(T) == 0) return array;
    }
    throw std::invalid_argument(std::string(name) + " must be a C-contiguous numpy array of dtype " +
                                std::string(py::str(py::dtype::of<T>())) + " with " + std::to_string(ndim) +
                                (ndim == 1 ? " dimension" : " dimensions"));
}

// One thread at a time in an object: its methods run without the GIL.
class Exclusive {
 public:
    explicit Exclusive(std::atomic_flag& flag) : flag_(flag) {
        if (flag_.test_and_set()) throw std::runtime_error("this coder is in use by another thread");
    }
    Exclusive(const Exclusive&) = delete;
    Exclusive& operator=(const Exclusive&) = delete;
    ~Exclusive() { flag_.clear(); }

 private:
    std::atomic_flag& flag_;
};

struct PyEncoder {
    RangeEncoder core;
    std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

struct PyDecoder {
    RangeDecoder core;
    std::atomic_flag busy = ATOMIC_FLAG_INIT;
    PyDecoder(const uint8_t* data, size_t size) : core(data, size) {}
};

}  // namespace l2c
