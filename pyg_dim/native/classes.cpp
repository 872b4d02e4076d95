// Classes of sites and edges that a network over a graph cannot tell apart, and means over them. One thread: it is that
// of a loader, beside the threads of a step.
#include <algorithm>
#include <utility>
#include <vector>

#include "vectors.h"

using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// What the order of numbers is that of, as integers.
static Bits ordered(T value) {
    Int bits;
    std::memcpy(&bits, &value, sizeof(bits));
    constexpr int last = 8 * sizeof(T) - 1;
    return Bits(bits ^ (bits >> last)) ^ (Bits(bits < 0 ? 0 : 1) << last);
}

// One crystal: its edges sorted by length, and in rows by target.
struct Crystal {
    struct Length {
        Bits key;
        int32_t edge;
    };
    int64_t sites, edges;
    std::vector<Length> sorted, swapped;
    std::vector<int32_t> first;       // [sites + 1] first edge of each row
    std::vector<int32_t> next;        // [sites] where the next edge of a row comes
    std::vector<int32_t> alike;       // [edges] row by row, ascending: number of the length among those of the crystal
    std::vector<uint64_t> met;        // [edges] row by row: class of the source << 32 | edge, ascending at one length
    std::vector<uint32_t> from;       // [edges] row by row: class of the source
    std::vector<uint32_t> site;       // [sites] class of each
    std::vector<uint32_t> before;     // [sites] in the round before
    std::vector<int32_t> member;      // first member of each class
    std::vector<int32_t> order, start;
    int64_t classes;

    // Ascending, by one byte after the other; equal ones stay in their order.
    void sort_lengths(const T* length) {
        sorted.resize(edges);
        swapped.resize(edges);
        int32_t count[sizeof(Bits)][256] = {};
        for (int64_t e = 0; e < edges; ++e) {
            const Bits key = ordered(length[e]);
            sorted[e] = {key, int32_t(e)};
            for (unsigned byte = 0; byte < sizeof(Bits); ++byte) ++count[byte][key >> 8 * byte & 255];
        }
        for (unsigned byte = 0; byte < sizeof(Bits); ++byte) {
            int32_t before = 0;
            for (int32_t& place : count[byte]) before += std::exchange(place, before);
            for (const Length& one : sorted) swapped[count[byte][one.key >> 8 * byte & 255]++] = one;
            sorted.swap(swapped);
        }
    }

    // Rows of the edges, ascending in length; lengths side by side within the tolerance get the same number.
    void lay_out(const T* length, const int64_t* target, int64_t begin, T tolerance) {
        sort_lengths(length);
        first.assign(sites + 1, 0);
        for (int64_t e = 0; e < edges; ++e) ++first[target[e] - begin + 1];
        for (int64_t i = 0; i < sites; ++i) first[i + 1] += first[i];
        next.assign(first.begin(), first.end() - 1);
        alike.resize(edges);
        met.resize(edges);
        from.resize(edges);
        int32_t number = 0;
        for (int64_t k = 0; k < edges; ++k) {
            const int32_t edge = sorted[k].edge;
            if (k && length[edge] - length[sorted[k - 1].edge] > tolerance) ++number;
            const int32_t place = next[target[edge] - begin]++;
            alike[place] = number;
            met[place] = uint64_t(edge);
        }
    }

    int64_t edge(int64_t place) const { return int64_t(met[place] & 0xFFFFFFFF); }

    // Puts the edges of a row that are equally long in the order of the classes of their sources.
    void arrange(const int64_t* source, int64_t begin) {
        for (int64_t k = 0; k < edges; ++k) met[k] = uint64_t(site[source[edge(k)] - begin]) << 32 | edge(k);
        for (int64_t i = 0; i < sites; ++i)
            for (int64_t k = first[i], end; k < first[i + 1]; k = end) {
                for (end = k + 1; end < first[i + 1] && alike[end] == alike[k];) ++end;
                if (end - k > 16) {
                    std::sort(met.begin() + k, met.begin() + end);
                    continue;
                }
                for (int64_t next = k + 1; next < end; ++next) {
                    const uint64_t one = met[next];
                    int64_t place = next;
                    for (; place > k && met[place - 1] > one; --place) met[place] = met[place - 1];
                    met[place] = one;
                }
            }
        for (int64_t k = 0; k < edges; ++k) from[k] = uint32_t(met[k] >> 32);
    }

    // Numbers classes of sites, equal where compare(i, j) is 0, by their first members.
    template <class Compare>
    void number_sites(Compare compare) {
        order.resize(sites);
        start.resize(sites);
        for (int64_t i = 0; i < sites; ++i) order[i] = int32_t(i);
        std::sort(order.begin(), order.end(), [&](int32_t i, int32_t j) {
            const int sign = compare(i, j);
            return sign ? sign < 0 : i < j;
        });
        for (int64_t k = 0; k < sites; ++k)
            start[order[k]] = k && !compare(order[k - 1], order[k]) ? start[order[k - 1]] : order[k];
        member.clear();
        for (int32_t i = 0; i < sites; ++i) {
            if (start[i] == i) {
                site[i] = uint32_t(member.size());
                member.push_back(i);
            } else {
                site[i] = site[start[i]];
            }
        }
        classes = int64_t(member.size());
    }

    int compare_rows(int32_t i, int32_t j) const {
        if (before[i] != before[j]) return before[i] < before[j] ? -1 : 1;
        const int32_t width = first[i + 1] - first[i], other = first[j + 1] - first[j];
        if (width != other) return width < other ? -1 : 1;
        const int sign = std::memcmp(alike.data() + first[i], alike.data() + first[j], width * sizeof(int32_t));
        return sign ? sign : std::memcmp(from.data() + first[i], from.data() + first[j], width * sizeof(uint32_t));
    }

