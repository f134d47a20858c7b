#include "check.h"
#include "../experts.cu"

template <typename T, typename Kernel>
void check(const char* what, Kernel kernel, unsigned threads, int tile_rows, int tile_columns, bool gathered, int inputs) {
    const int outputs = 72, tokens = 50;
    std::vector<uint32_t> starts = {0, 0, 3, 3 + 2 * (uint32_t)tile_rows + 1, 3 + 2 * (uint32_t)tile_rows + 1, 180 + 2 * (uint32_t)tile_rows};
    const int experts = starts.size() - 1, routes = starts.back();
    auto x = numbers<T>((gathered ? tokens : routes) * inputs);
    std::vector<uint32_t> rows;
    for (int r = 0; r < routes; r++) rows.push_back(r * 7 % tokens);
    std::vector<std::vector<T>> held;
    std::vector<uint64_t> weights;
    for (int e = 0; e < experts; e++) held.push_back(numbers<T>(outputs * inputs));
    for (auto& weight : held) weights.push_back((uint64_t)weight.data());
    std::vector<float> out(routes * outputs);
    size_t bytes = sizeof(T) == 2 ? STAGES * (tile_rows + tile_columns) * PITCH * 2 : 0;
    unsigned columns = (outputs + tile_columns - 1) / tile_columns;
    emulated::launch({columns, (unsigned)experts, 2}, threads, bytes, [&] {
        kernel(x.data(), gathered ? rows.data() : nullptr, starts.data(), weights.data(), out.data(), outputs, inputs);
    });
    Comparison products{what, 1e-5};
    for (int e = 0; e < experts; e++) {
        for (uint32_t r = starts[e]; r < starts[e + 1]; r++) {
            for (int o = 0; o < outputs; o++) {
                double sum = 0;
                for (int i = 0; i < inputs; i++) sum += wide(x[(gathered ? rows[r] : r) * inputs + i]) * wide(held[e][o * inputs + i]);
                products.add(out[r * outputs + o], sum);
            }
        }
    }
}

int main() {
    in_all_ways([] {
        check<bf16>("products, tiles of 16", grouped_product_16, 128, 16, 64, true, 200);
        check<bf16>("products, tiles of 128", grouped_product_128, 256, 128, 128, true, 136);
        check<bf16>("products of sorted rows", grouped_product_16, 128, 16, 64, false, 64);
        check<float>("products in f32", grouped_product_f32, 256, 32, 64, true, 37);
    });
}
