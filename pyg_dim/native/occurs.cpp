// Which false samples are true by chance, row by row: every false pair against the true ones of its target.
#include <vector>

#include "vectors.h"

// out [pairs]: whether a pair (species of its source, length) of a row is, within the tolerance, a true pair of the
// target of the row.
extern "C" void edges_occur(bool* out, const int64_t* first, int64_t rows, int64_t longest, const int64_t* target,
    const int64_t* source, const T* length, const int64_t* species, const int64_t* true_species, double tolerance,
    int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<int32_t> kind(longest);
        const T within = T(tolerance);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t begin = first[target[i]], pairs = first[target[i] + 1] - begin;
            const T* true_length = length + begin;
            for (int64_t p = 0; p < pairs; ++p) kind[p] = int32_t(true_species[source[begin + p]]);
            for (int64_t e = first[i]; e < first[i + 1]; ++e) {
                const int32_t wanted = int32_t(species[source[e]]);
                const T at = length[e];
                int found = 0;
                for (int64_t p = 0; p < pairs; ++p) {
                    const T gap = true_length[p] - at;
                    found |= (kind[p] == wanted) & (gap < within) & (-gap < within);
                }
                out[e] = found;
            }
        }
    }
}

// out [rows, numbers]: sum over the pairs of a row of label[species of the source] / (1 + length), in float64.
extern "C" void environments(double* out, const int64_t* first, int64_t rows, const int64_t* source, const T* length,
    const double* label, int64_t numbers, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < numbers; ++k) out[i * numbers + k] = 0;
        for (int64_t e = first[i]; e < first[i + 1]; ++e)
            for (int64_t k = 0; k < numbers; ++k)
                out[i * numbers + k] += label[source[e] * numbers + k] / (1 + double(length[e]));
    }
}

// out [sites]: whether a site has the species and, within the tolerance, the numbers of a true site of its crystal.
extern "C" void sites_occur(bool* out, int64_t sites, const int64_t* crystal, const int64_t* ptr,
    const int64_t* species, const double* values, const int64_t* true_species, const double* true_values,
    int64_t numbers, double tolerance, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < sites; ++i) {
        bool found = false;
        for (int64_t j = ptr[crystal[i]]; j < ptr[crystal[i] + 1] && !found; ++j) {
            found = species[i] == true_species[j];
            for (int64_t k = 0; k < numbers && found; ++k) {
                const double gap = values[i * numbers + k] - true_values[j * numbers + k];
                found = gap < tolerance && -gap < tolerance;
            }
        }
        out[i] = found;
    }
}
