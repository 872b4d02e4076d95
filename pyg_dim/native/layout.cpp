// Rows of pairs: where they begin, which of them share sources, and which lengths occur.
#include <vector>

#include "vectors.h"

// Pairs [pairs] sorted by target -> first [sites + 1]: first pair of each site; block [sites + 1]: first site of each
// block of sites whose pairs begin inside the block (a crystal, or several that share sites); place [pairs]: number of
// each length among the different ones of its block; member [pairs]: a pair of each length. sizes: number of blocks,
// of lengths, of pairs of the longest row. Without lengths (null) place and member stay as they are. Returns 1 where the
// pairs are not sorted, or name a site that is not there.
extern "C" int layout(const int64_t* source, const int64_t* target, const T* length, int64_t pairs, int64_t sites,
    int64_t* first, int64_t* block, int32_t* place, int64_t* member, int64_t* sizes) {
    int64_t row = 0;
    first[0] = 0;
    for (int64_t e = 0; e < pairs; ++e) {
        if (target[e] < 0 || target[e] >= sites || source[e] < 0 || source[e] >= sites) return 1;
        if (e && target[e] < target[e - 1]) return 1;
        while (row < target[e]) first[++row] = e;
    }
    while (row < sites) first[++row] = pairs;

    // A block ends before a site to which and from which no pair of the sites before leads.
    std::vector<int64_t> least(sites + 1, sites);
    for (int64_t i = sites - 1; i >= 0; --i) {
        least[i] = least[i + 1];
        for (int64_t e = first[i]; e < first[i + 1]; ++e)
            if (source[e] < least[i]) least[i] = source[e];
    }
    int64_t blocks = 0, most = -1, longest = 0;
    for (int64_t i = 0; i < sites; ++i) {
        if (most < i && least[i] >= i) block[blocks++] = i;
        for (int64_t e = first[i]; e < first[i + 1]; ++e)
            if (source[e] > most) most = source[e];
        if (first[i + 1] - first[i] > longest) longest = first[i + 1] - first[i];
    }
    block[blocks] = sites;

    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    std::vector<Bits> seen;
    std::vector<int32_t> number;
    int64_t lengths = 0;
    for (int64_t b = 0; length && b < blocks; ++b) {
        const int64_t begin = first[block[b]], end = first[block[b + 1]];
        int shift = 62;
        while ((int64_t(1) << (64 - shift)) < 2 * (end - begin)) --shift;
        const int64_t slots = int64_t(1) << (64 - shift);
        seen.resize(slots);
        number.assign(slots, -1);
        for (int64_t e = begin; e < end; ++e) {
            Bits bits;
            std::memcpy(&bits, length + e, sizeof(bits));
            uint64_t slot = uint64_t(bits) * 0x9E3779B97F4A7C15ull >> shift;
            while (number[slot] >= 0 && seen[slot] != bits) slot = (slot + 1) & (slots - 1);
            if (number[slot] < 0) {
                seen[slot] = bits;
                number[slot] = int32_t(lengths);
                member[lengths++] = e;
            }
            place[e] = number[slot];
        }
    }
    sizes[0] = blocks;
    sizes[1] = lengths;
    sizes[2] = longest;
    return 0;
}
