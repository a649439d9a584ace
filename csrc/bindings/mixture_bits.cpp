// numpy in, numpy out for the bits of mixtures; the work is in simd/mixture_bits.cpp.

#include "simd/mixture_bits.h"

#include "bindings/common.h"

namespace l2c {
namespace {

using FloatArray = py::array_t<float>;

// The arguments of every function, held while the GIL is released.
struct MixtureBitsArrays {
    FloatArray x, params, steps;
    MixtureBitsInput input;

    MixtureBitsArrays(const py::object& x_, const py::object& params_, int mixtures, const py::object& steps_,
                      float least, float most, float margin, int threads)
        : x(array_arg<float>(x_, "x", 2)),
          params(array_arg<float>(params_, "params", 2)),
          steps(array_arg<float>(steps_, "steps", 1)) {
        const py::ssize_t rows = x.shape(0), channels = x.shape(1), pictures = steps.shape(0);
        if (mixtures < 1 || mixtures > kMaxMixtures || channels > (1 << 24)) {
            throw py::value_error("mixtures must be 1.." + std::to_string(kMaxMixtures) + " and channels below 2^24");
        }
        if (params.shape(0) != rows || params.shape(1) != 3 * mixtures * channels) {
            throw py::value_error("params must be [rows, 3 mixtures channels] of x [rows, channels]");
        }
        if (rows > 0 && (pictures < 1 || rows % pictures != 0)) {
            throw py::value_error("rows must be a multiple of the pictures");
        }
        if (threads < 1) throw py::value_error("threads must be at least 1");
        input = {rows,
                 rows > 0 ? rows / pictures : 1,
                 static_cast<int>(channels),
                 mixtures,
                 x.data(),
                 params.data(),
                 steps.data(),
                 least,
                 most,
                 margin,
                 threads};
    }

    FloatArray like_x() const { return FloatArray({x.shape(0), x.shape(1)}); }
    FloatArray like_params() const { return FloatArray({params.shape(0), params.shape(1)}); }
};

FloatArray bits(const py::object& x, const py::object& params, int mixtures, const py::object& steps, float least,
                float most, float margin, int threads) {
    const MixtureBitsArrays arrays(x, params, mixtures, steps, least, most, margin, threads);
    FloatArray out = arrays.like_x();
    float* to = out.mutable_data();
    const Cpu cpu = current_cpu();
    py::gil_scoped_release release;
    mixture_bits(arrays.input, to, cpu);
    return out;
}

py::tuple backward(const py::object& dout, const py::object& x, const py::object& params, int mixtures,
                   const py::object& steps, float least, float most, float margin, int threads, bool with_dparams) {
    const MixtureBitsArrays arrays(x, params, mixtures, steps, least, most, margin, threads);
    const auto slope = array_arg<float>(dout, "dout", 2);
    if (slope.shape(0) != arrays.x.shape(0) || slope.shape(1) != arrays.x.shape(1)) {
        throw py::value_error("dout must have the shape of x");
    }
    FloatArray dx = arrays.like_x();
    float* to = dx.mutable_data();
    py::object dparams = py::none();
    float* params_to = nullptr;
    if (with_dparams) {
        FloatArray array = arrays.like_params();
        params_to = array.mutable_data();
        dparams = array;
    }
    const float* from = slope.data();
    const Cpu cpu = current_cpu();
    {
        py::gil_scoped_release release;
        mixture_bits_backward(arrays.input, from, to, params_to, cpu);
    }
    return py::make_tuple(dx, dparams);
}

py::tuple neighbours(const py::object& x, const py::object& params, int mixtures, const py::object& steps, float least,
                     float most, float margin, int threads) {
    const MixtureBitsArrays arrays(x, params, mixtures, steps, least, most, margin, threads);
    FloatArray here = arrays.like_x(), rise = arrays.like_x(), fall = arrays.like_x();
    float* to[] = {here.mutable_data(), rise.mutable_data(), fall.mutable_data()};
    const Cpu cpu = current_cpu();
    {
        py::gil_scoped_release release;
        neighbour_bits(arrays.input, to[0], to[1], to[2], cpu);
    }
    return py::make_tuple(here, rise, fall);
}

}  // namespace

void register_mixture_bits(py::module_& module) {
    module.def("mixture_bits", &bits, R"(Bits of latents under their mixtures; see reference.mixture_bits.

Args:
    x: float32 [rows, channels]. params: float32 [rows, 3 mixtures channels]. All C-contiguous.
    steps: float32 [pictures], 2^(8-b); rows are shared out equally.
    least, most: limits of the log2 inverse scales. margin: in steps, how far from an end of the range a latent
        belongs to it.
Returns:
    float32 [rows, channels].
Raises:
    ValueError: other dtypes or shapes. BackendError: L2C_CPU names a path that this machine lacks.)",
               py::arg("x"), py::arg("params"), py::arg("mixtures"), py::arg("steps"), py::arg("least"),
               py::arg("most"), py::arg("margin"), py::arg("threads"));
    module.def("mixture_bits_backward", &backward,
               "(dx, dparams or None) of mixture_bits, whose arguments and errors these are; dout as x.",
               py::arg("dout"), py::arg("x"), py::arg("params"), py::arg("mixtures"), py::arg("steps"),
               py::arg("least"), py::arg("most"), py::arg("margin"), py::arg("threads"), py::arg("with_dparams"));
    module.def("neighbour_bits", &neighbours,
               "(bits, change one level up, change one level down); see reference.neighbour_bits. Arguments and errors "
               "as in mixture_bits; margin is not used.",
               py::arg("x"), py::arg("params"), py::arg("mixtures"), py::arg("steps"), py::arg("least"),
               py::arg("most"), py::arg("margin"), py::arg("threads"));
}

}  // namespace l2c
