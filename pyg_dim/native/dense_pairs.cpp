// All pairs of the sites of crystals with those of their supercells, each over its shortest image. One thread: it is
// that of a loader, beside the threads of a step.
#include <algorithm>
#include <vector>

#include "vectors.h"
#pragma GCC optimize("no-math-errno")  // square roots of vectors

// Calculated in float64 throughout.
static_assert(sizeof(T) == 8, "the kernel is built for float64");

struct Matrix {
    double row[3][3];

    Matrix operator*(const Matrix& other) const {
        Matrix out{};
        for (int i = 0; i < 3; ++i)
            for (int j = 0; j < 3; ++j)
                for (int k = 0; k < 3; ++k) out.row[i][j] += row[i][k] * other.row[k][j];
        return out;
    }
};

static double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

static Matrix whole(const int64_t* numbers) {
    Matrix out;
    for (int k = 0; k < 9; ++k) out.row[k / 3][k % 3] = double(numbers[k]);
    return out;
}

// Whole numbers U of determinant +-1, such that the rows of U cell are the shortest vectors of the lattice, shortest
// first: the greedy algorithm, as in data/minimum_image.py.
static Matrix minkowski_reduction(const Matrix& cell, double least_gain) {
    Matrix change{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}}, reduced = cell;
    while (true) {
        int order[3] = {0, 1, 2};
        double square[3];
        for (int k = 0; k < 3; ++k) square[k] = dot(reduced.row[k], reduced.row[k]);
        std::stable_sort(order, order + 3, [&](int k, int l) { return square[k] < square[l]; });
        const Matrix before = change, unsorted = reduced;
        for (int k = 0; k < 3; ++k) {
            std::copy_n(before.row[order[k]], 3, change.row[k]);
            std::copy_n(unsorted.row[order[k]], 3, reduced.row[k]);
        }
        const double *a = reduced.row[0], *b = reduced.row[1], *c = reduced.row[2];
        const double aa = dot(a, a), ab = dot(a, b), bb = dot(b, b), ac = dot(a, c), bc = dot(b, c);
        // b is shortened by a; c by the nearest point of the lattice of a and b, one of the corners around its
        // projection.
        const double along = __builtin_rint(ab / aa), determinant = aa * bb - ab * ab;
        const double first = __builtin_floor((ac * bb - bc * ab) / determinant);
        const double second = __builtin_floor((bc * aa - ac * ab) / determinant);
        double point[2] = {}, shortest = __builtin_inf(), shorter[3];
        for (int corner = 0; corner < 4; ++corner) {
            const double s = first + corner / 2, t = second + corner % 2;
            for (int k = 0; k < 3; ++k) shorter[k] = c[k] - s * a[k] - t * b[k];
            if (const double length = dot(shorter, shorter); length < shortest) {
                shortest = length;
                point[0] = s;
                point[1] = t;
            }
        }
        for (int k = 0; k < 3; ++k) shorter[k] = b[k] - along * a[k];
        if (dot(shorter, shorter) < (1 - least_gain) * bb) {
            for (int k = 0; k < 3; ++k) change.row[1][k] -= along * change.row[0][k];
        } else if (shortest < (1 - least_gain) * dot(c, c)) {
            for (int k = 0; k < 3; ++k)
                change.row[2][k] -= point[0] * change.row[0][k] + point[1] * change.row[1][k];
        } else {
            return change;
        }
        reduced = change * cell;
    }
}

// Whether the inverse is finite.
static bool invert(const Matrix& matrix, Matrix& inverse) {
    const auto& m = matrix.row;
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
            const int k = (j + 1) % 3, l = (j + 2) % 3, r = (i + 1) % 3, s = (i + 2) % 3;
            inverse.row[i][j] = m[k][r] * m[l][s] - m[k][s] * m[l][r];
        }
    const double volume = m[0][0] * inverse.row[0][0] + m[0][1] * inverse.row[1][0] + m[0][2] * inverse.row[2][0];
    bool finite = true;
    for (auto& row : inverse.row)
        for (double& value : row) {
            value /= volume;
            finite &= __builtin_isfinite(value);
        }
    return finite;
}

static Vec rounded(Vec x) {
    constexpr T shifter = 6755399441055744;  // 1.5 * 2^52: adding it rounds
    return x + shifter - shifter;
}

// One of each pair n, -n of the images in {-1, 0, 1}^3.
constexpr int IMAGES = 13;
constexpr int IMAGE[IMAGES][3] = {{0, 0, 1}, {0, 1, -1}, {0, 1, 0}, {0, 1, 1}, {1, -1, -1}, {1, -1, 0}, {1, -1, 1},
    {1, 0, -1}, {1, 0, 0}, {1, 0, 1}, {1, 1, -1}, {1, 1, 0}, {1, 1, 1}};

// Periods of a crystal, reduced.
struct Period {
    Matrix basis, inverse;
    Matrix change;          // rows of basis in vectors of the cell
    double square[IMAGES];  // squared lengths of the images of the origin

    bool set(const Matrix& cell, const Matrix& supercell, double least_gain) {
        const Matrix period = supercell * cell, reduction = minkowski_reduction(period, least_gain);
        basis = reduction * period;
        change = reduction * supercell;
        for (int n = 0; n < IMAGES; ++n) {
            double image[3];
            for (int k = 0; k < 3; ++k)
                image[k] = IMAGE[n][0] * basis.row[0][k] + IMAGE[n][1] * basis.row[1][k] +
                    IMAGE[n][2] * basis.row[2][k];
            square[n] = dot(image, image);
        }
        return invert(basis, inverse);
    }

