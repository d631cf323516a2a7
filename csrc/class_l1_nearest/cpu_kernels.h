// Included by common/cpu_copies.h once per instruction set, inside its namespace, and so without an include guard.

// Updates nearest [num_queries], the nearest keys so far.
template <typename Key>
void class_l1_nearest(const NearestGroup<Key>& group, Nearest<Compute<Key>>* nearest);
