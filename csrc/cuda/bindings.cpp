// Python module l2c._cuda: the operators of rans.h on addresses of device memory. No arithmetic here, and no PyTorch: a
// tensor passes its data_ptr(), a stream its cuda_stream. Shapes, dtypes and devices are the caller's to check
// (l2c.ops); what is checked here is what would make a kernel misbehave: null and misaligned addresses, sizes out of
// range.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/rans.h"

namespace py = pybind11;

namespace {

using namespace l2c::cuda;

struct LaunchError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void check_launch(const char* why) {
    if (why != nullptr) throw LaunchError(std::string("CUDA: ") + why);
}

void check_size(int64_t value, int64_t least, int64_t most, const char* name) {
    if (value < least || value > most) {
        throw std::invalid_argument(std::string(name) + " must be " + std::to_string(least) + ".." +
                                    std::to_string(most) + ", not " + std::to_string(value));
    }
}

constexpr size_t kUnit = 16;  // of asynchronous copies and vector loads

template <class T>
T* array_at(uintptr_t address, const char* name, size_t alignment = alignof(T)) {
    if (address == 0) throw std::invalid_argument(std::string(name) + " must not be null");
    if (address % alignment != 0) {
        throw std::invalid_argument(std::string(name) + " must be aligned to " + std::to_string(alignment) + " bytes");
    }
    return reinterpret_cast<T*>(address);
}

// The arrays of a group and its sizes; `uniform` allows K = 0, which needs no parameters.
Mixtures mixtures_at(uintptr_t weights, uintptr_t means, uintptr_t inv_scales, uintptr_t bits, uintptr_t count,
                     int64_t num_streams, int64_t capacity, int64_t num_mixtures, bool uniform) {
    check_size(num_streams, 0, kMaxCapacity, "num_streams");
    check_size(capacity, 0, kMaxCapacity, "capacity");
    check_size(num_mixtures, uniform ? 0 : 1, l2c::kMaxMixtures, "num_mixtures");
    Mixtures mixtures = {};
    if (num_mixtures > 0) {
        mixtures.weights = array_at<const uint16_t>(weights, "weights");
        mixtures.means = array_at<const int16_t>(means, "means");
        mixtures.inv_scales = array_at<const uint16_t>(inv_scales, "inv_scales");
    }
    mixtures.bits = array_at<const int32_t>(bits, "bits");
    mixtures.count = array_at<const int32_t>(count, "count");
    mixtures.num_streams = static_cast<int>(num_streams);
    mixtures.capacity = static_cast<int>(capacity);
    mixtures.num_mixtures = static_cast<int>(num_mixtures);
    return mixtures;
}

Queue queue_of(int device, uintptr_t stream) {
    return {device, reinterpret_cast<void*>(stream)};
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() =
        "The range coder on a GPU. Arguments are addresses of device memory (integers), sizes, the device's ordinal "
        "and a "
        "cudaStream_t as an integer; arrays, operators and status codes: csrc/cuda/rans.h. Calls are asynchronous. "
        "Every "
        "function raises ValueError for null or misaligned addresses and sizes out of range, BackendError if CUDA "
        "refuses "
        "the launch.";
    m.attr("STATUS_BAD_SYMBOL") = static_cast<int>(l2c::kBadSymbol);
    m.attr("STATUS_TRUNCATED") = static_cast<int>(l2c::kTruncated);
    m.attr("STATUS_BAD_LAYOUT") = kBadLayout;
    m.attr("STATUS_NO_ROOM") = kNoRoom;
    m.attr("WINDOW") = kWindow;

    py::register_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const LaunchError& e) {
            py::object type = py::module_::import("l2c.errors").attr("BackendError");
            PyErr_SetString(type.ptr(), e.what());
        }
    });

    m.def(
        "mixture_window",
        [](uintptr_t weights, uintptr_t means, uintptr_t inv_scales, uintptr_t bits, uintptr_t count, uintptr_t first,
           uintptr_t window, int64_t num_streams, int64_t capacity, int64_t num_mixtures, int device,
           uintptr_t stream) {
            const Mixtures mixtures =
                mixtures_at(weights, means, inv_scales, bits, count, num_streams, capacity, num_mixtures, false);
            check_launch(mixture_window(mixtures, array_at<int16_t>(first, "first"),
                                        array_at<uint32_t>(window, "window", kUnit), queue_of(device, stream)));
        },
        py::kw_only(), py::arg("weights"), py::arg("means"), py::arg("inv_scales"), py::arg("bits"), py::arg("count"),
        py::arg("first"), py::arg("window"), py::arg("num_streams"), py::arg("capacity"), py::arg("num_mixtures"),
        py::arg("device"), py::arg("stream"), "Parameters to the windows that rans_decode_mixture reads.");

    m.def(
        "rans_decode_mixture",
        [](uintptr_t lanes, uintptr_t position, uintptr_t count, uintptr_t bits, uintptr_t states, uintptr_t words,
           int64_t num_words, uintptr_t next, uintptr_t end, uintptr_t status, uintptr_t weights, uintptr_t means,
           uintptr_t inv_scales, uintptr_t first, uintptr_t window, uintptr_t symbols, int64_t num_streams,
           int64_t capacity, int64_t num_mixtures, int device, uintptr_t stream) {
            Decoding job = {};
            job.mixtures =
                mixtures_at(weights, means, inv_scales, bits, count, num_streams, capacity, num_mixtures, true);
            if (num_mixtures > 0) {
                job.first = array_at<const int16_t>(first, "first");
                job.window = array_at<const uint32_t>(window, "window", kUnit);
            }
            job.lanes = array_at<const int32_t>(lanes, "lanes");
            job.position = array_at<int64_t>(position, "position");
            job.states = array_at<int64_t>(states, "states");
            check_size(num_words, 0, INT64_MAX, "num_words");
            if (num_words > 0) job.words = array_at<const uint16_t>(words, "words", kUnit);
            job.num_words = num_words;
            job.next = array_at<int64_t>(next, "next");
            job.end = array_at<const int64_t>(end, "end");
            job.status = array_at<int32_t>(status, "status");
            job.symbols = array_at<uint8_t>(symbols, "symbols");
            check_launch(rans_decode_mixture(job, queue_of(device, stream)));
        },
        py::kw_only(), py::arg("lanes"), py::arg("position"), py::arg("count"), py::arg("bits"), py::arg("states"),
        py::arg("words"), py::arg("num_words"), py::arg("next"), py::arg("end"), py::arg("status"), py::arg("weights"),
        py::arg("means"), py::arg("inv_scales"), py::arg("first"), py::arg("window"), py::arg("symbols"),
        py::arg("num_streams"), py::arg("capacity"), py::arg("num_mixtures"), py::arg("device"), py::arg("stream"),
        "Decodes a group of each stream. num_mixtures 0: uniform symbols; weights, means, inv_scales, first and window "
        "are "
        "not used then.");

    m.def(
        "mixture_intervals",
        [](uintptr_t symbols, uintptr_t position, uintptr_t count, uintptr_t bits, uintptr_t weights, uintptr_t means,
           uintptr_t inv_scales, uintptr_t start, uintptr_t freq, uintptr_t status, int64_t num_streams,
           int64_t capacity, int64_t num_mixtures, int64_t total_capacity, int device, uintptr_t stream) {
            Intervals job = {};
            job.mixtures =
                mixtures_at(weights, means, inv_scales, bits, count, num_streams, capacity, num_mixtures, true);
            job.symbols = array_at<const uint8_t>(symbols, "symbols");
            job.position = array_at<const int64_t>(position, "position");
            job.start = array_at<uint32_t>(start, "start");
            job.freq = array_at<uint32_t>(freq, "freq");
            check_size(total_capacity, 0, kMaxCapacity, "total_capacity");
            job.total_capacity = total_capacity;
            job.status = array_at<int32_t>(status, "status");
            check_launch(mixture_intervals(job, queue_of(device, stream)));
        },
        py::kw_only(), py::arg("symbols"), py::arg("position"), py::arg("count"), py::arg("bits"), py::arg("weights"),
        py::arg("means"), py::arg("inv_scales"), py::arg("start"), py::arg("freq"), py::arg("status"),
        py::arg("num_streams"), py::arg("capacity"), py::arg("num_mixtures"), py::arg("total_capacity"),
        py::arg("device"), py::arg("stream"),
        "Intervals of the symbols of a group, from each stream's position on. num_mixtures 0: uniform symbols.");

    m.def(
        "rans_encode",
        [](uintptr_t lanes, uintptr_t total, uintptr_t start, uintptr_t freq, uintptr_t states, uintptr_t buffer,
           uintptr_t first_word, uintptr_t status, int64_t num_streams, int64_t total_capacity, int64_t buffer_capacity,
           int device, uintptr_t stream) {
            Encoding job = {};
            check_size(num_streams, 0, kMaxCapacity, "num_streams");
            check_size(total_capacity, 0, kMaxCapacity, "total_capacity");
            check_size(buffer_capacity, 0, INT64_MAX, "buffer_capacity");
            job.lanes = array_at<const int32_t>(lanes, "lanes");
            job.total = array_at<const int64_t>(total, "total");
            job.start = array_at<const uint32_t>(start, "start");
            job.freq = array_at<const uint32_t>(freq, "freq");
            job.states = array_at<int64_t>(states, "states");
            job.buffer = array_at<uint16_t>(buffer, "buffer");
            job.first_word = array_at<int64_t>(first_word, "first_word");
            job.status = array_at<int32_t>(status, "status");
            job.num_streams = static_cast<int>(num_streams);
            job.total_capacity = total_capacity;
            job.buffer_capacity = buffer_capacity;
            check_launch(rans_encode(job, queue_of(device, stream)));
        },
        py::kw_only(), py::arg("lanes"), py::arg("total"), py::arg("start"), py::arg("freq"), py::arg("states"),
        py::arg("buffer"), py::arg("first_word"), py::arg("status"), py::arg("num_streams"), py::arg("total_capacity"),
        py::arg("buffer_capacity"), py::arg("device"), py::arg("stream"), "Encodes whole streams.");
}
