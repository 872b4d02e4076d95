// y = N(mish(x)) * scale + offset, row by row, N a layer norm: forward, and backward from x alone.
#include <omp.h>

#include <vector>

#include "vectors.h"

constexpr int C = CHANNELS / LANES;
static_assert(CHANNELS % LANES == 0);

extern "C" void mish_norm(T* out, const T* in, const T* scale, const T* offset, int64_t rows, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        Vec x[C];
        for (int v = 0; v < C; ++v) x[v] = mish(load(in + r * CHANNELS + v * LANES));
        normalise<CHANNELS>(x);
        for (int v = 0; v < C; ++v)
            store(out + r * CHANNELS + v * LANES, x[v] * load(scale + v * LANES) + load(offset + v * LANES));
    }
}

// d_scale and d_offset come in as zeros.
extern "C" void mish_norm_backward(const T* gradient, const T* in, const T* scale, T* d_in, T* d_scale, T* d_offset,
    int64_t rows, int threads) {
    std::vector<T> sums;
    int used = 1;
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
#pragma omp single
        {
            used = all;
            sums.assign(int64_t(all) * 2 * CHANNELS, 0);
        }
        Vec sum_scale[C] = {}, sum_offset[C] = {};
        for (int64_t r = rows * me / all; r < rows * (me + 1) / all; ++r) {
            Vec x[C], derivative[C];
            T y[CHANNELS];
            for (int v = 0; v < C; ++v) x[v] = mish(load(in + r * CHANNELS + v * LANES), derivative[v]);
            const T factor = normalise<CHANNELS>(x);
            for (int v = 0; v < C; ++v) {
                store(y + v * LANES, x[v]);
                const Vec at = load(gradient + r * CHANNELS + v * LANES);
                sum_scale[v] += at * x[v];
                sum_offset[v] += at;
                x[v] = at * load(scale + v * LANES);
            }
            normalise_backward<CHANNELS>(x, y, factor);
            for (int v = 0; v < C; ++v) store(d_in + r * CHANNELS + v * LANES, x[v] * derivative[v]);
        }
        for (int v = 0; v < C; ++v) {
            store(&sums[me * 2 * CHANNELS + v * LANES], sum_scale[v]);
            store(&sums[(me * 2 + 1) * CHANNELS + v * LANES], sum_offset[v]);
        }
    }
    for (int t = 0; t < used; ++t)
        for (int k = 0; k < CHANNELS; ++k) {
            d_scale[k] += sums[t * 2 * CHANNELS + k];
            d_offset[k] += sums[(t * 2 + 1) * CHANNELS + k];
        }
}
