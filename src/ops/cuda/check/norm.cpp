#include "check.h"
#include "../norm.cu"

int main() {
    in_all_ways([] {
        for (int width : {1, 40, 512}) {
            int rows = 3, stride = width + 8;
            auto x = numbers<float>(rows * stride), weight = numbers<float>(width);
            std::vector<float> out(rows * width);
            emulated::launch({3}, 128, 0, [&] { rms_norm(x.data(), stride, weight.data(), 1e-6f, out.data(), width); });
            Comparison norm{"norm", 1e-5};
            for (int r = 0; r < rows; r++) {
                double squares = 0;
                for (int i = 0; i < width; i++) squares += wide(x[r * stride + i]) * x[r * stride + i];
                double scale = 1 / std::sqrt(squares / width + 1e-6);
                for (int i = 0; i < width; i++) norm.add(out[r * width + i], x[r * stride + i] * scale * weight[i]);
            }
        }
        int rows = 5, width = 33, elements = rows * width;
        auto products = numbers<float>(2 * elements, 4);
        std::vector<float> exact(elements);
        std::vector<bf16> rounded(elements);
        emulated::launch({2}, 128, 0, [&] { gate_f32(products.data(), exact.data(), width, elements); });
        emulated::launch({2}, 128, 0, [&] { gate_bf16(products.data(), rounded.data(), width, elements); });
        Comparison f32{"gate", 1e-6}, half{"gate in bf16", 4e-3};
        for (int i = 0; i < elements; i++) {
            double gate = products[i / width * 2 * width + i % width], up = products[i / width * 2 * width + width + i % width];
            double expected = gate / (1 + std::exp(-gate)) * up;
            f32.add(exact[i], expected), half.add(wide(rounded[i]), expected);
        }
    });
}
