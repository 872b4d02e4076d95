// Attention of sites over their pairs, forward and backward, row by row: what belongs to a pair stays in the cache.
//
//   c = at_target[i] + at_source[j] + at_pair[d]              the first layers of both networks, [ATTENTION + HIDDEN]
//   logit = N(mish(c_attention)) . logits                     of each head
//   n = N(mish(N(mish(c_hidden)) weight + bias))              [VALUE]
//   out[i] = sum_j w n,  w = softmax_j(logit + ln count)      of each head
//
// N is a layer norm without scale and offset: those are folded into what follows.
#include <omp.h>

#include <vector>

#include "rows.h"

constexpr int FIRST = ATTENTION + HIDDEN;
constexpr int A = ATTENTION / LANES, B = HIDDEN / LANES, C = VALUE / LANES, F = FIRST / LANES;
static_assert(ATTENTION % LANES == 0 && HIDDEN % LANES == 0 && VALUE % LANES == 0);

struct Graph {
    Rows rows;
    const int64_t* source;  // [pairs]
    const int32_t* place;   // [pairs] row of at_pair
    const T* count;         // [pairs] how often a pair occurs, or null
};

// What the forward pass leaves of a row, for as many pairs as the longest one has.
struct Row {
    std::vector<T> hidden, value, weight;                      // normalised; softmax weights [HEADS][longest]
    std::vector<T> attention, d_attention, d_hidden, d_value;  // normalised; derivatives of mish
    std::vector<T> scale_attention, scale_hidden, scale_value;
    int64_t longest;

    Row(int64_t longest, bool backward)
        : hidden(longest * HIDDEN), value(longest * VALUE), weight(longest * HEADS), longest(longest) {
        if (!backward) return;
        attention.resize(longest * ATTENTION), d_attention.resize(longest * ATTENTION);
        d_hidden.resize(longest * HIDDEN), d_value.resize(longest * VALUE);
        scale_attention.resize(longest), scale_hidden.resize(longest), scale_value.resize(longest);
    }
};

template <bool BACKWARD>
static void forward_row(const Graph& graph, int64_t site, const T* at_target, const T* at_source, const T* at_pair,
    const T* logits, const T* weight, const T* bias, Row& row) {
    const int64_t begin = graph.rows.first[site], pairs = graph.rows.first[site + 1] - begin;
    const T* target = at_target + site * FIRST;
    for (int64_t p = 0; p < pairs; ++p) {
        const T* source = at_source + graph.source[begin + p] * FIRST;
        const T* pair = at_pair + int64_t(graph.place[begin + p]) * FIRST;
        Vec x[F], derivative;
#pragma GCC unroll 16
        for (int v = 0; v < F; ++v) {
            x[v] = mish(load(target + v * LANES) + load(source + v * LANES) + load(pair + v * LANES), derivative);
            if (BACKWARD)
                store(v < A ? &row.d_attention[p * ATTENTION + v * LANES] : &row.d_hidden[p * HIDDEN + (v - A) * LANES],
                    derivative);
        }
        const T scale_attention = normalise<ATTENTION>(x);
        const T scale_hidden = normalise<HIDDEN>(x + A);
        for (int h = 0; h < HEADS; ++h) {
            Vec product{};
            for (int v = 0; v < A; ++v) product += x[v] * load(logits + h * ATTENTION + v * LANES);
            row.weight[h * row.longest + p] = sum(product);
        }
        for (int v = 0; v < B; ++v) store(&row.hidden[p * HIDDEN + v * LANES], x[A + v]);
        if (BACKWARD) {
            for (int v = 0; v < A; ++v) store(&row.attention[p * ATTENTION + v * LANES], x[v]);
            row.scale_attention[p] = scale_attention;
            row.scale_hidden[p] = scale_hidden;
        }
    }
    product<HIDDEN, VALUE>(row.value.data(), row.hidden.data(), weight, bias, pairs);
    for (int64_t p = 0; p < pairs; ++p) {
        Vec x[C], derivative;
        for (int v = 0; v < C; ++v) {
            x[v] = mish(load(&row.value[p * VALUE + v * LANES]), derivative);
            if (BACKWARD) store(&row.d_value[p * VALUE + v * LANES], derivative);
        }
        const T scale = normalise<VALUE>(x);
        if (BACKWARD) row.scale_value[p] = scale;
        for (int v = 0; v < C; ++v) store(&row.value[p * VALUE + v * LANES], x[v]);
    }
    for (int h = 0; h < HEADS; ++h) {
        T* w = row.weight.data() + h * row.longest;
        T largest = pairs ? w[0] : 0, total = 0;
        for (int64_t p = 1; p < pairs; ++p) largest = w[p] > largest ? w[p] : largest;
        for (int64_t p = 0; p < pairs; ++p) {
            w[p] = __builtin_exp(w[p] - largest) * (graph.count ? graph.count[begin + p] : T(1));
            total += w[p];
        }
        for (int64_t p = 0; p < pairs; ++p) w[p] /= total;
    }
}

extern "C" void attend(T* out, const T* at_target, const T* at_source, const T* at_pair, const T* logits,
    const T* weight, const T* bias, const int64_t* first, const int64_t* source, const int32_t* place, const T* count,
    const int64_t* block, int64_t blocks, int64_t longest, int threads) {
    const Graph graph{{first, block, blocks, longest}, source, place, count};
#pragma omp parallel num_threads(threads)
    {
        Row row(longest, false);
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        for (int64_t i = block[graph.rows.share(me, all)]; i < block[graph.rows.share(me + 1, all)]; ++i) {
            forward_row<false>(graph, i, at_target, at_source, at_pair, logits, weight, bias, row);
            for (int h = 0; h < HEADS; ++h) {
                Vec sums[C] = {};
                for (int64_t p = 0; p < first[i + 1] - first[i]; ++p)
                    for (int v = 0; v < C; ++v)
                        sums[v] += row.weight[h * longest + p] * load(&row.value[p * VALUE + v * LANES]);
                for (int v = 0; v < C; ++v) store(out + (i * HEADS + h) * VALUE + v * LANES, sums[v]);
            }
        }
    }
}