    // Numbers of the vectors of the basis that make the difference shortest.
    void shortest(const Vec* difference, Vec* number, double least_gain) const {
        Vec wrapped[3], along[3];
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k)
            number[k] = -rounded(difference[0] * inverse.row[0][k] + difference[1] * inverse.row[1][k] +
                difference[2] * inverse.row[2][k]);
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k)
            wrapped[k] = difference[k] + (number[0] * basis.row[0][k] + number[1] * basis.row[1][k] +
                number[2] * basis.row[2][k]);
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k)
            along[k] = wrapped[0] * basis.row[k][0] + wrapped[1] * basis.row[k][1] + wrapped[2] * basis.row[k][2];
        // |w + t|^2 - |w|^2 = |t|^2 +- 2 w.t for the images +-t
        Vec least = fill(__builtin_inf()), overlap{}, length{}, step[3] = {};
#pragma GCC unroll 16
        for (int n = 0; n < IMAGES; ++n) {
            Vec at{};
#pragma GCC unroll 3
            for (int k = 0; k < 3; ++k)
                if (IMAGE[n][k]) at = IMAGE[n][k] > 0 ? at + along[k] : at - along[k];
            const Vec gain = square[n] - 2 * (at > Vec{} ? at : -at);
            const auto better = gain < least;
            least = better ? gain : least;
            overlap = better ? at : overlap;
            length = better ? fill(square[n]) : length;
#pragma GCC unroll 3
            for (int k = 0; k < 3; ++k) step[k] = better ? fill(IMAGE[n][k]) : step[k];
        }
        const auto nearer = least < -least_gain * length;
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k) number[k] += nearer ? (overlap > Vec{} ? -step[k] : step[k]) : Vec{};
    }
};

// Sites pos [sites, 3] of crystals, cell [crystals, 3, 3] with vectors as rows, ptr [crystals + 1] first site of each,
// supercell [crystals, 3, 3] upper triangular. Pairs of each site, in order, with the images of each site of its
// crystal, source-major -> index [2, pairs], shift [pairs, 3] lattice image of the source, length [pairs]. Lengths from
// i to j and from j to i are the same bit by bit, unless several images are equally near. Returns the number of the
// first crystal whose lattice is none, or -1.
extern "C" int64_t dense_pairs(const double* pos, const double* cell, const int64_t* ptr, const int64_t* supercell,
    int64_t crystals, double least_gain, int64_t pairs, int64_t* index, int64_t* shift, double* length) {
    std::vector<double> columns;
    for (int64_t crystal = 0; crystal < crystals; ++crystal) {
        const int64_t begin = ptr[crystal], sites = ptr[crystal + 1] - begin;
        const int64_t* repeats = supercell + 9 * crystal;
        Matrix vectors;
        std::copy_n(cell + 9 * crystal, 9, vectors.row[0]);
        Period period;
        if (!period.set(vectors, whole(repeats), least_gain)) return crystal;

        // Columns: where an image of a site lies, the site, the offset of the image. Those that fill the last vector
        // are not written.
        const int64_t images = repeats[0] * repeats[4] * repeats[8], width = sites * images;
        const int64_t room = (width + LANES - 1) / LANES * LANES;
        columns.assign(13 * room, 0);
        double* const column = columns.data();
        double *const found = column + 9 * room, *const squared = column + 12 * room;
        for (int64_t c = 0; c < width; ++c) {
            const int64_t image = c % images;
            const double* site = pos + 3 * (begin + c / images);
            const double offset[3] = {double(image / (repeats[4] * repeats[8])),
                double(image / repeats[8] % repeats[4]), double(image % repeats[8])};
            for (int k = 0; k < 3; ++k) {
                column[(6 + k) * room + c] = offset[k];
                column[(3 + k) * room + c] = site[k];
                column[k * room + c] = site[k] + (offset[0] * vectors.row[0][k] + offset[1] * vectors.row[1][k] +
                    offset[2] * vectors.row[2][k]);
            }
        }
        for (int64_t i = begin; i < begin + sites; ++i) {
            const double* target = pos + 3 * i;
            for (int64_t c = 0; c < room; c += LANES) {
                Vec difference[3], number[3], image[3], square{};
#pragma GCC unroll 3
                for (int k = 0; k < 3; ++k) difference[k] = load(column + k * room + c) - target[k];
                period.shortest(difference, number, least_gain);
#pragma GCC unroll 3
                for (int k = 0; k < 3; ++k) {
                    image[k] = load(column + (6 + k) * room + c) + (number[0] * period.change.row[0][k] +
                        number[1] * period.change.row[1][k] + number[2] * period.change.row[2][k]);
                    store(found + k * room + c, image[k]);
                }
                // From the sites themselves: what is turned round has the same digits and another sign.
#pragma GCC unroll 3
                for (int k = 0; k < 3; ++k) {
                    const Vec way = load(column + (3 + k) * room + c) - target[k] + (image[0] * vectors.row[0][k] +
                        image[1] * vectors.row[1][k] + image[2] * vectors.row[2][k]);
                    square += way * way;
                }
                store(squared + c, square);
            }
            for (int64_t c = 0; c < width; ++c) length[c] = __builtin_sqrt(squared[c]);
            for (int64_t c = 0; c < width; ++c)
                for (int k = 0; k < 3; ++k) shift[3 * c + k] = int64_t(found[k * room + c]);
            for (int64_t source = 0, c = 0; source < sites; ++source)
                for (int64_t image = 0; image < images; ++image, ++c) index[c] = begin + source;
            for (int64_t c = 0; c < width; ++c) index[pairs + c] = i;
            length += width;
            shift += 3 * width;
            index += width;
        }
    }
    return -1;
}
