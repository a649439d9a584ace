// numpy in, numpy out for the integer convolution; the work is in simd/int_conv.cpp.

#include "simd/int_conv.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

namespace py = pybind11;

namespace l2c {
namespace {

std::string shape_text(const py::array& array) {
    std::string text = "[";
    for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
    return text + "]";
}

// The buffer of a C-contiguous array of exactly type T; ValueError otherwise.
template <typename T>
const T* contiguous(const py::array& array, const char* name, const char* type) {
    if (!py::isinstance<py::array_t<T>>(array)) throw py::value_error(std::string(name) + " must be " + type);
    if (!(array.flags() & py::array::c_style)) throw py::value_error(std::string(name) + " must be C-contiguous");
    return static_cast<const T*>(array.data());
}

// A [height, width, channels] array of exactly type T whose channels are contiguous and whose pixels do not
// overlap. Strides of dimensions of size 1 carry no meaning in numpy and are replaced by those of a packed
// array.
template <typename T>
ImageView<const T> image_view(const py::array& array, const char* name, const char* type, py::ssize_t height,
                              py::ssize_t width, py::ssize_t channels) {
    if (!py::isinstance<py::array_t<T>>(array)) throw py::value_error(std::string(name) + " must be " + type);
    if (array.ndim() != 3 || array.shape(0) != height || array.shape(1) != width || array.shape(2) != channels) {
        throw py::value_error(std::string(name) + " must be [" + std::to_string(height) + ", " + std::to_string(width) +
                              ", " + std::to_string(channels) + "], not " + shape_text(array));
    }
    const auto size = static_cast<py::ssize_t>(sizeof(T));
    const auto address = reinterpret_cast<std::uintptr_t>(array.data());
    const py::ssize_t pixel = width == 1 ? channels * size : array.strides(1);
    const py::ssize_t row = height == 1 ? width * pixel : array.strides(0);
    if ((channels > 1 && array.strides(2) != size) || pixel < channels * size || pixel % size != 0 ||
        row < (width - 1) * pixel + channels * size || row % size != 0 || address % sizeof(T) != 0) {
        throw py::value_error(std::string(name) +
                              " must have contiguous channels and strides that grow with the shape");
    }
    return {static_cast<const T*>(array.data()), row / size, pixel / size};
}

// An image's place in memory, in bytes.
struct Extent {
    std::uintptr_t begin, end;
    std::ptrdiff_t row, pixel, channels;
};

template <typename T>
Extent extent(const ImageView<T>& view, py::ssize_t height, py::ssize_t width, int channels) {
    const auto size = static_cast<std::ptrdiff_t>(sizeof(T));
    const auto begin = reinterpret_cast<std::uintptr_t>(view.data);
    const std::ptrdiff_t last = (height - 1) * view.row_stride + (width - 1) * view.pixel_stride + channels;
    return {begin, begin + static_cast<std::uintptr_t>(last * size), view.row_stride * size, view.pixel_stride * size,
            channels * size};
}

// True unless the two are surely disjoint: apart, or different channels of the same pixels of one wider
// buffer.
bool may_overlap(const Extent& a, const Extent& b) {
    if (a.end <= b.begin || b.end <= a.begin) return false;
    if (a.pixel != b.pixel || a.row != b.row || a.row % a.pixel != 0) return true;
    const auto apart = static_cast<std::ptrdiff_t>(b.begin - a.begin);
    const std::ptrdiff_t offset = ((apart % a.pixel) + a.pixel) % a.pixel;
    return offset < a.channels || offset + b.channels > a.pixel;
}

bool same_place(const Extent& a, const Extent& b) {
    return a.begin == b.begin && a.row == b.row && a.pixel == b.pixel && a.channels == b.channels;
}

std::unique_ptr<IntConv> make_int_conv(const py::array& weight, const py::array& bias, const py::array& multiplier,
                                       int offset_channels) {
    const std::int8_t* weight_data = contiguous<std::int8_t>(weight, "weight", "int8");
    const std::int32_t* bias_data = contiguous<std::int32_t>(bias, "bias", "int32");
    const float* multiplier_data = contiguous<float>(multiplier, "multiplier", "float32");
    constexpr py::ssize_t kMaxChannels = 1 << 24;  // far above any use; keeps sizes far from overflow
    if (weight.ndim() != 4 || weight.shape(2) != weight.shape(3) || weight.shape(0) > kMaxChannels ||
        weight.shape(1) > kMaxChannels) {
        throw py::value_error("weight must be [O, I, k, k], not " + shape_text(weight));
    }
    for (const py::array& array : {bias, multiplier}) {
        if (array.ndim() != 1 || array.shape(0) != weight.shape(0)) {
            throw py::value_error("bias and multiplier must be [O] as in weight, not " + shape_text(array));
        }
    }
    try {
        return std::make_unique<IntConv>(static_cast<int>(weight.shape(0)), static_cast<int>(weight.shape(1)),
                                         static_cast<int>(weight.shape(2)), weight_data, bias_data, multiplier_data,
                                         offset_channels);
    } catch (const std::invalid_argument& error) {
        throw py::value_error(error.what());
    }
}

py::array run(const IntConv& conv, const py::array& x, const std::optional<py::array>& residual, const std::string& out,
              int threads, const std::optional<py::array>& into, bool dense) {
    if (out != "u8" && out != "i16") throw py::value_error("out must be 'u8' or 'i16', not '" + out + "'");
    if (threads < 1) throw py::value_error("threads must be at least 1");
    const bool out_i16 = out == "i16";
    if (out_i16 && residual) throw py::value_error("a residual is only possible with out='u8'");
    if (x.ndim() != 3 || x.shape(0) < 1 || x.shape(1) < 1) {
        throw py::value_error("x must be [H, W, I] with H, W >= 1, not " + shape_text(x));
    }
    const py::ssize_t height = x.shape(0);
    const py::ssize_t width = x.shape(1);
    const int channels = conv.out_channels();

    IntConvArguments arguments = {};
    arguments.height = height;
    arguments.width = width;
    arguments.threads = threads;
    arguments.dense = dense;
    arguments.x = image_view<std::uint8_t>(x, "x", "uint8", height, width, conv.in_channels());
    if (residual) {
        arguments.residual = image_view<std::uint8_t>(*residual, "residual", "uint8", height, width, channels);
    }
    py::array result;
    if (into) {
        if (!into->writeable()) throw py::value_error("into is read-only");
        result = *into;
    } else if (out_i16) {
        result = py::array_t<std::int16_t>({height, width, py::ssize_t{channels}});
    } else {
        result = py::array_t<std::uint8_t>({height, width, py::ssize_t{channels}});
    }
    Extent target;
    if (out_i16) {
        const auto view = image_view<std::int16_t>(result, "into", "int16", height, width, channels);
        arguments.out_i16 = {const_cast<std::int16_t*>(view.data), view.row_stride, view.pixel_stride};
        target = extent(view, height, width, channels);
    } else {
        const auto view = image_view<std::uint8_t>(result, "into", "uint8", height, width, channels);
        arguments.out_u8 = {const_cast<std::uint8_t*>(view.data), view.row_stride, view.pixel_stride};
        target = extent(view, height, width, channels);
    }
    if (into) {
        if (may_overlap(target, extent(arguments.x, height, width, conv.in_channels()))) {
            throw py::value_error("into overlaps x");
        }
        if (residual) {
            const Extent added = extent(arguments.residual, height, width, channels);
            if (may_overlap(target, added) && !same_place(target, added)) {
                throw py::value_error("into overlaps residual without being the same elements");
            }
        }
    }
    const Cpu cpu = current_cpu();
    {
        py::gil_scoped_release release;
        conv.run(arguments, cpu);
    }
    return result;
}

}  // namespace

void register_int_conv(py::module_& module) {
    py::class_<IntConv>(module, "IntConv", R"(One exact integer convolution layer, stride 1, zero padding.

    acc = bias[o] + sum of weight * x (int32);  r = round_half_even(float32(acc) * multiplier[o]);
    out "u8": clamp(r + residual, 0, 255);  out "i16": clamp(r, -32768, 32767)

Args:
    weight: int8 [O, I, k, k], k = 1 or 3, C-contiguous.
    bias: int32 [O].
    multiplier: float32 [O], finite.
    offset_channels: the first so many input channels hold 128 more than they stand for (x - 128 in the sum); a
        multiple of 4, 0 with 3x3 kernels.
Raises:
    ValueError: wrong dtype, shape or offset_channels, or 255 * sum|weight| + |bias| >= 2^31 in an output channel.
Exactness: the same integers for every CPU path and thread count, whatever int32 accumulators the bound allows.)")
        .def(py::init(&make_int_conv), py::arg("weight"), py::arg("bias"), py::arg("multiplier"),
             py::arg("offset_channels") = 0)
        .def("run", &run, R"(Applies the layer to one picture; releases the GIL.

Args:
    x: uint8 [H, W, I], H, W >= 1. Channels contiguous; pixels and rows may be further apart, as in a slice of
        the channels of a wider buffer. The same holds for `residual` and `into`.
    residual: uint8 [H, W, O], added before the clamp to 0..255; only with out="u8".
    out: "u8" or "i16", the output's type.
    threads: at most this many, 1 or more. Calls at the same time from several Python threads are safe; one of them
        gets the helper threads, the others run alone.
    into: array [H, W, O] of the output's dtype to write to, returned; a new array without it. It may be `residual`
        itself, or another channel slice of the buffer of `x`.
    dense: whether to count on few zeros in x; a matter of speed alone.
Returns:
    uint8 or int16 [H, W, O].
Raises:
    ValueError: wrong dtype, shape or strides, or `into` overlaps its inputs.
    BackendError: L2C_CPU names a path that this machine lacks.)",
             py::arg("x"), py::kw_only(), py::arg("residual") = py::none(), py::arg("out") = "u8",
             py::arg("threads") = 1, py::arg("into") = py::none(), py::arg("dense") = false)
        .def_property_readonly("out_channels", &IntConv::out_channels)
        .def_property_readonly("in_channels", &IntConv::in_channels)
        .def_property_readonly("kernel_size", &IntConv::kernel);
    module.def(
        "int_conv_backend", [] { return int_conv_backend(current_cpu()); },
        "The back end that IntConv.run uses now: 'scalar', 'avx2', 'avx512vnni', 'neon' or 'neondot'.");
}

}  // namespace l2c
