// Attention of generated tokens on tensor cores: absorbed queries of many heads over the latents of one
// sequence, which all heads share. Positions are split into ranges of fixed size, merged in their order.
// CPU form: `attend_generated` in ../attention.rs. Source: DeepSeek-V2 (arXiv:2405.04434) appendix C.

#include "warp.cuh"

constexpr int LATENT = 512;
constexpr int WIDTH = 576;          // latent and shared key
constexpr int PITCH = WIDTH + 8;    // so that the rows of a matrix load fall into different banks
constexpr int TILE = 32;            // positions of a step
constexpr int SCORE_PITCH = TILE + 4, WEIGHT_PITCH = TILE + 8;
constexpr int WARPS = 8, THREADS = 32 * WARPS;

// Shared memory of a block of `heads` heads, in bytes: queries, two steps' latents, scores, weights, state.
constexpr int shared_bytes(int heads) {
    return 2 * PITCH * (heads + 2 * TILE) + 4 * heads * SCORE_PITCH + 2 * heads * WEIGHT_PITCH + 12 * heads;
}

// queries [tokens, heads, WIDTH]; pool [slots, WIDTH]; tables: block numbers; tokens [tokens, 2]: visible
// positions, and where the sequence's blocks begin in `tables`. out [tokens, heads, LATENT] if no token sees
// more than `split` positions; else partial [tokens, splits, heads, LATENT] and logs [tokens, splits, heads].
// A block takes 16 * M heads of one token; grid (groups of heads, tokens, splits).
template <int M>
__device__ void mla_decode(const bf16* queries, const bf16* pool, const uint32_t* tables, const uint32_t* tokens,
                           bf16* out, float* partial, float* logs, int heads, int block_tokens, int split,
                           float scale) {
    constexpr int HEADS = 16 * M, GROUPS = WARPS / M;     // warps are M tiles of heads by GROUPS of columns
    constexpr int COLUMNS = LATENT / GROUPS, N = COLUMNS / 8;
    constexpr int SOFTENERS = THREADS / HEADS;            // threads of one head's softmax
    DYNAMIC_SHARED(bf16, query);
    bf16* latents = query + HEADS * PITCH;
    float* scores = reinterpret_cast<float*>(latents + 2 * TILE * PITCH);
    bf16* weights = reinterpret_cast<bf16*>(scores + HEADS * SCORE_PITCH);
    float* largest = reinterpret_cast<float*>(weights + HEADS * WEIGHT_PITCH);
    float* sums = largest + HEADS;
    float* shrinks = sums + HEADS;

    const int token = blockIdx.y, first_head = blockIdx.x * HEADS;
    const int begin = blockIdx.z * split, end = min((int)tokens[2 * token], begin + split);
    const uint32_t* table = tables + tokens[2 * token + 1];
    if (begin >= end) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp / GROUPS * 16, group = warp % GROUPS;

    for (int i = threadIdx.x; i < HEADS * (WIDTH / 8); i += THREADS) {
        int head = i / (WIDTH / 8), at = i % (WIDTH / 8) * 8;
        bool valid = first_head + head < heads;
        int64_t source = valid ? ((int64_t)token * heads + first_head + head) * WIDTH + at : 0;
        copy16(query + head * PITCH + at, queries + source, valid);
    }
    auto load = [&](int start, bf16* target) {
        for (int i = threadIdx.x; i < TILE * (WIDTH / 8); i += THREADS) {
            int at = i % (WIDTH / 8) * 8, position = start + i / (WIDTH / 8);
            bool valid = position < end;
            int64_t slot = valid ? (int64_t)table[position / block_tokens] * block_tokens + position % block_tokens : 0;
            copy16(target + i / (WIDTH / 8) * PITCH + at, pool + slot * WIDTH + at, valid);
        }
    };
    for (int i = threadIdx.x; i < HEADS; i += THREADS) largest[i] = -INFINITY, sums[i] = 0;
    load(begin, latents);
    close_copies();

    float values[N][4] = {};
    for (int start = begin, buffer = 0; start < end; start += TILE, buffer ^= 1) {
        const bf16* tile = latents + buffer * TILE * PITCH;
        await_copies<0>();
        __syncthreads();
        if (start + TILE < end) load(start + TILE, latents + (buffer ^ 1) * TILE * PITCH);
        close_copies();

        if (group < TILE / 16) {
            float products[2][4] = {};
            for (int k = 0; k < WIDTH; k += 16) {
                uint32_t left[4], right[4];
                load_matrices(left, query + (row + lane % 16) * PITCH + k + lane / 16 * 8);
                load_matrices(right, tile + (16 * group + lane % 8 + lane / 16 * 8) * PITCH + k + lane / 8 % 2 * 8);
                multiply_add(products[0], left, right[0], right[1]);
                multiply_add(products[1], left, right[2], right[3]);
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int head = row + lane / 4 + i / 2 * 8, position = 16 * group + 8 * n + lane % 4 * 2 + i % 2;
                    bool seen = start + position < end;
                    scores[head * SCORE_PITCH + position] = seen ? products[n][i] * scale : -INFINITY;
                }
            }
        }
        __syncthreads();
        {
            int head = threadIdx.x / SOFTENERS, part = threadIdx.x % SOFTENERS;
            float* score = scores + head * SCORE_PITCH;
            float top = largest[head];
            for (int i = part; i < TILE; i += SOFTENERS) top = fmaxf(top, score[i]);
            top = lanes_max(top, SOFTENERS);
            float sum = 0;
            for (int i = part; i < TILE; i += SOFTENERS) {
                float weight = expf(score[i] - top);
                sum += weight;
                weights[head * WEIGHT_PITCH + i] = __float2bfloat16(weight);
            }
            sum = lanes_sum(sum, SOFTENERS);
            if (part == 0) {
                float shrink = expf(largest[head] - top);
                shrinks[head] = shrink, sums[head] = sums[head] * shrink + sum, largest[head] = top;
            }
        }
        __syncthreads();
        float upper = shrinks[row + lane / 4], lower = shrinks[row + lane / 4 + 8];
#pragma unroll
        for (int n = 0; n < N; n++) {
            values[n][0] *= upper, values[n][1] *= upper, values[n][2] *= lower, values[n][3] *= lower;
        }
        for (int k = 0; k < TILE; k += 16) {
            uint32_t left[4];
            load_matrices(left, weights + (row + lane % 16) * WEIGHT_PITCH + k + lane / 16 * 8);
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                uint32_t right[4];
                load_transposed(right, tile + (k + lane % 16) * PITCH + group * COLUMNS + 8 * n + lane / 16 * 8);
                multiply_add(values[n], left, right[0], right[1]);
                multiply_add(values[n + 1], left, right[2], right[3]);
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        int own = row + lane / 4 + 8 * half, head = first_head + own;
        if (head >= heads) continue;
        float factor = 1.0f / sums[own];
        int64_t place = partial ? ((int64_t)token * gridDim.z + blockIdx.z) * heads + head : (int64_t)token * heads + head;
        if (partial && group == 0 && lane % 4 == 0) logs[place] = largest[own] + logf(sums[own]);
#pragma unroll
        for (int n = 0; n < N; n++) {
            int64_t column = place * LATENT + group * COLUMNS + 8 * n + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float value = values[n][2 * half + i] * factor;
                if (partial) partial[column + i] = value;
                else out[column + i] = __float2bfloat16(value);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mla_decode_16(const bf16* queries, const bf16* pool, const uint32_t* tables, const uint32_t* tokens, bf16* out,
                  float* partial, float* logs, int heads, int block_tokens, int split, float scale) {
    mla_decode<1>(queries, pool, tables, tokens, out, partial, logs, heads, block_tokens, split, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mla_decode_64(const bf16* queries, const bf16* pool, const uint32_t* tables, const uint32_t* tokens, bf16* out,
                  float* partial, float* logs, int heads, int block_tokens, int split, float scale) {
    mla_decode<4>(queries, pool, tables, tokens, out, partial, logs, heads, block_tokens, split, scale);
}

// Joins the splits of each token, in their order. A block of 128 a head and token.
extern "C" __global__ void merge_splits(const float* partial, const float* logs, const uint32_t* tokens, bf16* out,
                                        int heads, int splits, int split) {
    int head = blockIdx.x, token = blockIdx.y;
    int own = (tokens[2 * token] + split - 1) / split;
    auto place = [&](int s) { return ((int64_t)token * splits + s) * heads + head; };
    float largest = -INFINITY, sum = 0;
    for (int s = 0; s < own; s++) largest = fmaxf(largest, logs[place(s)]);
    for (int s = 0; s < own; s++) sum += expf(logs[place(s)] - largest);
    for (int i = threadIdx.x; i < LATENT; i += blockDim.x) {
        float value = 0;
        for (int s = 0; s < own; s++) value += expf(logs[place(s)] - largest) * partial[place(s) * LATENT + i];
        out[((int64_t)token * heads + head) * LATENT + i] = __float2bfloat16(value / sum);
    }
}
