#include "exact/layers.h"

#include <cmath>
#include <stdexcept>

namespace l2c {
namespace {

int round_up(int a, int b) {
    return (a + b - 1) / b * b;
}

}  // namespace

const DensePacked& packed_for(const PackedLayer& layer, Cpu cpu, const DenseBackend& backend) {
    const int index = static_cast<int>(cpu);
    std::call_once(layer.once[index], [&] {
        pack_dense(backend, layer.outputs, layer.inputs, layer.in_padded, layer.kernel, layer.weight.data(),
                   layer.bias.data(), layer.packed[index]);
    });
    return layer.packed[index];
}

std::unique_ptr<PackedLayer> make_layer(const ExactLayerView& view, int first_bias, std::vector<int> order) {
    auto layer = std::make_unique<PackedLayer>();
    if (view.outputs < 1 || view.inputs < 1 || (view.kernel != 1 && view.kernel != 3)) {
        throw std::invalid_argument("a layer needs channels and a kernel of 1x1 or 3x3");
    }
    layer->outputs = view.outputs;
    layer->inputs = view.inputs;
    layer->kernel = view.kernel;
    layer->in_padded = round_up(view.inputs, 4);
    layer->blocks = round_up(view.outputs, kDenseBlock) / kDenseBlock;
    layer->first_bias = first_bias;
    if (order.empty()) {
        for (int o = 0; o < view.outputs; ++o) order.push_back(o);
    }
    const std::size_t per_output = static_cast<std::size_t>(view.inputs) * view.kernel * view.kernel;
    for (int o = 0; o < view.outputs; ++o) {
        const int from = order[static_cast<std::size_t>(o)];
        const std::int8_t* weight = view.weight + from * per_output;
        std::int64_t bound = std::abs(static_cast<std::int64_t>(view.bias[from]));
        for (std::size_t i = 0; i < per_output; ++i) bound += 255 * std::abs(static_cast<int>(weight[i]));
        if (bound >= std::int64_t{1} << 31) throw std::invalid_argument("255 * sum|weight| + |bias| reaches 2^31");
        if (!std::isfinite(view.multiplier[from])) throw std::invalid_argument("a multiplier is not finite");
        layer->weight.insert(layer->weight.end(), weight, weight + per_output);
        layer->bias.push_back(view.bias[from]);
        layer->above.push_back(view.multiplier[from]);
        layer->below.push_back(view.multiplier[from] * kSlope);
    }
    layer->zero.assign(view.zero, view.zero + view.inputs);
    layer->zero.resize(static_cast<std::size_t>(layer->in_padded));
    layer->order = std::move(order);
    return layer;
}

}  // namespace l2c
