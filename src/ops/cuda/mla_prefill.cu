// Attention of prompt tokens on tensor cores, through expanded keys and values, causal, over pieces of
// positions. CPU form: `attend_prompts` in ../attention.rs. Source: DeepSeek-V2 (arXiv:2405.04434) section 2.1;
// online softmax as in FlashAttention-2 (arXiv:2307.08691).

#include "merge.cuh"

constexpr int NOPE = 128, ROPE = 64, KEY = NOPE + ROPE, VALUE = 128;
constexpr int KEY_PITCH = KEY + 8, VALUE_PITCH = VALUE + 8;  // rows of a matrix load in different banks
constexpr int KEYS = 64;                                     // positions of a step
constexpr int THREADS = 128;                                 // each warp has 16 queries

// queries [tokens, heads, KEY] f32; expanded [rows, heads, NOPE | VALUE]; latents [rows, stride], whose columns
// behind `latent` are the shared key; out [tokens, heads, VALUE] and logs [tokens, heads] f32. Grid (tiles, heads);
// shared memory: TILE_QUERIES + KEYS rows of KEY_PITCH and KEYS of VALUE_PITCH.
extern "C" __global__ void __launch_bounds__(THREADS)
    mla_prefill(const float* queries, const bf16* expanded, const bf16* latents, const uint32_t* tiles, float* out,
                float* logs, int heads, int latent, int stride, float scale) {
    DYNAMIC_SHARED(bf16, query);
    bf16* key = query + TILE_QUERIES * KEY_PITCH;
    bf16* value = key + KEYS * KEY_PITCH;
    const Tile tile(tiles, blockIdx.x);
    const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t row_width = (int64_t)heads * (NOPE + VALUE);

    for (int i = threadIdx.x; i < TILE_QUERIES * KEY; i += THREADS) {
        int index = i / KEY, at = i % KEY;
        float x = index < tile.queries ? queries[((int64_t)(tile.first_query + index) * heads + head) * KEY + at] : 0;
        query[index * KEY_PITCH + at] = __float2bfloat16(x);
    }
    auto load = [&](int start) {
        for (int i = threadIdx.x; i < KEYS * ((KEY + VALUE) / 8); i += THREADS) {
            int index = i / ((KEY + VALUE) / 8), at = i % ((KEY + VALUE) / 8) * 8;
            bool valid = start + index < tile.positions;
            int64_t row = tile.first_row + (valid ? start + index : 0);
            const bf16* own = expanded + row * row_width + head * (NOPE + VALUE);
            if (at < NOPE) copy16(key + index * KEY_PITCH + at, own + at, valid);
            else if (at < KEY) copy16(key + index * KEY_PITCH + at, latents + row * stride + latent + at - NOPE, valid);
            else copy16(value + index * VALUE_PITCH + at - KEY, own + NOPE + at - KEY, valid);
        }
    };
    const int own[2] = {16 * warp + lane / 4, 16 * warp + lane / 4 + 8};  // this lane's queries
    const int visible[2] = {tile.visible(own[0]), tile.visible(own[1])};
    const int most = tile.visible(tile.queries - 1);
    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    float sums[VALUE / 8][4] = {};

    for (int start = 0; start < most; start += KEYS) {
        __syncthreads();
        load(start);
        close_copies();
        await_copies<0>();
        __syncthreads();
        float scores[KEYS / 8][4] = {};
        for (int k = 0; k < KEY; k += 16) {
            uint32_t left[4];
            load_matrices(left, query + (16 * warp + lane % 16) * KEY_PITCH + k + lane / 16 * 8);
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                uint32_t right[4];
                load_matrices(right, key + (8 * n + lane % 8 + lane / 16 * 8) * KEY_PITCH + k + lane / 8 % 2 * 8);
                multiply_add(scores[n], left, right[0], right[1]);
                multiply_add(scores[n + 1], left, right[2], right[3]);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = largest[half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[n][2 * half + i];
                    score = start + 8 * n + lane % 4 * 2 + i < visible[half] ? score * scale : -INFINITY;
                    top = fmaxf(top, score);
                }
            }
            top = lanes_max(top, 4);
            // A query that sees nothing yet keeps -inf; 0 in its place makes all its weights 0.
            float shift = top == -INFINITY ? 0 : top;
            float shrink = expf(largest[half] - shift), added = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[n][2 * half + i];
                    score = expf(score - shift);
                    added += score;
                }
            }
            sum[half] = sum[half] * shrink + lanes_sum(added, 4);
            largest[half] = top;
#pragma unroll
            for (int n = 0; n < VALUE / 8; n++) sums[n][2 * half] *= shrink, sums[n][2 * half + 1] *= shrink;
        }
#pragma unroll
        for (int k = 0; k < KEYS / 8; k += 2) {
            // The sums of two neighbouring products are the left factor of the next one.
            uint32_t left[4] = {pack(scores[k][0], scores[k][1]), pack(scores[k][2], scores[k][3]),
                                pack(scores[k + 1][0], scores[k + 1][1]), pack(scores[k + 1][2], scores[k + 1][3])};
#pragma unroll
            for (int n = 0; n < VALUE / 8; n += 2) {
                uint32_t right[4];
                load_transposed(right, value + (8 * k + lane % 16) * VALUE_PITCH + 8 * n + lane / 16 * 8);
                multiply_add(sums[n], left, right[0], right[1]);
                multiply_add(sums[n + 1], left, right[2], right[3]);
            }
        }
    }

    auto place_of = [&](int index) { return (int64_t)(tile.first_query + index) * heads + head; };
    float earlier[2] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (own[half] < tile.queries) earlier[half] = logs[place_of(own[half])];
    }
    // Four lanes read a logarithm that one of them replaces.
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (own[half] >= tile.queries || visible[half] <= 0) continue;
        int64_t place = place_of(own[half]);
        Merge merge(tile.start > 0, earlier[half], largest[half] + logf(sum[half]));
#pragma unroll
        for (int n = 0; n < VALUE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float* target = out + place * VALUE + 8 * n + lane % 4 * 2 + i;
                merge.into(*target, sums[n][2 * half + i] / sum[half]);
            }
        }
        if (lane % 4 == 0) logs[place] = merge.log;
    }
}
