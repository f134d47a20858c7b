#include "check.h"
#include "../norm.cu"

int main() {
    in_all_ways([] {
        for (int width : {1, 40, 512}) {
            int rows = 3, stride = width + 8;
            auto x = numbers<float>(rows * stride), y = numbers<float>(rows * width), weight = numbers<float>(width);
            std::vector<float> out(rows * width), sums(rows * width);
            emulated::launch({3}, 128, 0, [&] {
                rms_norm(x.data(), nullptr, stride, weight.data(), 1e-6f, nullptr, out.data(), width);
            });
            Comparison norm{"norm", 1e-5};
            auto compare = [&](const float* rows_of, int pitch) {
                for (int r = 0; r < rows; r++) {
                    const float* row = rows_of + r * pitch;
                    double squares = 0;
                    for (int i = 0; i < width; i++) squares += wide(row[i]) * row[i];
                    double scale = 1 / std::sqrt(squares / width + 1e-6);
                    for (int i = 0; i < width; i++) norm.add(out[r * width + i], row[i] * scale * weight[i]);
                }
            };
            compare(x.data(), stride);
            emulated::launch({3}, 128, 0, [&] {
                rms_norm(x.data(), y.data(), width, weight.data(), 1e-6f, sums.data(), out.data(), width);
            });
            Comparison sum{"sum", 0};
            for (int i = 0; i < rows * width; i++) sum.add(sums[i], x[i] + y[i]);
            compare(sums.data(), width);
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
