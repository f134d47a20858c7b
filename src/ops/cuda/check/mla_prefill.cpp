#include "attention.h"
#include "../mla_prefill.cu"

// Two prompts in one step, the second one's positions in two pieces.
int main() {
    in_all_ways([] {
        const int heads = 2, latent = 24, stride = 96, tokens = 5 + 70;
        const float scale = 0.1f;
        auto queries = numbers<float>(tokens * heads * KEY);
        const int pieces[2] = {5 + 64, 30 + 3};  // rows of the two calls
        std::vector<bf16> expanded[2], latents[2];
        for (int call = 0; call < 2; call++) {
            expanded[call] = numbers<bf16>(pieces[call] * heads * (NOPE + VALUE));
            latents[call] = numbers<bf16>(pieces[call] * stride);
        }
        // The second prompt's queries are positions 24 to 93; its second piece begins at 64.
        std::vector<uint32_t> tiles[2] = {{0, 5, 0, 0, 5, 0, 5, 64, 24, 0, 64, 5, 69, 6, 88, 0, 64, 5},
                                          {5, 64, 24, 64, 30, 3, 69, 6, 88, 64, 30, 3}};
        std::vector<float> out(tokens * heads * VALUE), logs(tokens * heads);
        for (int call = 0; call < 2; call++) {
            size_t bytes = 2 * ((TILE_QUERIES + KEYS) * KEY_PITCH + KEYS * VALUE_PITCH);
            emulated::launch({(unsigned)tiles[call].size() / 6, (unsigned)heads}, THREADS, bytes, [&] {
                mla_prefill(queries.data(), expanded[call].data(), latents[call].data(), tiles[call].data(), out.data(),
                            logs.data(), heads, latent, stride, scale);
            });
        }
        Comparison attended{"prefill", 8e-3};
        for (int t = 0; t < tokens; t++) {
            for (int h = 0; h < heads; h++) {
                auto place = [&](int p) {
                    int call = t >= 5 && p >= 64, row = t < 5 ? p : call ? 3 + p - 64 : 5 + p;
                    return std::pair<const bf16*, const bf16*>(&expanded[call][(row * heads + h) * (NOPE + VALUE)],
                                                               &latents[call][row * stride + latent]);
                };
                auto score = [&](int p) {
                    double sum = 0;
                    for (int i = 0; i < KEY; i++) {
                        bf16 key = i < NOPE ? place(p).first[i] : place(p).second[i - NOPE];
                        sum += wide(__float2bfloat16(queries[(t * heads + h) * KEY + i])) * wide(key);
                    }
                    return sum;
                };
                int visible = t < 5 ? t + 1 : 24 + t - 5 + 1;
                auto expected = attention(visible, VALUE, scale, score, [&](int p, int i) { return wide(place(p).first[NOPE + i]); });
                for (int i = 0; i < VALUE; i++) attended.add(out[(t * heads + h) * VALUE + i], expected[i]);
            }
        }
    });
}
