// Vectors as long as the registers of the machine, the functions that the kernels are made of, and small matrix
// products. (Of longer vectors compilers make scalar code in many places: many times slower where 64 bytes met AVX2.)
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifndef SCALAR
#define SCALAR float
#endif

using T = SCALAR;
using Int = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
#if defined(__AVX512F__)
constexpr int BYTES = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int BYTES = 32, REGISTERS = 16;
#else
constexpr int BYTES = 16, REGISTERS = 16;
#endif
typedef T Vec __attribute__((vector_size(BYTES)));
typedef std::make_unsigned_t<Int> UnsignedVec __attribute__((vector_size(BYTES)));
typedef T LooseVec __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
constexpr int LANES = BYTES / sizeof(T);
constexpr T LAYER_NORM_EPS = 1e-5;

static inline Vec load(const T* from) { return *reinterpret_cast<const LooseVec*>(from); }
static inline void store(T* to, Vec values) { *reinterpret_cast<LooseVec*>(to) = values; }
static inline void add_to(T* to, Vec values) { store(to, load(to) + values); }
static inline Vec fill(T value) { return Vec{} + value; }

// The sum of the lanes, by halves.
template <int SIZE, class Lanes>
static inline T sum_halves(Lanes values) {
    if constexpr (SIZE == sizeof(T)) {
        return values[0];
    } else {
        typedef T Half __attribute__((vector_size(SIZE / 2)));
        Half low, high;
        std::memcpy(&low, &values, SIZE / 2);
        std::memcpy(&high, reinterpret_cast<const char*>(&values) + SIZE / 2, SIZE / 2);
        return sum_halves<SIZE / 2>(low + high);
    }
}

static inline T sum(Vec values) { return sum_halves<BYTES>(values); }

// e^x for x in [-87, 20] (values outside are set to the ends), to rounding; NaN for NaN.
static inline Vec exp(Vec x) {
    constexpr bool single = sizeof(T) == 4;
    constexpr T shifter = single ? T(12582912) : T(6755399441055744);  // 1.5 * 2^mantissa: adding it rounds
    constexpr T high = single ? T(0.693145751953125) : T(0.693147180369123816490);
    constexpr T low = single ? T(1.42860682030941723212e-6) : T(1.90821492927058770002e-10);
    constexpr T inverse_factorial[] = {1, 1, 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320,
        1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600};
    constexpr int degree = single ? 7 : 12;
    x = x < fill(-87) ? fill(-87) : x;
    x = x > fill(20) ? fill(20) : x;
    Vec shifted = x * T(1.44269504088896340736) + shifter;
    Vec whole = shifted - shifter;
    Vec rest = x - whole * high - whole * low;
    Vec value = fill(inverse_factorial[degree]);
#pragma GCC unroll 16
    for (int k = degree - 1; k >= 0; --k) value = value * rest + inverse_factorial[k];
    // A product, since adding to the exponent of NaN could make a number of it.
    constexpr T one = 1;
    std::make_unsigned_t<Int> exponent;
    std::memcpy(&exponent, &one, sizeof(T));
    return value * (Vec)(((UnsignedVec)shifted << (single ? 23 : 52)) + exponent);
}

// ln(1 + u) for u in [0, 1]: 2 artanh(u / (2 + u)).
static inline Vec log1p(Vec u) {
    Vec s = u / (u + T(2)), square = s * s;
    constexpr int terms = sizeof(T) == 4 ? 8 : 17;
    Vec value = fill(T(1) / (2 * terms - 1));
#pragma GCC unroll 20
    for (int k = terms - 2; k >= 0; --k) value = value * square + T(1) / (2 * k + 1);
    return 2 * s * value;
}

// softplus(t) = ln(1 + e^t)
static inline Vec softplus(Vec t) {
    Vec positive = t > Vec{} ? t : Vec{};
    return positive + log1p(exp(t > Vec{} ? -t : t));
}

static inline Vec sigmoid(Vec t) {
    Vec e = exp(t > Vec{} ? -t : t);
    return (t > Vec{} ? fill(1) : e) / (e + T(1));
}

// mish(x) = x tanh(softplus(x)) = x n / (n + 2) with n = e^x (e^x + 2)
static inline Vec mish(Vec x) {
    Vec e = exp(x), n = e * (e + T(2));
    return x * (n / (n + T(2)));
}

