// A machine with the kernels' view of a GPU, for checks without one: the threads of a block are fibers of one
// thread of this machine, blocks run one after another, and warps exchange values where the program meets.
// Copies in the background are made as early or as late as they may be, and threads run in either order, so
// that a missing barrier shows. It says nothing about speed.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

using std::max;
using std::min;

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct bf16 {
    uint16_t bits;
};
inline float __bfloat162float(bf16 x) {
    uint32_t word = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}
inline bf16 __float2bfloat16(float x) {
    uint32_t word;
    memcpy(&word, &x, 4);
    if (x != x) return {0x7fff};
    return {(uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16)};
}

struct Dimensions {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulated {

struct Copy {
    void* target;
    const void* source;
    bool valid;
};

struct Fiber {
    ucontext_t context;
    jmp_buf place_in_code;
    bool begun;
    std::vector<char> stack = std::vector<char>(256 << 10);
    Dimensions place;
    enum { RUNS, AT_BLOCK, AT_WARP, DONE } state;
    uint64_t words[8];  // what it shows to its warp
    std::vector<std::vector<Copy>> groups;
};

inline bool late_copies = false, backwards = false;
inline Dimensions block_place, block_shape, grid_shape;
inline std::vector<unsigned char> shared;
inline std::vector<Fiber*> fibers;
inline Fiber* running;
inline jmp_buf scheduler;
inline std::function<void()> body;

inline void stop(const char* why) {
    fprintf(stderr, "emulated: %s\n", why);
    exit(2);
}

// Leaves the running fiber until it is resumed.
inline void wait(decltype(Fiber::state) at) {
    running->state = at;
    if (_setjmp(running->place_in_code) == 0) _longjmp(scheduler, 1);
}

inline void resume(Fiber* fiber) {
    running = fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber->begun) _longjmp(fiber->place_in_code, 1);
    fiber->begun = true;
    setcontext(&fiber->context);
}

inline Fiber* lane(int index) {
    return fibers[running->place.x / 32 * 32 + index];
}

inline void enter() {
    body();
    wait(Fiber::DONE);
}

inline void start(Fiber* fiber, unsigned thread) {
    fiber->place = {thread, 0, 0};
    fiber->state = Fiber::RUNS;
    fiber->begun = false;
    fiber->groups.assign(1, {});
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.data();
    fiber->context.uc_stack.ss_size = fiber->stack.size();
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, (void (*)())enter, 0);
}

// Lets those go on whose barrier all have reached that still run; whether there was one.
inline bool release(size_t first, size_t count, decltype(Fiber::state) at) {
    bool any = false;
    for (size_t i = first; i < first + count; i++) {
        if (fibers[i]->state == Fiber::DONE) continue;
        if (fibers[i]->state != at) return false;
        any = true;
    }
    for (size_t i = first; any && i < first + count; i++) {
        if (fibers[i]->state == at) fibers[i]->state = Fiber::RUNS;
    }
    return any;
}

inline void run_block(unsigned threads) {
    while (fibers.size() < threads) fibers.push_back(new Fiber);
    for (unsigned i = 0; i < threads; i++) start(fibers[i], i);
    memset(shared.data(), 0xff, shared.size());
    for (;;) {
        bool moved = false, done = true;
        for (unsigned i = 0; i < threads; i++) {
            Fiber* fiber = fibers[backwards ? threads - 1 - i : i];
            if (fiber->state != Fiber::RUNS) continue;
            resume(fiber);
            moved = true;
        }
        for (unsigned warp = 0; warp < threads; warp += 32) moved |= release(warp, 32, Fiber::AT_WARP);
        moved |= release(0, threads, Fiber::AT_BLOCK);
        for (unsigned i = 0; i < threads; i++) done &= fibers[i]->state == Fiber::DONE;
        if (done) return;
        if (!moved) stop("threads wait at different barriers");
    }
}

// Runs a kernel on `grid` blocks of `threads` threads with so many bytes of dynamic shared memory.
inline void launch(Dimensions grid, unsigned threads, size_t bytes, std::function<void()> kernel) {
    if (bytes > 163 << 10) stop("more shared memory than an A100 has");
    if (threads % 32 != 0) stop("a block of broken warps");
    shared.assign(bytes, 0);
    grid_shape = grid, block_shape = {threads, 1, 1}, body = kernel;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) block_place = {x, y, z}, run_block(threads);
}

inline void copy(const Copy& c) {
    if (c.valid) memcpy(c.target, c.source, 16);
    else memset(c.target, 0, 16);
}

}  // namespace emulated

#define threadIdx (emulated::running->place)
#define blockIdx (emulated::block_place)
#define blockDim (emulated::block_shape)
#define gridDim (emulated::grid_shape)
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emulated::shared.data())

inline void __syncthreads() { emulated::wait(emulated::Fiber::AT_BLOCK); }
inline void __syncwarp() { emulated::wait(emulated::Fiber::AT_WARP); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    memcpy(emulated::running->words, &value, sizeof value);
    __syncwarp();
    T other;
    memcpy(&other, emulated::lane(emulated::running->place.x % 32 ^ mask)->words, sizeof other);
    __syncwarp();
    return other;
}

inline unsigned __ballot_sync(unsigned, bool value) {
    emulated::running->words[0] = value;
    __syncwarp();
    unsigned lanes = 0;
    for (int i = 0; i < 32; i++) lanes |= (unsigned)emulated::lane(i)->words[0] << i;
    __syncwarp();
    return lanes;
}

inline void copy16(void* shared, const void* global, bool valid) {
    if ((uintptr_t)shared % 16 != 0 || (valid && (uintptr_t)global % 16 != 0)) emulated::stop("a copy is not aligned");
    emulated::Copy copy = {shared, global, valid};
    if (emulated::late_copies) emulated::running->groups.back().push_back(copy);
    else emulated::copy(copy);
}
inline void close_copies() { emulated::running->groups.push_back({}); }

template <int N>
void await_copies() {
    auto& groups = emulated::running->groups;
    while (groups.size() > N + 1) {
        for (auto& copy : groups.front()) emulated::copy(copy);
        groups.erase(groups.begin());
    }
}

inline void load(uint32_t (&m)[4], const bf16* row, bool transposed) {
    if ((uintptr_t)row % 16 != 0) emulated::stop("a matrix's row is not aligned");
    emulated::running->words[0] = (uint64_t)row;
    __syncwarp();
    int lane = emulated::running->place.x % 32, outer = lane / 4, inner = lane % 4 * 2;
    for (int i = 0; i < 4; i++) {
        auto at = [&](int r, int c) { return ((const bf16*)emulated::lane(8 * i + r)->words[0])[c].bits; };
        uint32_t low = transposed ? at(inner, outer) : at(outer, inner);
        uint32_t high = transposed ? at(inner + 1, outer) : at(outer, inner + 1);
        m[i] = low | high << 16;
    }
    __syncwarp();
}
inline void load_matrices(uint32_t (&m)[4], const bf16* row) { load(m, row, false); }
inline void load_transposed(uint32_t (&m)[4], const bf16* row) { load(m, row, true); }

inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint64_t* words = emulated::running->words;
    words[0] = a[0], words[1] = a[1], words[2] = a[2], words[3] = a[3], words[4] = b0, words[5] = b1;
    __syncwarp();
    auto element = [](int lane, int word, int half) {
        return __bfloat162float({(uint16_t)(emulated::lane(lane)->words[word] >> 16 * half)});
    };
    int lane = emulated::running->place.x % 32;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            float left = element(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2);
            sum[i] += left * element(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
        }
    }
    __syncwarp();
}
