// Rotary position embedding and the write of latents into the cache. Pairs are neighbours (2i, 2i + 1), as
// DeepSeek's checkpoints store them. CPU form: ../rope.rs.

#include "warp.cuh"

// Element `i` of pairs turned by the angles of one token.
__device__ inline float turned(const float* pairs, int i, const float* cos, const float* sin) {
    float a = pairs[i & ~1], b = pairs[i | 1];
    return i & 1 ? a * sin[i / 2] + b * cos[i / 2] : a * cos[i / 2] - b * sin[i / 2];
}

// Turns the last `rope` elements of every head. q and out [tokens, heads * head], cos and sin
// [tokens, rope / 2]. A block a token.
extern "C" __global__ void rotate_queries(const float* q, const float* cos, const float* sin, float* out, int width,
                                          int head, int rope) {
    int64_t token = blockIdx.x;
    q += token * width, out += token * width;
    cos += token * (rope / 2), sin += token * (rope / 2);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        int at = i % head - (head - rope);
        out[i] = at < 0 ? q[i] : turned(q + i - at, at, cos, sin);
    }
}

// Normalises each row's latent, turns its shared key and writes both to the row's slot of the cache.
// kv [tokens, latent + rope], weight [latent], slots [tokens], pool [slots, stride]. A block a token.
template <typename T>
__device__ void store_rows(const float* kv, const float* weight, float epsilon, const float* cos, const float* sin,
                           const uint32_t* slots, T* pool, int latent, int rope, int stride) {
    __shared__ float sums[32];
    int64_t token = blockIdx.x;
    kv += token * (latent + rope);
    cos += token * (rope / 2), sin += token * (rope / 2);
    T* row = pool + (int64_t)slots[token] * stride;
    float squares = 0;
    for (int i = threadIdx.x; i < latent; i += blockDim.x) squares += kv[i] * kv[i];
    float scale = 1.0f / sqrtf(block_sum(squares, sums) / latent + epsilon);
    for (int i = threadIdx.x; i < latent; i += blockDim.x) narrow(row[i], kv[i] * scale * weight[i]);
    for (int i = threadIdx.x; i < rope; i += blockDim.x) narrow(row[latent + i], turned(kv + latent, i, cos, sin));
}

extern "C" __global__ void store_latents_f32(const float* kv, const float* weight, float epsilon, const float* cos,
                                             const float* sin, const uint32_t* slots, float* pool, int latent,
                                             int rope, int stride) {
    store_rows(kv, weight, epsilon, cos, sin, slots, pool, latent, rope, stride);
}

extern "C" __global__ void store_latents_bf16(const float* kv, const float* weight, float epsilon, const float* cos,
                                              const float* sin, const uint32_t* slots, bf16* pool, int latent,
                                              int rope, int stride) {
    store_rows(kv, weight, epsilon, cos, sin, slots, pool, latent, rope, stride);
}

// Takes the queries of some rows apart: what is absorbed by a product, and the turned part that stays.
// q [tokens, heads * (nope + rope)], rows [n]; plain [n, heads, nope], absorbed [n, heads, stride] of which
// the columns behind the latent are written. A block a row.
template <typename T>
__device__ void split_rows(const float* q, const uint32_t* rows, T* plain, T* absorbed, int heads, int nope, int rope,
                           int latent, int stride) {
    int64_t n = blockIdx.x;
    q += (int64_t)rows[n] * heads * (nope + rope);
    plain += n * heads * nope, absorbed += n * heads * stride;
    int rest = stride - latent;
    for (int i = threadIdx.x; i < heads * nope; i += blockDim.x) {
        narrow(plain[i], q[i / nope * (nope + rope) + i % nope]);
    }
    for (int i = threadIdx.x; i < heads * rest; i += blockDim.x) {
        int head = i / rest, at = i % rest;
        narrow(absorbed[head * stride + latent + at], at < rope ? q[head * (nope + rope) + nope + at] : 0.0f);
    }
}

extern "C" __global__ void split_queries_f32(const float* q, const uint32_t* rows, float* plain, float* absorbed,
                                             int heads, int nope, int rope, int latent, int stride) {
    split_rows(q, rows, plain, absorbed, heads, nope, rope, latent, stride);
}

extern "C" __global__ void split_queries_bf16(const float* q, const uint32_t* rows, bf16* plain, bf16* absorbed,
                                              int heads, int nope, int rope, int latent, int stride) {
    split_rows(q, rows, plain, absorbed, heads, nope, rope, latent, stride);
}
