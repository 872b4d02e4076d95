// Pairs or constituents in rows, and which rows each thread takes.
#pragma once
#include "vectors.h"

struct Rows {
    const int64_t* first;  // [rows + 1] first pair of each row
    const int64_t* block;  // [blocks + 1] first row of each block: no pair leads out of a block
    int64_t blocks, longest;

    // Number of the first block of a thread: contiguous ones with about as many pairs for each, so that no two threads
    // write to the same row, and sums do not depend on the order of threads.
    int64_t share(int thread, int threads) const {
        if (thread == threads) return blocks;
        const int64_t wanted = first[block[blocks]] * thread / threads;
        int64_t low = 0, high = blocks;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (first[block[middle]] < wanted)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }
};
