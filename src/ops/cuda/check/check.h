// What the checks share: numbers, comparison with a plain computation in f64, and the ways of running a kernel.
#pragma once

#define NIGHTSHIFT_EMULATED
#include "emulated.h"

// Evenly spread over -1 to 1, the same in each run.
inline float number() {
    static uint64_t state = 1;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (float)((int64_t)(state >> 33) - (1ll << 30)) / (1ll << 30);
}

template <typename T>
std::vector<T> numbers(size_t count, float scale = 1) {
    std::vector<T> all(count);
    for (T& x : all) {
        float value = number() * scale;
        if constexpr (sizeof(T) == 2) x = __float2bfloat16(value);
        else x = value;
    }
    return all;
}

inline double wide(float x) { return x; }
inline double wide(bf16 x) { return __bfloat162float(x); }

struct Comparison {
    const char* what;
    double tolerance, worst = 0;
    size_t count = 0;

    void add(double found, double expected) {
        double difference = std::fabs(found - expected) / (1 + std::fabs(expected));
        if (!(difference <= tolerance)) {
            fprintf(stderr, "%s: element %zu is %g, expected %g\n", what, count, found, expected);
            exit(1);
        }
        worst = max(worst, difference), count++;
    }
    ~Comparison() { printf("%s: %zu elements, largest difference %.1e\n", what, count, worst); }
};

// Runs `check` with copies early and late, and with threads forwards and backwards.
inline void in_all_ways(std::function<void()> check) {
    for (int way = 0; way < 4; way++) {
        emulated::late_copies = way % 2, emulated::backwards = way / 2;
        check();
    }
}
