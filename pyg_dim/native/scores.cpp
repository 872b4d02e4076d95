// Losses of scored constituents, summed over the rows that they belong to, forward and backward.
//
//   key = mish(shared[index] + own + length * slope)     each of the three where there is one
//   sum[way, row] = sum over the constituents of a row of weight * softplus(-+ (queries[target] . key + offset[target]))
//
// A set of constituents is scored in one or more ways; the target of a way is the same for all constituents of a row.
#include <omp.h>

#include <vector>

#include "rows.h"

constexpr int C = KEY / LANES;
static_assert(KEY % LANES == 0);

struct Set {
    const T* shared;       // [sites, KEY], or null
    const int64_t* index;  // [pairs] row of shared
    const T* own;          // [pairs, KEY], or null
    const T* length;       // [pairs], or null
    T* d_shared;           // gradients, or null in the forward pass
    T* d_own;
};

struct Way {
    int64_t set, belongs;
    const int64_t* target;  // [rows]
    const T* weight;        // [pairs], or null
};

static inline void hidden_layer(const Set& set, const T* slope, int64_t e, Vec* x) {
    const T* shared = set.shared ? set.shared + set.index[e] * KEY : nullptr;
    for (int v = 0; v < C; ++v) {
        x[v] = shared ? load(shared + v * LANES) : Vec{};
        if (set.own) x[v] += load(set.own + e * KEY + v * LANES);
        if (set.length) x[v] += set.length[e] * load(slope + v * LANES);
    }
}

static inline T score(const T* query, const Vec* key) {
    Vec product = load(query) * key[0];
    for (int v = 1; v < C; ++v) product += load(query + v * LANES) * key[v];
    return sum(product);
}

// Zeros up to a whole vector: what another row left there may be infinite.
static inline void fill_last(T* scores, int64_t count) {
    for (int64_t p = count; p % LANES; ++p) scores[p] = 0;
}

extern "C" void score_rows(T* sums, T* norms, const T* queries, const T* offsets, const T* slope, const Set* sets,
    int64_t num_sets, const Way* ways, int64_t num_ways, const int64_t* first, const int64_t* block, int64_t blocks,
    int64_t longest, int threads) {
    const Rows rows{first, block, blocks, longest};
    const int64_t num_rows = block[blocks], padded = (longest + LANES - 1) / LANES * LANES;
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        std::vector<T> scores(num_ways * padded);
        for (int64_t i = block[rows.share(me, all)]; i < block[rows.share(me + 1, all)]; ++i) {
            const int64_t begin = first[i], count = first[i + 1] - begin;
            for (int64_t s = 0; s < num_sets; ++s)
                for (int64_t p = 0; p < count; ++p) {
                    Vec key[C];
                    hidden_layer(sets[s], slope, begin + p, key);
                    for (int v = 0; v < C; ++v) key[v] = mish(key[v]);
                    for (int64_t w = 0; w < num_ways; ++w)
                        if (ways[w].set == s)
                            scores[w * padded + p] = score(queries + ways[w].target[i] * KEY, key);
                }
            for (int64_t w = 0; w < num_ways; ++w) {
                const T offset = offsets[ways[w].target[i]];
                fill_last(scores.data() + w * padded, count);
                Vec total{};
                T norm = 0;
                for (int64_t p = 0; p < count; p += LANES) {
                    T weight[LANES] = {};
                    for (int l = 0; l < LANES && p + l < count; ++l) {
                        weight[l] = ways[w].weight ? ways[w].weight[begin + p + l] : T(1);
                        norm += weight[l];
                    }
                    Vec value = load(&scores[w * padded + p]) + offset;
                    total += load(weight) * softplus(ways[w].belongs ? -value : value);
                }
                sums[w * num_rows + i] = sum(total);
                norms[w * num_rows + i] = norm;
            }
        }
    }
}

