// Root-mean-square normalisation, and the gate of a feed-forward part. CPU forms: ../norm.rs, ../matmul.

#include "warp.cuh"

// weight * z / sqrt(mean(z^2) + epsilon), row by row, of z = x + y, or of x where y is null.
// x and y [rows, stride] of which the first `width` are taken, weight [width]; out [rows, width], and sums
// [rows, width], which get z, unless null. A block a row; each thread reads again only what it wrote itself.
extern "C" __global__ void rms_norm(const float* x, const float* y, int stride, const float* weight, float epsilon,
                                    float* sums, float* out, int width) {
    __shared__ float partial[32];
    int64_t source = (int64_t)blockIdx.x * stride, target = (int64_t)blockIdx.x * width;
    float squares = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float z = y ? x[source + i] + y[source + i] : x[source + i];
        if (sums) sums[target + i] = z;
        squares += z * z;
    }
    float scale = 1.0f / sqrtf(block_sum(squares, partial) / width + epsilon);
    const float* row = sums ? sums + target : x + source;
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[target + i] = row[i] * scale * weight[i];
}

// silu(gate) * up. products [rows, gate | up], out [rows, width]. A thread an element.
template <typename T>
__device__ void gate_rows(const float* products, T* out, int width, int64_t elements) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= elements) return;
    int64_t row = i / width, column = i % width;
    float gate = products[row * 2 * width + column], up = products[row * 2 * width + width + column];
    narrow(out[i], gate / (1.0f + expf(-gate)) * up);
}

extern "C" __global__ void gate_f32(const float* products, float* out, int width, int64_t elements) {
    gate_rows(products, out, width, elements);
}

extern "C" __global__ void gate_bf16(const float* products, bf16* out, int width, int64_t elements) {
    gate_rows(products, out, width, elements);
}
