// Included by common/cpu_copies.h once per instruction set, inside its namespace, and so without an include guard.

// Images begin…end of the batch. Indices and offsets are in range.
template <typename Out>
void augment_images(const AugmentParams& params, int64_t begin, int64_t end,
                    uint8_t* scratch,  // [augment_scratch_size], zeros; its margins stay so
                    Out* out);         // of the whole batch