// Gradients of all arguments; d_target, d_source, d_pair, d_logits, d_weight, d_bias come in as zeros.
extern "C" void attend_backward(const T* gradient, const T* at_target, const T* at_source, const T* at_pair,
    const T* logits, const T* weight, const T* weight_transposed, const T* bias, const int64_t* first,
    const int64_t* source, const int32_t* place, const T* count, const int64_t* block, int64_t blocks, int64_t longest,
    T* d_target, T* d_source, T* d_pair, T* d_logits, T* d_weight, T* d_bias, int threads) {
    const Graph graph{{first, block, blocks, longest}, source, place, count};
    constexpr int PARAMETERS = HIDDEN * VALUE + VALUE + HEADS * ATTENTION;
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
        Row row(longest, true);
        std::vector<T> to_value(longest * VALUE), to_hidden(longest * HIDDEN), to_logit(longest * HEADS);
        T* sum_weight = &sums[int64_t(me) * PARAMETERS];
        T* sum_bias = sum_weight + HIDDEN * VALUE;
        T* sum_logits = sum_bias + VALUE;
        for (int64_t i = block[graph.rows.share(me, all)]; i < block[graph.rows.share(me + 1, all)]; ++i) {
            const int64_t begin = first[i], pairs = first[i + 1] - begin;
            if (!pairs) continue;
            forward_row<true>(graph, i, at_target, at_source, at_pair, logits, weight, bias, row);
            const T* out = gradient + i * HEADS * VALUE;
            for (int h = 0; h < HEADS; ++h) {
                T mean = 0;
                for (int64_t p = 0; p < pairs; ++p) {
                    Vec product{};
                    for (int v = 0; v < C; ++v)
                        product += load(out + h * VALUE + v * LANES) * load(&row.value[p * VALUE + v * LANES]);
                    to_logit[h * longest + p] = sum(product);
                    mean += to_logit[h * longest + p] * row.weight[h * longest + p];
                }
                for (int64_t p = 0; p < pairs; ++p)
                    to_logit[h * longest + p] = row.weight[h * longest + p] * (to_logit[h * longest + p] - mean);
            }
            for (int64_t p = 0; p < pairs; ++p) {
                Vec x[C] = {};
                for (int h = 0; h < HEADS; ++h)
                    for (int v = 0; v < C; ++v)
                        x[v] += row.weight[h * longest + p] * load(out + h * VALUE + v * LANES);
                normalise_backward<VALUE>(x, &row.value[p * VALUE], row.scale_value[p]);
                for (int v = 0; v < C; ++v) {
                    x[v] *= load(&row.d_value[p * VALUE + v * LANES]);
                    store(&to_value[p * VALUE + v * LANES], x[v]);
                    add_to(sum_bias + v * LANES, x[v]);
                }
            }
            add_product_of_columns<HIDDEN, VALUE>(sum_weight, row.hidden.data(), to_value.data(), pairs);
            product<VALUE, HIDDEN>(to_hidden.data(), to_value.data(), weight_transposed, nullptr, pairs);
            Vec at_row[F] = {};
            for (int64_t p = 0; p < pairs; ++p) {
                Vec x[F] = {};
                for (int h = 0; h < HEADS; ++h)
                    for (int v = 0; v < A; ++v) {
                        x[v] += to_logit[h * longest + p] * load(logits + h * ATTENTION + v * LANES);
                        add_to(sum_logits + h * ATTENTION + v * LANES,
                            to_logit[h * longest + p] * load(&row.attention[p * ATTENTION + v * LANES]));
                    }
                for (int v = 0; v < B; ++v) x[A + v] = load(&to_hidden[p * HIDDEN + v * LANES]);
                normalise_backward<ATTENTION>(x, &row.attention[p * ATTENTION], row.scale_attention[p]);
                normalise_backward<HIDDEN>(x + A, &row.hidden[p * HIDDEN], row.scale_hidden[p]);
                T* at_j = d_source + source[begin + p] * FIRST;
                T* at_d = d_pair + int64_t(place[begin + p]) * FIRST;
#pragma GCC unroll 16
                for (int v = 0; v < F; ++v) {
                    x[v] *= load(v < A ? &row.d_attention[p * ATTENTION + v * LANES]
                                       : &row.d_hidden[p * HIDDEN + (v - A) * LANES]);
                    at_row[v] += x[v];
                    add_to(at_j + v * LANES, x[v]);
                    add_to(at_d + v * LANES, x[v]);
                }
            }
            for (int v = 0; v < F; ++v) store(d_target + i * FIRST + v * LANES, at_row[v]);
        }
    }
    for (int t = 0; t < used; ++t) {
        const T* from = &sums[int64_t(t) * PARAMETERS];
        for (int k = 0; k < HIDDEN * VALUE; ++k) d_weight[k] += from[k];
        for (int k = 0; k < VALUE; ++k) d_bias[k] += from[HIDDEN * VALUE + k];
        for (int k = 0; k < HEADS * ATTENTION; ++k) d_logits[k] += from[HIDDEN * VALUE + VALUE + k];
    }
}
