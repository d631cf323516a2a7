// Results of the passes over a row of logits, for every loss.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fastood {

// Unused fields keep these initial values. x_k = (v_k - anchor) - lambda is log f_k, or log(K f_k) near the uniform
// point.
template <typename T>
struct RowValue {
  T anchor = 0;               // subtracted from every logit first; the largest one except near uniform
  T lambda = 0;               // then subtracted
  T uniform = 1;              // kUniformity, kEntropy: 1 where x_k = log(K f_k), 1/K where x_k = log f_k
  T value = 0;                // kUniformity, kEntropy: the loss; kNorm: the sum of squares
  T centre = 0;               // kEntropy: the f-weighted mean of x_k
  int64_t largest_class = 0;  // where needs_largest_class
};

// Sums of a pass over a row; entropy.h and uniformity.h define the terms. Of a softmax row, `deviation` is the number of
// largest logits and `exponential` the sum of exp(v_k - largest) over the others.
template <typename T>
struct RowSums {
  T deviation;
  T exponential;
  T product;
};

}  // namespace fastood