    // Splits classes until all members of one meet the same classes equally often.
    void refine(const int64_t* source, int64_t begin) {
        arrange(source, begin);
        while (classes < sites) {
            const int64_t known = classes;
            before = site;
            number_sites([this](int32_t i, int32_t j) { return compare_rows(i, j); });
            if (classes == known) return;
            arrange(source, begin);
        }
    }
};

// Edges [edges] sorted by target, within crystals [sites] in ascending order; kind [sites, bytes]: what tells sites
// apart from the start. -> site_class [sites], site_count, edge_class [edges], edge_count: numbered by their first
// members. sizes: numbers of the classes of sites and of edges. Returns 1 where the edges are not so.
extern "C" int classes(const int64_t* source, const int64_t* target, const T* length, int64_t edges,
    const int64_t* crystal, const uint8_t* kind, int64_t bytes, int64_t sites, double tolerance, int64_t* site_class,
    int64_t* site_count, int64_t* edge_class, int64_t* edge_count, int64_t* sizes) {
    Crystal one;
    std::vector<int64_t> number;
    int64_t known_sites = 0, known_edges = 0, edge = 0;
    for (int64_t begin = 0, end; begin < sites; begin = end) {
        for (end = begin + 1; end < sites && crystal[end] == crystal[begin];) ++end;
        if (end < sites && crystal[end] < crystal[begin]) return 1;
        const int64_t start = edge;
        for (; edge < edges && target[edge] < end; ++edge) {
            if (target[edge] < begin || source[edge] < begin || source[edge] >= end) return 1;
            if (edge > start && target[edge] < target[edge - 1]) return 1;
        }
        one.sites = end - begin;
        one.edges = edge - start;
        one.site.resize(one.sites);
        one.lay_out(length + start, target + start, begin, T(tolerance));
        const uint8_t* mine = kind + begin * bytes;
        one.number_sites([=](int32_t i, int32_t j) { return std::memcmp(mine + i * bytes, mine + j * bytes, bytes); });
        one.refine(source + start, begin);

        for (int64_t i = 0; i < one.classes; ++i) site_count[known_sites + i] = 0;
        number.assign(one.edges, -1);
        for (int64_t i = 0; i < one.sites; ++i) {
            const int64_t row = one.first[i], like = one.first[one.member[one.site[i]]], width = one.first[i + 1] - row;
            site_class[begin + i] = known_sites + one.site[i];
            ++site_count[known_sites + one.site[i]];
            if (row == like) {
                // Kept at the first edge of each class in the row of its first site; its edges are in their order.
                for (int64_t k = row; k < row + width; ++k) {
                    const bool same = k > row && one.alike[k] == one.alike[k - 1] && one.from[k] == one.from[k - 1];
                    edge_class[start + one.edge(k)] = same ? edge_class[start + one.edge(k - 1)] : k;
                }
                for (int64_t e = start + row; e < start + row + width; ++e) {
                    int64_t& mark = number[edge_class[e]];
                    if (mark < 0) edge_count[mark = known_edges++] = 0;
                    ++edge_count[edge_class[e] = mark];
                }
            } else {
                for (int64_t k = 0; k < width; ++k) {
                    const int64_t same = edge_class[start + one.edge(like + k)];
                    ++edge_count[edge_class[start + one.edge(row + k)] = same];
                }
            }
        }
        known_sites += one.classes;
    }
    if (edge < edges) return 1;
    sizes[0] = known_sites;
    sizes[1] = known_edges;
    return 0;
}

// Edges with their classes -> snapped [edges]: mean length of the class of each; pairs of classes of sites that the
// classes of edges join, sorted by target, then by source, then by class: pair_index [2, classes], pair_length, and
// pair_count, how many of them end at each site.
extern "C" void snap(const int64_t* source, const int64_t* target, const T* length, int64_t edges,
    const int64_t* site_class, const int64_t* site_count, int64_t kinds, const int64_t* edge_class,
    const int64_t* edge_count, int64_t classes, T* snapped, int64_t* pair_index, T* pair_length, int64_t* pair_count) {
    std::vector<double> mean(classes, 0);
    std::vector<int64_t> from(classes, -1), to(classes), order(classes), sorted(classes), place(kinds + 1);
    for (int64_t e = 0; e < edges; ++e) {
        const int64_t c = edge_class[e];
        mean[c] += double(length[e]);
        if (from[c] < 0) {
            from[c] = site_class[source[e]];
            to[c] = site_class[target[e]];
        }
    }
    for (int64_t c = 0; c < classes; ++c) mean[c] /= double(edge_count[c]);
    for (int64_t e = 0; e < edges; ++e) snapped[e] = T(mean[edge_class[e]]);

    // By source, then by target: equal ones stay in their order.
    for (int64_t c = 0; c < classes; ++c) order[c] = c;
    for (const auto* by : {&from, &to}) {
        place.assign(kinds + 1, 0);
        for (int64_t c = 0; c < classes; ++c) ++place[(*by)[c] + 1];
        for (int64_t k = 0; k < kinds; ++k) place[k + 1] += place[k];
        for (int64_t c : order) sorted[place[(*by)[c]]++] = c;
        order.swap(sorted);
    }
    for (int64_t p = 0; p < classes; ++p) {
        const int64_t c = order[p];
        pair_index[p] = from[c];
        pair_index[classes + p] = to[c];
        pair_length[p] = T(mean[c]);
        pair_count[p] = edge_count[c] / site_count[to[c]];
    }
}
