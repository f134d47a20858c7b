// The router: softmax, device-limited choice, weights; and the sort of routes by expert.
// Source: DeepSeek-V2 (arXiv:2405.04434) section 2.2.2. CPU forms: ../router.rs, ../experts.rs.

#include "warp.cuh"

// The place of a warp's largest value, the lowest on a tie. Values are no NaN; taken ones are below 0.
__device__ inline int largest(const float* values, int count) {
    float best = -2.0f;
    int place = 0x7fffffff;
    for (int i = threadIdx.x % 32; i < count; i += 32) {
        if (values[i] > best) best = values[i], place = i;
    }
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, best, step);
        int theirs = __shfl_xor_sync(ALL_LANES, place, step);
        if (other > best || (other == best && theirs < place)) best = other, place = theirs;
    }
    return place;
}

// Chooses `k` experts for each token, ascending, with their weights. logits [tokens, experts]; ids and
// weights [tokens, k]. groups 0: all experts compete; else they lie in `groups` groups of which `kept` count.
// normalise: weights are divided by their sum instead of multiplied by `scale`. A warp a token, 4 a block;
// shared memory: 4 * (2 * experts + groups + 2 * k) floats.
extern "C" __global__ void route(const float* logits, uint32_t* ids, float* weights, int tokens, int experts, int k,
                                 int groups, int kept, int normalise, float scale) {
    DYNAMIC_SHARED(float, memory);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t token = (int64_t)blockIdx.x * 4 + warp;
    if (token >= tokens) return;
    float* scores = memory + warp * (2 * experts + groups + 2 * k);
    float* open = scores + experts;
    float* best = open + experts;
    int* chosen = reinterpret_cast<int*>(best + groups);
    float* chosen_scores = reinterpret_cast<float*>(chosen + k);
    logits += token * experts;

    float top = -INFINITY, sum = 0;
    for (int i = lane; i < experts; i += 32) top = fmaxf(top, logits[i]);
    top = lanes_max(top);
    for (int i = lane; i < experts; i += 32) {
        scores[i] = (float)exp((double)(logits[i] - top));
        sum += scores[i];
    }
    sum = lanes_sum(sum);
    for (int i = lane; i < experts; i += 32) {
        scores[i] /= sum;
        // A NaN is shown by its weight; it must not upset the choice.
        open[i] = scores[i] >= 0.0f ? scores[i] : 0.0f;
    }
    __syncwarp();
    if (groups > 0) {
        int size = experts / groups;
        for (int group = lane; group < groups; group += 32) {
            float most = 0;
            for (int i = 0; i < size; i++) most = fmaxf(most, open[group * size + i]);
            best[group] = most;
        }
        __syncwarp();
        for (int round = 0; round < kept; round++) {
            int group = largest(best, groups);
            __syncwarp();
            if (lane == 0) best[group] = -1.0f;
            __syncwarp();
        }
        // Experts of other groups have score 0, so they come last, the lowest id first.
        for (int i = lane; i < experts; i += 32) {
            if (best[i / size] >= 0.0f) open[i] = 0.0f;
        }
        __syncwarp();
    }
    for (int round = 0; round < k; round++) {
        int id = largest(open, experts);
        __syncwarp();
        if (lane == 0) chosen[round] = id, open[id] = -1.0f;
        __syncwarp();
    }
    for (int i = lane; i < k; i += 32) {
        int place = 0;
        for (int j = 0; j < k; j++) place += chosen[j] < chosen[i];
        ids[token * k + place] = chosen[i];
        chosen_scores[place] = scores[chosen[i]];
    }
    __syncwarp();
    float total = 0;
    for (int j = 0; j < k; j++) total += chosen_scores[j];
    float factor = normalise && k > 1 ? 1.0f / (total + 1e-20f) : scale;
    for (int i = lane; i < k; i += 32) weights[token * k + i] = chosen_scores[i] * factor;
}

// Sorts routes by expert, by counting; those of one expert stay in their order. ids [routes], each below the
// number of blocks; rows [routes]: the row of each sorted route, which is its place in `ids` / per_row;
// starts [experts + 1]; places [routes]: the sorted place of each route. A block of 256 an expert.
extern "C" __global__ void sort_routes(const uint32_t* ids, int routes, int per_row, uint32_t* rows, uint32_t* starts,
                                       uint32_t* places) {
    __shared__ int sums[32];
    __shared__ int counts[8];
    uint32_t expert = blockIdx.x;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int below = 0;
    for (int i = threadIdx.x; i < routes; i += blockDim.x) below += ids[i] < expert;
    int next = block_sum(below, sums);
    if (threadIdx.x == 0) {
        starts[expert] = next;
        if (expert + 1 == gridDim.x) starts[expert + 1] = routes;
    }
    for (int base = 0; base < routes; base += blockDim.x) {
        int i = base + threadIdx.x;
        bool mine = i < routes && ids[i] == expert;
        unsigned lanes = __ballot_sync(ALL_LANES, mine);
        if (lane == 0) counts[warp] = __popc(lanes);
        __syncthreads();
        int before = 0, all = 0;
        for (int w = 0; w < 8; w++) {
            if (w < warp) before += counts[w];
            all += counts[w];
        }
        if (mine) {
            int place = next + before + __popc(lanes & ((1u << lane) - 1));
            rows[place] = i / per_row;
            places[i] = place;
        }
        next += all;
        __syncthreads();
    }
}

// The weighted sum of each token's routes, in their order. outputs [routes, width], places and weights
// [tokens, k], out [tokens, width]. A block a token.
extern "C" __global__ void combine(const float* outputs, const uint32_t* places, const float* weights, float* out,
                                   int k, int width) {
    int64_t token = blockIdx.x;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0;
        for (int j = 0; j < k; j++) {
            sum = fmaf(outputs[(int64_t)places[token * k + j] * width + i], weights[token * k + j], sum);
        }
        out[token * width + i] = sum;
    }
}
