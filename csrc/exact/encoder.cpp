#include "exact/encoder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "exact/layers.h"

namespace l2c {

struct IntegerEncoder::Impl {
    std::unique_ptr<PackedLayer> first, head, local_gain;
    std::vector<std::unique_ptr<PackedLayer>> convolutions;

    class Run;
};

// One picture.
class IntegerEncoder::Impl::Run : private LayerRun {
 public:
    Run(const Impl& model, const IntegerEncoderPicture& picture, int threads, Cpu cpu)
        : LayerRun({picture.width, picture.scale_map, nullptr, 0, nullptr, 0}, layers_of(model), threads, cpu),
          model_(model),
          picture_(picture) {}

    void encode() {
        Activations x, features;
        read_input(x);
        trunk(*model_.first, model_.convolutions, *model_.head, picture_.scales, x, features);
        all_sums(*model_.head, features, picture_.head);
        if (model_.local_gain) all_sums(*model_.local_gain, features, picture_.local_gain);
    }

 private:
    static std::vector<const PackedLayer*> layers_of(const Impl& model) {
        std::vector<const PackedLayer*> layers = {model.first.get(), model.head.get(), model.local_gain.get()};
        for (const auto& layer : model.convolutions) layers.push_back(layer.get());
        return layers;
    }

    void read_input(Activations& to) const {
        to.reserve(picture_.height, picture_.width, *model_.first);
        const int inputs = model_.first->inputs;
        Loop::rows(picture_.height, picture_.width, threads_, [&](std::int64_t y, std::int64_t x0, std::int64_t x1) {
            for (std::int64_t x = x0; x < x1; ++x) {
                std::uint8_t* const out = to.at(y, x);
                std::memcpy(out, picture_.input + (y * picture_.width + x) * inputs, static_cast<std::size_t>(inputs));
                std::fill(out + inputs, out + to.channels, std::uint8_t{0});
            }
        });
    }

    void all_sums(const PackedLayer& layer, const Activations& x, std::int32_t* to) const {
        Loop::rows(x.height, x.width, threads_, [&](std::int64_t y, std::int64_t x0, std::int64_t x1) {
            auto* const buffer = scratch<std::int32_t, 1>(static_cast<std::size_t>(kTilePixels) * layer.padded());
            for (std::int64_t at = x0; at < x1; at += kTilePixels) {
                const int pixels = static_cast<int>(std::min<std::int64_t>(kTilePixels, x1 - at));
                sums(layer, x, y, at, pixels, 0, buffer);
                for (int p = 0; p < pixels; ++p) {
                    std::copy_n(buffer + p * layer.padded(), layer.outputs,
                                to + (y * x.width + at + p) * layer.outputs);
                }
            }
        });
    }

    const Impl& model_;
    const IntegerEncoderPicture& picture_;
};

IntegerEncoder::IntegerEncoder(const IntegerEncoderView& model) : impl_(new Impl) {
    const auto make = [&](const ExactLayerView& view, int inputs) {
        if (view.inputs != inputs) throw std::invalid_argument("a layer does not fit the encoder's sizes");
        return make_layer(view, -1);
    };
    const int width = model.first.outputs;
    impl_->first = make(model.first, model.first.inputs);
    for (const ExactLayerView& view : model.convolutions) {
        impl_->convolutions.push_back(make(view, width));
        if (view.outputs != width) throw std::invalid_argument("a layer does not fit the encoder's sizes");
    }
    if (model.convolutions.size() % 2 != 0) throw std::invalid_argument("a block has two convolutions");
    impl_->head = make(model.head, width);
    if (!model.has_local_gain) return;
    impl_->local_gain = make(model.local_gain, width);
    if (impl_->local_gain->outputs != impl_->head->outputs || impl_->local_gain->zero != impl_->head->zero) {
        throw std::invalid_argument("the local gains do not fit the head");
    }
}

IntegerEncoder::~IntegerEncoder() = default;

void IntegerEncoder::run(const IntegerEncoderPicture& picture, int threads, Cpu cpu) const {
    if (picture.height < 1 || picture.width < 1) return;
    Impl::Run(*impl_, picture, threads, cpu).encode();
}

int IntegerEncoder::inputs() const {
    return impl_->first->inputs;
}
int IntegerEncoder::width() const {
    return impl_->first->outputs;
}
int IntegerEncoder::outputs() const {
    return impl_->head->outputs;
}
int IntegerEncoder::num_modulators() const {
    return static_cast<int>(impl_->convolutions.size() / 2);
}
bool IntegerEncoder::has_local_gain() const {
    return impl_->local_gain != nullptr;
}

}  // namespace l2c
