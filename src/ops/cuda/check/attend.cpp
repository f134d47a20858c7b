#include "attention.h"
#include "../attend.cu"

template <typename T, typename Kernel>
void check_latents(const char* what, double tolerance, Kernel kernel) {
    std::vector<int> visible = {1, 40, 33};
    Cache cache(visible);
    const int tokens = visible.size(), heads = 3, latent = 20, rope = 6, stride = 32;
    const float scale = 0.3f;
    auto queries = numbers<T>(tokens * heads * stride), pool = numbers<T>(cache.slots() * stride);
    std::vector<T> out(tokens * heads * latent);
    emulated::launch({(unsigned)heads, (unsigned)tokens}, THREADS, 4 * latent, [&] {
        kernel(queries.data(), pool.data(), cache.tables.data(), cache.tokens.data(), out.data(), heads, latent, rope, stride, cache.block, scale);
    });
    Comparison attended{what, tolerance};
    for (int i = 0; i < tokens * heads; i++) {
        auto row = [&](int p) { return &pool[cache.slot(i / heads, p) * stride]; };
        auto score = [&](int p) {
            double sum = 0;
            for (int c = 0; c < latent + rope; c++) sum += wide(queries[i * stride + c]) * wide(row(p)[c]);
            return sum;
        };
        auto expected = attention(visible[i / heads], latent, scale, score, [&](int p, int c) { return wide(row(p)[c]); });
        for (int c = 0; c < latent; c++) attended.add(wide(out[i * latent + c]), expected[c]);
    }
}

// One prompt of 70 positions whose queries are the last 66, in two pieces.
template <typename T, typename Kernel>
void check_expanded(const char* what, Kernel kernel) {
    const int heads = 2, nope = 10, rope = 6, value = 12, latent = 20, stride = 32, tokens = 66;
    const float scale = 0.3f;
    auto queries = numbers<float>(tokens * heads * (nope + rope));
    auto expanded = numbers<T>(70 * heads * (nope + value)), latents = numbers<T>(70 * stride);
    std::vector<uint32_t> tiles[2] = {{0, 64, 4, 0, 32, 0, 64, 2, 68, 0, 32, 0}, {0, 64, 4, 32, 38, 32, 64, 2, 68, 32, 38, 32}};
    std::vector<float> out(tokens * heads * value), logs(tokens * heads);
    for (auto& call : tiles) {
        emulated::launch({2, (unsigned)heads, TILE_QUERIES}, THREADS, 4 * value, [&] {
            kernel(queries.data(), expanded.data(), latents.data(), call.data(), out.data(), logs.data(), heads, nope, rope, value, latent, stride, scale);
        });
    }
    Comparison attended{what, 1e-5};
    for (int i = 0; i < tokens * heads; i++) {
        auto row = [&](int p) { return &expanded[(p * heads + i % heads) * (nope + value)]; };
        auto score = [&](int p) {
            double sum = 0;
            for (int c = 0; c < nope + rope; c++) {
                sum += wide(queries[i * (nope + rope) + c]) * wide(c < nope ? row(p)[c] : latents[p * stride + latent + c - nope]);
            }
            return sum;
        };
        auto expected = attention(4 + i / heads + 1, value, scale, score, [&](int p, int c) { return wide(row(p)[nope + c]); });
        for (int c = 0; c < value; c++) attended.add(out[i * value + c], expected[c]);
    }
}

int main() {
    in_all_ways([] {
        check_latents<float>("latents", 1e-5, attend_latents_f32);
        check_latents<bf16>("latents in bf16", 4e-3, attend_latents_bf16);
        check_expanded<float>("expanded", attend_expanded_f32);
        check_expanded<bf16>("expanded in bf16", attend_expanded_bf16);
    });
}
