#include "check.h"
#include "../rope.cu"

double turned_in_f64(const float* pair, int i, double angle) {
    return i % 2 ? pair[0] * std::sin(angle) + pair[1] * std::cos(angle) : pair[0] * std::cos(angle) - pair[1] * std::sin(angle);
}

int main() {
    in_all_ways([] {
        int tokens = 3, heads = 2, nope = 5, rope = 6, latent = 20, stride = 32, width = heads * (nope + rope);
        std::vector<float> cos, sin;
        auto angle = [&](int token, int pair) { return 0.3 * token * (pair + 1); };
        for (int i = 0; i < tokens * rope / 2; i++) {
            cos.push_back(std::cos(angle(i / (rope / 2), i % (rope / 2))));
            sin.push_back(std::sin(angle(i / (rope / 2), i % (rope / 2))));
        }
        auto q = numbers<float>(tokens * width);
        std::vector<float> turned(q.size());
        emulated::launch({(unsigned)tokens}, 64, 0, [&] {
            rotate_queries(q.data(), cos.data(), sin.data(), turned.data(), width, nope + rope, rope);
        });
        Comparison queries{"turned queries", 1e-6};
        for (int i = 0; i < tokens * width; i++) {
            int at = i % (nope + rope) - nope;
            queries.add(turned[i], at < 0 ? q[i] : turned_in_f64(&q[i - at % 2], at, angle(i / width, at / 2)));
        }

        auto kv = numbers<float>(tokens * (latent + rope)), weight = numbers<float>(latent);
        std::vector<uint32_t> slots = {7, 0, 4};
        std::vector<float> pool(8 * stride, 9);
        std::vector<bf16> half(8 * stride);
        emulated::launch({(unsigned)tokens}, 64, 0, [&] {
            store_latents_f32(kv.data(), weight.data(), 1e-6f, cos.data(), sin.data(), slots.data(), pool.data(), latent, rope, stride);
        });
        emulated::launch({(unsigned)tokens}, 64, 0, [&] {
            store_latents_bf16(kv.data(), weight.data(), 1e-6f, cos.data(), sin.data(), slots.data(), half.data(), latent, rope, stride);
        });
        Comparison latents{"latents", 1e-5}, rounded{"latents in bf16", 4e-3};
        for (int t = 0; t < tokens; t++) {
            const float* row = &kv[t * (latent + rope)];
            double squares = 0;
            for (int i = 0; i < latent; i++) squares += wide(row[i]) * row[i];
            for (int i = 0; i < latent + rope; i++) {
                int at = i - latent;
                double expected = at < 0 ? row[i] / std::sqrt(squares / latent + 1e-6) * weight[i]
                                         : turned_in_f64(row + latent + at / 2 * 2, at, angle(t, at / 2));
                latents.add(pool[slots[t] * stride + i], expected), rounded.add(wide(half[slots[t] * stride + i]), expected);
            }
        }
        latents.add(pool[1 * stride], 9), latents.add(pool[7 * stride + latent + rope], 9);

        std::vector<uint32_t> rows = {2, 0};
        std::vector<float> plain(2 * heads * nope), absorbed(2 * heads * stride, 9);
        emulated::launch({2}, 64, 0, [&] {
            split_queries_f32(turned.data(), rows.data(), plain.data(), absorbed.data(), heads, nope, rope, latent, stride);
        });
        Comparison split{"split queries", 0};
        for (int n = 0; n < 2; n++) {
            for (int h = 0; h < heads; h++) {
                const float* head = &turned[rows[n] * width + h * (nope + rope)];
                for (int i = 0; i < nope; i++) split.add(plain[(n * heads + h) * nope + i], head[i]);
                for (int i = 0; i < stride; i++) {
                    double expected = i < latent ? 9 : i < latent + rope ? head[nope + i - latent] : 0;
                    split.add(absorbed[(n * heads + h) * stride + i], expected);
                }
            }
        }
    });
}
