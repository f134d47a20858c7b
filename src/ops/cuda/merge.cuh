// How attention over many positions is put together from attention over pieces of them: sums of values are
// divided by their own weights' sum, whose logarithm stays beside them.
#pragma once

#include "warp.cuh"

constexpr int TILE_QUERIES = 64;

// Neighbouring queries of one prompt and the piece of its positions that they attend to.
struct Tile {
    int first_query;     // row of the step
    int queries;         // at most TILE_QUERIES
    int first_position;  // of the first query
    int start;           // first position of the piece; 0 in the first piece, which comes first
    int positions;       // of the piece
    int first_row;       // of the piece in the expanded rows

    __device__ Tile(const uint32_t* tiles, int index) {
        const uint32_t* t = tiles + 6 * index;
        first_query = t[0], queries = t[1], first_position = t[2], start = t[3], positions = t[4], first_row = t[5];
    }

    // Positions of the piece that a query sees.
    __device__ int visible(int query) const { return min(first_position + query + 1 - start, positions); }
};

// Joins a piece's result with that of the pieces before.
struct Merge {
    float before = 0, now = 1, log;

    // `earlier` is the logarithm of the pieces before, if there are any.
    __device__ Merge(bool joins, float earlier, float piece_log) : log(piece_log) {
        if (!joins) return;
        float largest = fmaxf(earlier, piece_log);
        log = largest + logf(expf(earlier - largest) + expf(piece_log - largest));
        before = expf(earlier - log), now = expf(piece_log - log);
    }

    __device__ void into(float& target, float value) const {
        target = before > 0 ? target * before + value * now : value * now;
    }
};