// gradient [ways, rows]: that of the sums. d_queries [ways, rows, KEY] and d_offsets [ways, rows]: of the target of each
// row. d_slope and the gradients of the sets come in as zeros.
extern "C" void score_rows_backward(const T* gradient, const T* queries, const T* offsets, const T* slope,
    const Set* sets, int64_t num_sets, const Way* ways, int64_t num_ways, const int64_t* first, const int64_t* block,
    int64_t blocks, int64_t longest, T* d_queries, T* d_offsets, T* d_slope, int threads) {
    const Rows rows{first, block, blocks, longest};
    const int64_t num_rows = block[blocks], padded = (longest + LANES - 1) / LANES * LANES;
    std::vector<T> slopes;
    int used = 1;
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
#pragma omp single
        {
            used = all;
            slopes.assign(int64_t(all) * KEY, 0);
        }
        std::vector<T> keys(longest * KEY), derivatives(longest * KEY), scores(num_ways * padded);
        Vec sum_slope[C] = {};
        for (int64_t i = block[rows.share(me, all)]; i < block[rows.share(me + 1, all)]; ++i) {
            const int64_t begin = first[i], count = first[i + 1] - begin;
            for (int64_t s = 0; s < num_sets; ++s) {
                const Set& set = sets[s];
                for (int64_t p = 0; p < count; ++p) {
                    Vec key[C], derivative;
                    hidden_layer(set, slope, begin + p, key);
                    for (int v = 0; v < C; ++v) {
                        key[v] = mish(key[v], derivative);
                        store(&keys[p * KEY + v * LANES], key[v]);
                        store(&derivatives[p * KEY + v * LANES], derivative);
                    }
                    for (int64_t w = 0; w < num_ways; ++w)
                        if (ways[w].set == s)
                            scores[w * padded + p] = score(queries + ways[w].target[i] * KEY, key);
                }
                // From here on scores holds the gradients of the scores.
                for (int64_t w = 0; w < num_ways; ++w) {
                    if (ways[w].set != s) continue;
                    fill_last(scores.data() + w * padded, count);
                    const T offset = offsets[ways[w].target[i]], factor = gradient[w * num_rows + i];
                    Vec total{};
                    for (int64_t p = 0; p < count; p += LANES) {
                        T weight[LANES] = {};
                        for (int l = 0; l < LANES && p + l < count; ++l)
                            weight[l] = factor * (ways[w].weight ? ways[w].weight[begin + p + l] : T(1));
                        Vec value = load(&scores[w * padded + p]) + offset;
                        Vec at_score = load(weight) * (ways[w].belongs ? -sigmoid(-value) : sigmoid(value));
                        store(&scores[w * padded + p], at_score);
                        total += at_score;
                    }
                    d_offsets[w * num_rows + i] = sum(total);
                    Vec query[C] = {};
                    for (int64_t p = 0; p < count; ++p)
                        for (int v = 0; v < C; ++v)
                            query[v] += scores[w * padded + p] * load(&keys[p * KEY + v * LANES]);
                    for (int v = 0; v < C; ++v) store(d_queries + (w * num_rows + i) * KEY + v * LANES, query[v]);
                }
                for (int64_t p = 0; p < count; ++p) {
                    Vec x[C] = {};
                    for (int64_t w = 0; w < num_ways; ++w)
                        if (ways[w].set == s)
                            for (int v = 0; v < C; ++v)
                                x[v] += scores[w * padded + p] * load(queries + ways[w].target[i] * KEY + v * LANES);
                    for (int v = 0; v < C; ++v) {
                        x[v] *= load(&derivatives[p * KEY + v * LANES]);
                        if (set.shared) add_to(set.d_shared + set.index[begin + p] * KEY + v * LANES, x[v]);
                        if (set.own) store(set.d_own + (begin + p) * KEY + v * LANES, x[v]);
                        if (set.length) sum_slope[v] += set.length[begin + p] * x[v];
                    }
                }
            }
        }
        for (int v = 0; v < C; ++v) store(&slopes[me * KEY + v * LANES], sum_slope[v]);
    }
    for (int t = 0; t < used; ++t)
        for (int k = 0; k < KEY; ++k) d_slope[k] += slopes[t * KEY + k];
}
