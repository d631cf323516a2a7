// Included by common/cpu_copies.h once per instruction set, inside its namespace, and so without an include guard.

// Sums of `count` examples from the first of a leaf block on, rounded by `magic`, or not rounded where that is zero.
void pool_build(const float* omega, int64_t count, PoolPower power, const PoolMagic& magic,
                double* leaf_masses,  // [ceil(count / 64)] level 1
                PoolTotals* totals);

// Sums after a step of examples that were not drawn, which are updated in place.
void pool_step_undrawn(float* omega, float* velocity, int64_t count, PoolPower power, const PoolStep& step,
                       const PoolMagic& magic, double* leaf_masses, PoolTotals* totals);

// Gathered examples that were drawn: [count] each, in place; loss is the sum over the draws of each.
void pool_step_drawn(float* omega, float* velocity, const float* loss, int64_t count, PoolPower power,
                     const PoolStep& step);

// Gathered examples: w, p and w^(1 - epsilon), [count] each.
void pool_evaluate(const float* omega, int64_t count, PoolPower power, float* weight, float* mass, float* rest);

// One trial for each of `count` draws: the index proposed and the uniform that decides.
void pool_candidates(const double* uniform, int64_t count, uint32_t trial, int64_t num_examples, int64_t* index,
                     double* decision);