static inline Vec mish(Vec x, Vec& derivative) {
    Vec e = exp(x), n = e * (e + T(2)), inverse = T(1) / (n + T(2));
    Vec share = n * inverse;
    derivative = share + x * (T(4) * e * (e + T(1)) * inverse * inverse);
    return x * share;
}

// In place: (x - mean) / sqrt(variance + eps). Returns 1 / sqrt(variance + eps).
template <int WIDTH>
static inline T normalise(Vec* x) {
    constexpr int n = WIDTH / LANES;
    Vec total = x[0];
#pragma GCC unroll 16
    for (int v = 1; v < n; ++v) total += x[v];
    T mean = sum(total) / WIDTH;
    Vec squares{};
#pragma GCC unroll 16
    for (int v = 0; v < n; ++v) {
        x[v] -= mean;
        squares += x[v] * x[v];
    }
    T scale = 1 / __builtin_sqrt(sum(squares) / WIDTH + LAYER_NORM_EPS);
#pragma GCC unroll 16
    for (int v = 0; v < n; ++v) x[v] *= scale;
    return scale;
}

// In place: the gradient with respect to y = normalise(x) becomes that with respect to x.
template <int WIDTH>
static inline void normalise_backward(Vec* gradient, const T* y, T scale) {
    constexpr int n = WIDTH / LANES;
    Vec total{}, product{};
#pragma GCC unroll 16
    for (int v = 0; v < n; ++v) {
        total += gradient[v];
        product += gradient[v] * load(y + v * LANES);
    }
    T mean = sum(total) / WIDTH, slope = sum(product) / WIDTH;
#pragma GCC unroll 16
    for (int v = 0; v < n; ++v) gradient[v] = scale * (gradient[v] - mean - load(y + v * LANES) * slope);
}

// Vectors of a row that are summed at once: as many as six rows of them leave registers for.
constexpr int chunk_of(int vectors) {
    return REGISTERS >= 32 && vectors % 4 == 0 ? 4 : vectors % 2 == 0 ? 2 : 1;
}

template <int ROWS, int K, int N>
static inline void product_rows(T* out, const T* a, const T* b, const T* bias) {
    constexpr int CHUNK = chunk_of(N / LANES);
    for (int column = 0; column < N; column += CHUNK * LANES) {
        Vec sums[ROWS][CHUNK];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < CHUNK; ++v) sums[r][v] = bias ? load(bias + column + v * LANES) : Vec{};
        for (int k = 0; k < K; ++k) {
            Vec line[CHUNK];
#pragma GCC unroll 4
            for (int v = 0; v < CHUNK; ++v) line[v] = load(b + k * N + column + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < CHUNK; ++v) sums[r][v] += a[r * K + k] * line[v];
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < CHUNK; ++v) store(out + r * N + column + v * LANES, sums[r][v]);
    }
}

// out [rows, N] = a [rows, K] b [K, N] + bias [N] (or none)
template <int K, int N>
static inline void product(T* out, const T* a, const T* b, const T* bias, int64_t rows) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6) product_rows<6, K, N>(out + r * N, a + r * K, b, bias);
    for (; r + 2 <= rows; r += 2) product_rows<2, K, N>(out + r * N, a + r * K, b, bias);
    if (r < rows) product_rows<1, K, N>(out + r * N, a + r * K, b, bias);
}

// out [K, N] += a [rows, K]^T b [rows, N]
template <int K, int N>
static inline void add_product_of_columns(T* out, const T* a, const T* b, int64_t rows) {
    constexpr int CHUNK = chunk_of(N / LANES), ROWS = 4;
    for (int k = 0; k < K; k += ROWS)
        for (int column = 0; column < N; column += CHUNK * LANES) {
            Vec sums[ROWS][CHUNK] = {};
            for (int64_t p = 0; p < rows; ++p) {
                Vec line[CHUNK];
#pragma GCC unroll 4
                for (int v = 0; v < CHUNK; ++v) line[v] = load(b + p * N + column + v * LANES);
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
                    for (int v = 0; v < CHUNK; ++v) sums[r][v] += a[p * K + k + r] * line[v];
            }
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < CHUNK; ++v) add_to(out + (k + r) * N + column + v * LANES, sums[r][v]);
        }
}
