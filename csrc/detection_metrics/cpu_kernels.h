// Included by common/cpu_copies.h once per instruction set, inside its namespace, and so without an include guard.

template <typename Key>
bool is_ascending(const Key* keys, int64_t count);

// Statistics of the part of a pair between two merge points at most kTile apart ...
template <typename Key>
RankSums rank_tile(const ScorePair<Key>& pair, MergePoint begin, MergePoint end);

// ... or the ranks of its scores, written at their positions in `ranks`.
template <typename Key>
void write_ranks(const ScorePair<Key>& pair, MergePoint begin, MergePoint end, const Ranks& ranks);

// Statistics of a pair whose scores count by weights, given as running sums, from all its ranks. Tiles are here positions
// [t kTile, (t + 1) kTile) of both classes.
RankSums rank_weighted(const Ranks& ranks, int64_t num_id, WeightBefore id_before, int64_t num_ood,
                       WeightBefore ood_before);

// counts[count] of one replicate; `size` for kSubset alone.
void draw_counts(const RandomStream& stream, Resampling scheme, int64_t count, int64_t size, int32_t* counts);
