// Products of sorted routes with their experts' weights: out[r] = x[rows[r]] W_e^T for the routes r of expert e.
// CPU form: ../experts.rs.

#include "warp.cuh"

constexpr int STEP = 64;       // inputs of a pipeline step
constexpr int PITCH = STEP + 8;  // so that the rows of a matrix load fall into different banks
constexpr int STAGES = 3;

// x [*, inputs] bf16; rows [routes], or null where route r takes row r; starts [experts + 1]; weights [experts]
// pointers to [outputs, inputs] bf16; out [routes, outputs]. inputs is a multiple of 8. A warp computes
// 16 MT x 8 NT; WM x WN warps a block; grid (columns / BN, experts, tiles of rows that go side by side).
template <int MT, int NT, int WM, int WN>
__device__ void grouped_product(const bf16* x, const uint32_t* rows, const uint32_t* starts, const uint64_t* weights,
                                float* out, int outputs, int inputs) {
    constexpr int BM = 16 * MT * WM, BN = 8 * NT * WN, THREADS = 32 * WM * WN;
    static_assert(NT % 2 == 0, "columns are loaded sixteen at a time");
    DYNAMIC_SHARED(bf16, memory);
    const int expert = blockIdx.y, first_column = blockIdx.x * BN;
    const int first = starts[expert], count = starts[expert + 1] - first;
    const bf16* weight = reinterpret_cast<const bf16*>(weights[expert]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_row = warp / WN * 16 * MT, warp_column = warp % WN * 8 * NT;
    const int steps = (inputs + STEP - 1) / STEP;

    for (int tile = blockIdx.z * BM; tile < count; tile += gridDim.z * BM) {
        auto load = [&](int step) {
            bf16* a = memory + step % STAGES * (BM + BN) * PITCH;
            for (int i = threadIdx.x; i < (BM + BN) * (STEP / 8); i += THREADS) {
                int row = i / (STEP / 8), at = i % (STEP / 8) * 8, input = step * STEP + at;
                const bf16* source = weight;
                bool valid = input < inputs;
                if (row < BM) {
                    valid = valid && tile + row < count;
                    int route = first + tile + row;
                    if (valid) source = x + (int64_t)(rows ? rows[route] : route) * inputs + input;
                } else {
                    int column = first_column + row - BM;
                    valid = valid && column < outputs;
                    if (valid) source = weight + (int64_t)column * inputs + input;
                }
                copy16(a + row * PITCH + at, source, valid);
            }
        };
        float sums[MT][NT][4] = {};
        for (int step = 0; step < STAGES - 1; step++) {
            if (step < steps) load(step);
            close_copies();
        }
        for (int step = 0; step < steps; step++) {
            await_copies<STAGES - 2>();
            __syncthreads();
            if (step + STAGES - 1 < steps) load(step + STAGES - 1);
            close_copies();
            const bf16* a = memory + step % STAGES * (BM + BN) * PITCH + warp_row * PITCH;
            const bf16* b = memory + step % STAGES * (BM + BN) * PITCH + (BM + warp_column) * PITCH;
#pragma unroll
            for (int k = 0; k < STEP; k += 16) {
                uint32_t left[MT][4];
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    load_matrices(left[m], a + (16 * m + lane % 16) * PITCH + k + lane / 16 * 8);
                }
#pragma unroll
                for (int n = 0; n < NT; n += 2) {
                    uint32_t right[4];
                    load_matrices(right, b + (8 * n + lane % 8 + lane / 16 * 8) * PITCH + k + lane / 8 % 2 * 8);
#pragma unroll
                    for (int m = 0; m < MT; m++) {
                        multiply_add(sums[m][n], left[m], right[0], right[1]);
                        multiply_add(sums[m][n + 1], left[m], right[2], right[3]);
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int row = tile + warp_row + 16 * m + lane / 4 + i / 2 * 8;
                    int column = first_column + warp_column + 8 * n + lane % 4 * 2 + i % 2;
                    if (row < count && column < outputs) out[(int64_t)(first + row) * outputs + column] = sums[m][n][i];
                }
            }
        }
        // The next tile's copies overwrite what other warps may still read.
        __syncthreads();
    }
}

// For few routes an expert: tiles of 16 x 64, 4 warps.
extern "C" __global__ void __launch_bounds__(128)
    grouped_product_16(const bf16* x, const uint32_t* rows, const uint32_t* starts, const uint64_t* weights, float* out,
                       int outputs, int inputs) {
    grouped_product<1, 2, 1, 4>(x, rows, starts, weights, out, outputs, inputs);
}

// For many: tiles of 128 x 128, 8 warps.
extern "C" __global__ void __launch_bounds__(256)
    grouped_product_128(const bf16* x, const uint32_t* rows, const uint32_t* starts, const uint64_t* weights,
                        float* out, int outputs, int inputs) {
    grouped_product<4, 4, 2, 4>(x, rows, starts, weights, out, outputs, inputs);
}

// The same in f32 without tensor cores, for checks: tiles of 32 x 64, 256 threads, any width.
extern "C" __global__ void grouped_product_f32(const float* x, const uint32_t* rows, const uint32_t* starts,
                                               const uint64_t* weights, float* out, int outputs, int inputs) {
    constexpr int BM = 32, BN = 64, BK = 16;
    __shared__ float a[BM][BK + 1];
    __shared__ float b[BN][BK + 1];
    const int expert = blockIdx.y, first_column = blockIdx.x * BN;
    const int first = starts[expert], count = starts[expert + 1] - first;
    const float* weight = reinterpret_cast<const float*>(weights[expert]);
    const int column = threadIdx.x % BN, group = threadIdx.x / BN;
    for (int tile = blockIdx.z * BM; tile < count; tile += gridDim.z * BM) {
        float sums[BM / 4] = {};
        for (int start = 0; start < inputs; start += BK) {
            __syncthreads();
            for (int i = threadIdx.x; i < (BM + BN) * BK; i += blockDim.x) {
                int row = i / BK, input = start + i % BK;
                if (row < BM) {
                    int route = first + tile + row;
                    bool valid = input < inputs && tile + row < count;
                    a[row][i % BK] = valid ? x[(int64_t)(rows ? rows[route] : route) * inputs + input] : 0.0f;
                } else {
                    int output = first_column + row - BM;
                    bool valid = input < inputs && output < outputs;
                    b[row - BM][i % BK] = valid ? weight[(int64_t)output * inputs + input] : 0.0f;
                }
            }
            __syncthreads();
            for (int k = 0; k < BK; k++) {
                for (int i = 0; i < BM / 4; i++) sums[i] = fmaf(a[group * (BM / 4) + i][k], b[column][k], sums[i]);
            }
        }
        for (int i = 0; i < BM / 4; i++) {
            int row = tile + group * (BM / 4) + i;
            if (row < count && first_column + column < outputs) {
                out[(int64_t)(first + row) * outputs + first_column + column] = sums[i];
            }
        }
    }
}
