// What the kernels share: element types, sums over a warp or a block, asynchronous copies and the tensor
// cores' product of 16 x 16 by 16 x 8, as PTX ISA chapters "ldmatrix", "mma.m16n8k16" and "cp.async" have them.
#pragma once

#ifdef NIGHTSHIFT_EMULATED
#include "check/emulated.h"
#else
#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

// A block's dynamic shared memory as an array.
#define DYNAMIC_SHARED(T, name)                              \
    extern __shared__ __align__(16) unsigned char dynamic[]; \
    T* name = reinterpret_cast<T*>(dynamic)

// Copies 16 bytes to shared memory in the background, or writes 16 zeros.
__device__ inline void copy16(void* shared, const void* global, bool valid) {
    uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(target), "l"(global), "r"(bytes));
}

// Ends a group of copies.
__device__ inline void close_copies() { asm volatile("cp.async.commit_group;\n" ::); }

// Waits until all but the last N groups of this thread's copies have arrived.
template <int N>
__device__ inline void await_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N));
}

// Loads four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&m)[4], const bf16* row) {
    uint32_t source = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(source));
}

// The same, each matrix transposed.
__device__ inline void load_transposed(uint32_t (&m)[4], const bf16* row) {
    uint32_t source = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(source));
}

// sum += a b: 16 x 16 times 16 x 8, bf16 factors, f32 sums.
__device__ inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float& target, float x) { target = x; }
__device__ inline void narrow(bf16& target, float x) { target = __float2bfloat16(x); }

// Two values as neighbours of one register, the first in its low half.
__device__ inline uint32_t pack(float low, float high) {
    bf16 pair[2] = {__float2bfloat16(low), __float2bfloat16(high)};
    uint32_t word;
    memcpy(&word, pair, 4);
    return word;
}

// Sums over groups of `lanes` neighbouring lanes, a power of two.
template <typename T>
__device__ inline T lanes_sum(T x, int lanes = 32) {
    for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ inline float lanes_max(float x, int lanes = 32) {
    for (int step = lanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// The sum over a block of whole warps, given to all its threads.
template <typename T>
__device__ inline T block_sum(T x, T* shared /* 32 */) {
    x = lanes_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = 0;
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) sum += shared[warp];
    return sum;
}
