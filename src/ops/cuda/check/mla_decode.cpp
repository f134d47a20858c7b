#include "attention.h"
#include "../mla_decode.cu"

template <typename Kernel>
void check(const char* what, Kernel kernel, int tile_heads, int heads, int split, const std::vector<int>& visible) {
    Cache cache(visible);
    int tokens = visible.size(), longest = 0;
    for (int count : visible) longest = max(longest, count);
    auto queries = numbers<bf16>(tokens * heads * WIDTH), pool = numbers<bf16>(cache.slots() * WIDTH);
    std::vector<bf16> out(tokens * heads * LATENT);
    int splits = (longest + split - 1) / split;
    std::vector<float> partial(splits > 1 ? (size_t)tokens * splits * heads * LATENT : 0), logs(tokens * splits * heads);
    const float scale = 0.1f;
    Dimensions grid = {(unsigned)(heads + tile_heads - 1) / tile_heads, (unsigned)tokens, (unsigned)splits};
    emulated::launch(grid, THREADS, shared_bytes(tile_heads), [&] {
        kernel(queries.data(), pool.data(), cache.tables.data(), cache.tokens.data(), out.data(),
               splits > 1 ? partial.data() : nullptr, logs.data(), heads, cache.block, split, scale);
    });
    if (splits > 1) {
        emulated::launch({(unsigned)heads, (unsigned)tokens}, 128, 0, [&] {
            merge_splits(partial.data(), logs.data(), cache.tokens.data(), out.data(), heads, splits, split);
        });
    }
    Comparison attended{what, 6e-3};
    for (int t = 0; t < tokens; t++) {
        for (int h = 0; h < heads; h++) {
            const bf16* query = &queries[(t * heads + h) * WIDTH];
            auto row = [&](int p) { return &pool[cache.slot(t, p) * WIDTH]; };
            auto score = [&](int p) {
                double sum = 0;
                for (int i = 0; i < WIDTH; i++) sum += wide(query[i]) * wide(row(p)[i]);
                return sum;
            };
            auto expected = attention(visible[t], LATENT, scale, score, [&](int p, int i) { return wide(row(p)[i]); });
            for (int i = 0; i < LATENT; i++) attended.add(wide(out[(t * heads + h) * LATENT + i]), expected[i]);
        }
    }
}

int main() {
    in_all_ways([] {
        check("decode, 16 heads", mla_decode_16, 16, 16, 1024, {1, 70});
        check("decode, 16 heads, splits", mla_decode_16, 16, 10, 64, {1, 64, 150});
        check("decode, 64 heads", mla_decode_64, 64, 80, 1024, {45});
    });
}
