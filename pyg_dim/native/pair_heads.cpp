// Hidden layers of attention over pairs, never written out: y = leaky_relu(at_target[i] + at_source[j]), one part of
// CHANNELS for each head.
//
//   gate[e, h]    = sum over channels of weight[h] * y[h]
//   out[i, h, :]  = sum over the pairs e of i of share[e, h] * y[h]
#include <omp.h>

#include <vector>

#include "rows.h"

constexpr int C = CHANNELS / LANES, ALL = HEADS * CHANNELS;
static_assert(CHANNELS % LANES == 0);
constexpr T SLOPE = 0.01;

static inline Vec leaky(Vec x) { return x > Vec{} ? x : SLOPE * x; }
static inline Vec leaky_gradient(Vec x, Vec at) { return x > Vec{} ? at : SLOPE * at; }

extern "C" void gate_pairs(T* gate, const T* at_target, const T* at_source, const T* weight, const int64_t* source,
    const int64_t* first, const int64_t* block, int64_t blocks, int64_t longest, int threads) {
    const Rows rows{first, block, blocks, longest};
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        for (int64_t i = block[rows.share(me, all)]; i < block[rows.share(me + 1, all)]; ++i)
            for (int64_t e = first[i]; e < first[i + 1]; ++e)
                for (int h = 0; h < HEADS; ++h) {
                    const T *a = at_target + i * ALL + h * CHANNELS, *b = at_source + source[e] * ALL + h * CHANNELS;
                    Vec total{};
                    for (int v = 0; v < C; ++v)
                        total += load(weight + h * CHANNELS + v * LANES) *
                            leaky(load(a + v * LANES) + load(b + v * LANES));
                    gate[e * HEADS + h] = sum(total);
                }
    }
}

// d_source and d_weight come in as zeros.
extern "C" void gate_pairs_backward(const T* gradient, const T* at_target, const T* at_source, const T* weight,
    const int64_t* source, const int64_t* first, const int64_t* block, int64_t blocks, int64_t longest, T* d_target,
    T* d_source, T* d_weight, int threads) {
    const Rows rows{first, block, blocks, longest};
    std::vector<T> sums;
    int used = 1;
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
#pragma omp single
        {
            used = all;
            sums.assign(int64_t(all) * ALL, 0);
        }
        T* own = &sums[int64_t(me) * ALL];
        for (int64_t i = block[rows.share(me, all)]; i < block[rows.share(me + 1, all)]; ++i)
            for (int h = 0; h < HEADS; ++h)
                for (int k = h * CHANNELS; k < (h + 1) * CHANNELS; k += LANES) {
                    const Vec a = load(at_target + i * ALL + k), w = load(weight + k);
                    Vec sum_target{}, sum_weight{};
                    for (int64_t e = first[i]; e < first[i + 1]; ++e) {
                        const Vec x = a + load(at_source + source[e] * ALL + k);
                        const T at = gradient[e * HEADS + h];
                        sum_weight += at * leaky(x);
                        const Vec d = leaky_gradient(x, at * w);
                        sum_target += d;
                        add_to(d_source + source[e] * ALL + k, d);
                    }
                    store(d_target + i * ALL + k, sum_target);
                    add_to(own + k, sum_weight);
                }
    }
    for (int t = 0; t < used; ++t)
        for (int k = 0; k < ALL; ++k) d_weight[k] += sums[int64_t(t) * ALL + k];
}

extern "C" void sum_pairs(T* out, const T* at_target, const T* at_source, const T* share, const int64_t* source,
    const int64_t* first, const int64_t* block, int64_t blocks, int64_t longest, int threads) {
    const Rows rows{first, block, blocks, longest};
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        for (int64_t i = block[rows.share(me, all)]; i < block[rows.share(me + 1, all)]; ++i)
            for (int h = 0; h < HEADS; ++h)
                for (int k = h * CHANNELS; k < (h + 1) * CHANNELS; k += LANES) {
                    const Vec a = load(at_target + i * ALL + k);
                    Vec total{};
                    for (int64_t e = first[i]; e < first[i + 1]; ++e)
                        total += share[e * HEADS + h] * leaky(a + load(at_source + source[e] * ALL + k));
                    store(out + i * ALL + k, total);
                }
    }
}

// d_target and d_source come in as zeros.
extern "C" void sum_pairs_backward(const T* gradient, const T* at_target, const T* at_source, const T* share,
    const int64_t* source, const int64_t* first, const int64_t* block, int64_t blocks, int64_t longest, T* d_target,
    T* d_source, T* d_share, int threads) {
    const Rows rows{first, block, blocks, longest};
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        for (int64_t i = block[rows.share(me, all)]; i < block[rows.share(me + 1, all)]; ++i)
            for (int64_t e = first[i]; e < first[i + 1]; ++e)
                for (int h = 0; h < HEADS; ++h) {
                    const T own = share[e * HEADS + h];
                    Vec total{};
                    for (int k = h * CHANNELS; k < (h + 1) * CHANNELS; k += LANES) {
                        const Vec x = load(at_target + i * ALL + k) + load(at_source + source[e] * ALL + k);
                        const Vec at = load(gradient + i * ALL + k);
                        total += at * leaky(x);
                        const Vec d = leaky_gradient(x, own * at);
                        add_to(d_target + i * ALL + k, d);
                        add_to(d_source + source[e] * ALL + k, d);
                    }
                    d_share[e * HEADS + h] = sum(total);
                }
    }
}
