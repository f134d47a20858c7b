// The plain computation that attention kernels are compared with.
#pragma once

#include "check.h"

// Softmax-weighted sum of `count` values of `width` elements, key and value given by position.
template <typename Score, typename Value>
std::vector<double> attention(int count, int width, double scale, Score score, Value value) {
    std::vector<double> scores(count), out(width, 0);
    double top = -INFINITY, sum = 0;
    for (int p = 0; p < count; p++) top = max(top, scores[p] = score(p) * scale);
    for (double& s : scores) sum += s = std::exp(s - top);
    for (int p = 0; p < count; p++) {
        for (int i = 0; i < width; i++) out[i] += scores[p] / sum * value(p, i);
    }
    return out;
}

// A cache of some sequences whose blocks lie scattered.
struct Cache {
    int block = 16;
    std::vector<uint32_t> tables, tokens;

    // One generated token for each count of visible positions.
    explicit Cache(const std::vector<int>& visible) {
        uint32_t next = 0;
        for (int count : visible) {
            tokens.push_back(count), tokens.push_back(tables.size());
            for (int i = 0; i < count; i += block) tables.push_back(next++);
        }
        // A fixed shuffle: every block number once.
        for (uint32_t& b : tables) b = next - 1 - b;
    }
    int slots() const { return tables.size() * block; }
    int slot(int token, int position) const { return tables[tokens[2 * token + 1] + position / block] * block + position % block; }
};
