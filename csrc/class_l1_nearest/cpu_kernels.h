// Included by common/cpu_copies.h once per instruction set, inside its namespace: hence no include guard.

// nearest [num_queries] holds what was found before, and takes what is nearer.
template <typename Key>
void class_l1_nearest(const NearestGroup<Key>& group, Nearest<Compute<Key>>* nearest);
