// Attention in plain f32 arithmetic for every shape and element type: what checks run with, and models whose
// heads the tensor cores' kernels do not know. CPU form: ../attention.rs.
// Source: DeepSeek-V2 (arXiv:2405.04434) section 2.1 and appendix C.

#include "warp.cuh"
#include "merge.cuh"

constexpr int KEYS = 32;  // positions between two corrections of the sums
constexpr int THREADS = 128;

// One query's softmax over `visible` rows. A key is the row's `key_width` elements of `keys` followed by
// `shared_width` elements of `shared`; a value is the row's `value_width` elements of `values`, `stride` and
// `shared_stride` elements a row. `row(position)` is where a position lies. sums [value_width] in shared
// memory gets the weighted sum of values; gives the logarithm of the weights' sum.
template <typename T, typename Query, typename Row>
__device__ float attend(Query query, const T* keys, int key_width, const T* values, int value_width, int64_t stride,
                        const T* shared, int shared_width, int64_t shared_stride, Row row, int visible, float scale,
                        float* sums) {
    __shared__ float scores[KEYS];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < value_width; i += THREADS) sums[i] = 0;
    float largest = -INFINITY, sum = 0;
    for (int start = 0; start < visible; start += KEYS) {
        int count = min(KEYS, visible - start);
        __syncthreads();
        for (int j = warp; j < KEYS; j += THREADS / 32) {
            float product = 0;
            if (j < count) {
                const T* key = keys + row(start + j) * stride;
                const T* rest = shared + row(start + j) * shared_stride;
                for (int i = lane; i < key_width; i += 32) product = fmaf(query(i), widen(key[i]), product);
                for (int i = lane; i < shared_width; i += 32) {
                    product = fmaf(query(key_width + i), widen(rest[i]), product);
                }
            }
            product = lanes_sum(product);
            if (lane == 0) scores[j] = j < count ? product * scale : -INFINITY;
        }
        __syncthreads();
        float now = fmaxf(largest, lanes_max(scores[lane]));
        float shrink = expf(largest - now);
        float weight = expf(scores[lane] - now);
        sum = sum * shrink + lanes_sum(weight);
        largest = now;
        for (int i = threadIdx.x; i < value_width; i += THREADS) {
            float value = sums[i] * shrink;
            for (int j = 0; j < count; j++) {
                value = fmaf(expf(scores[j] - now), widen(values[row(start + j) * stride + i]), value);
            }
            sums[i] = value;
        }
    }
    for (int i = threadIdx.x; i < value_width; i += THREADS) sums[i] /= sum;
    return largest + logf(sum);
}

// Generated tokens: absorbed queries [n, heads, stride] over the cache's blocks. tokens [n, 2]: visible
// positions, and where the sequence's blocks begin in `tables`; pool [slots, stride]; out [n, heads, latent].
// A block a head and token; shared memory: latent floats.
template <typename T>
__device__ void attend_latents(const T* queries, const T* pool, const uint32_t* tables, const uint32_t* tokens, T* out,
                               int heads, int latent, int rope, int stride, int block_tokens, float scale) {
    DYNAMIC_SHARED(float, sums);
    int64_t head = (int64_t)blockIdx.y * heads + blockIdx.x;
    int visible = tokens[2 * blockIdx.y];
    const uint32_t* table = tables + tokens[2 * blockIdx.y + 1];
    auto query = [&](int i) { return widen(queries[head * stride + i]); };
    auto row = [&](int position) {
        return (int64_t)table[position / block_tokens] * block_tokens + position % block_tokens;
    };
    attend<T>(query, pool, latent + rope, pool, latent, stride, pool, 0, stride, row, visible, scale, sums);
    for (int i = threadIdx.x; i < latent; i += THREADS) narrow(out[head * latent + i], sums[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attend_latents_f32(const float* queries, const float* pool, const uint32_t* tables, const uint32_t* tokens,
                       float* out, int heads, int latent, int rope, int stride, int block_tokens, float scale) {
    attend_latents(queries, pool, tables, tokens, out, heads, latent, rope, stride, block_tokens, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attend_latents_bf16(const bf16* queries, const bf16* pool, const uint32_t* tables, const uint32_t* tokens,
                        bf16* out, int heads, int latent, int rope, int stride, int block_tokens, float scale) {
    attend_latents(queries, pool, tables, tokens, out, heads, latent, rope, stride, block_tokens, scale);
}

// Prompt tokens: turned queries [tokens, heads, nope + rope] over expanded keys and values [rows, heads,
// nope | value] and the latents they come from, [rows, stride], whose columns behind the latent are the shared
// key. tiles as in merge.cuh; out [tokens, heads, value] and logs [tokens, heads] are f32.
// Grid (tiles, heads, TILE_QUERIES); shared memory: value floats.
template <typename T>
__device__ void attend_expanded(const float* queries, const T* expanded, const T* latents, const uint32_t* tiles,
                                float* out, float* logs, int heads, int nope, int rope, int value, int latent,
                                int stride, float scale) {
    DYNAMIC_SHARED(float, sums);
    Tile tile(tiles, blockIdx.x);
    int index = blockIdx.z, head = blockIdx.y;
    int visible = tile.visible(index);
    if (index >= tile.queries || visible <= 0) return;
    int64_t place = (int64_t)(tile.first_query + index) * heads + head;
    auto query = [&](int i) { return queries[place * (nope + rope) + i]; };
    auto row = [&](int position) { return (int64_t)tile.first_row + position; };
    const T* keys = expanded + head * (nope + value);
    float log = attend<T>(query, keys, nope, keys + nope, value, (int64_t)heads * (nope + value), latents + latent,
                          rope, stride, row, visible, scale, sums);
    Merge merge(tile.start > 0, logs[place], log);
    for (int i = threadIdx.x; i < value; i += THREADS) merge.into(out[place * value + i], sums[i]);
    __syncthreads();
    if (threadIdx.x == 0) logs[place] = merge.log;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attend_expanded_f32(const float* queries, const float* expanded, const float* latents, const uint32_t* tiles,
                        float* out, float* logs, int heads, int nope, int rope, int value, int latent, int stride,
                        float scale) {
    attend_expanded(queries, expanded, latents, tiles, out, logs, heads, nope, rope, value, latent, stride, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attend_expanded_bf16(const float* queries, const bf16* expanded, const bf16* latents, const uint32_t* tiles,
                         float* out, float* logs, int heads, int nope, int rope, int value, int latent, int stride,
                         float scale) {
    attend_expanded(queries, expanded, latents, tiles, out, logs, heads, nope, rope, value, latent, stride, scale);
}
