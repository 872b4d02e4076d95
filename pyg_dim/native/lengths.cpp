// What pairs of each length add to the first layers of attention: out = N(mish(length * slope + offset)) weight + bias.
// N is a layer norm without scale and offset: those are folded into weight and bias.
#include <omp.h>

#include <vector>

#include "vectors.h"

constexpr int C = PAIR / LANES, TILE = 48;
static_assert(PAIR % LANES == 0 && FIRST % LANES == 0);

// Rows of N(mish(...)), and where asked for the derivatives of mish and the scales of the norm.
static inline void features(const T* length, int64_t count, const T* slope, const T* offset, T* out, T* derivatives,
    T* scales) {
    for (int64_t p = 0; p < count; ++p) {
        Vec x[C], derivative;
        for (int v = 0; v < C; ++v) {
            x[v] = mish(length[p] * load(slope + v * LANES) + load(offset + v * LANES), derivative);
            if (derivatives) store(derivatives + p * PAIR + v * LANES, derivative);
        }
        const T scale = normalise<PAIR>(x);
        if (scales) scales[p] = scale;
        for (int v = 0; v < C; ++v) store(out + p * PAIR + v * LANES, x[v]);
    }
}

extern "C" void embed_lengths(T* out, const T* length, const T* slope, const T* offset, const T* weight, const T* bias,
    int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> rows(TILE * PAIR);
#pragma omp for schedule(static)
        for (int64_t begin = 0; begin < count; begin += TILE) {
            const int64_t tile = count - begin < TILE ? count - begin : TILE;
            features(length + begin, tile, slope, offset, rows.data(), nullptr, nullptr);
            product<PAIR, FIRST>(out + begin * FIRST, rows.data(), weight, bias, tile);
        }
    }
}

// d_slope, d_offset, d_weight, d_bias come in as zeros.
extern "C" void embed_lengths_backward(const T* gradient, const T* length, const T* slope, const T* offset,
    const T* weight_transposed, T* d_slope, T* d_offset, T* d_weight, T* d_bias, int64_t count, int threads) {
    constexpr int PARAMETERS = PAIR * FIRST + FIRST + 2 * PAIR;
    std::vector<T> sums;
    int used = 1;
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
#pragma omp single
        {
            used = all;
            sums.assign(int64_t(all) * PARAMETERS, 0);
        }
        std::vector<T> rows(TILE * PAIR), derivatives(TILE * PAIR), scales(TILE), at_rows(TILE * PAIR);
        T* sum_weight = &sums[int64_t(me) * PARAMETERS];
        T* sum_bias = sum_weight + PAIR * FIRST;
        T* sum_slope = sum_bias + FIRST;
        T* sum_offset = sum_slope + PAIR;
#pragma omp for schedule(static)
        for (int64_t begin = 0; begin < count; begin += TILE) {
            const int64_t tile = count - begin < TILE ? count - begin : TILE;
            const T* at_out = gradient + begin * FIRST;
            features(length + begin, tile, slope, offset, rows.data(), derivatives.data(), scales.data());
            add_product_of_columns<PAIR, FIRST>(sum_weight, rows.data(), at_out, tile);
            product<FIRST, PAIR>(at_rows.data(), at_out, weight_transposed, nullptr, tile);
            for (int64_t p = 0; p < tile; ++p) {
                for (int v = 0; v < FIRST / LANES; ++v)
                    add_to(sum_bias + v * LANES, load(at_out + p * FIRST + v * LANES));
                Vec x[C];
                for (int v = 0; v < C; ++v) x[v] = load(&at_rows[p * PAIR + v * LANES]);
                normalise_backward<PAIR>(x, &rows[p * PAIR], scales[p]);
                for (int v = 0; v < C; ++v) {
                    x[v] *= load(&derivatives[p * PAIR + v * LANES]);
                    add_to(sum_offset + v * LANES, x[v]);
                    add_to(sum_slope + v * LANES, x[v] * length[begin + p]);
                }
            }
        }
    }
    for (int t = 0; t < used; ++t) {
        const T* from = &sums[int64_t(t) * PARAMETERS];
        for (int k = 0; k < PAIR * FIRST; ++k) d_weight[k] += from[k];
        from += PAIR * FIRST;
        for (int k = 0; k < FIRST; ++k) d_bias[k] += from[k];
        from += FIRST;
        for (int k = 0; k < PAIR; ++k) d_slope[k] += from[k], d_offset[k] += from[PAIR + k];
    }
}
