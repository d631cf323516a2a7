// Matrix products inside a CPU kernel, for any strides and with conversion on the way.
//
//     C[m, n] = alpha * sum_k A[m, k] B[k, n]  (+ C[m, n])
//
// The BLAS of PyTorch is not used: a call through the dispatcher costs as much as a small product, its precision
// follows torch.set_float32_matmul_precision, and on AMD processors MKL leaves AVX-512 unused. Panels are packed and
// padded with zeros, so that one micro-kernel of kTileRows x kTileColumns accumulators handles all sizes. Each element
// of C is summed in ascending k, in blocks of kDepth: the same bits however the rows of C are split between threads.
//
// Included by kernel sources inside the anonymous namespace of their instruction set, and so without an include guard.

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
constexpr int64_t kTileRows = 8;  // with two vectors of columns 16 of 32 registers, and enough to hide their latency
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
constexpr int64_t kTileRows = 6;
#else
constexpr int64_t kVectorBytes = 16;
constexpr int64_t kTileRows = 6;
#endif

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};

constexpr int64_t kTileVectors = 2;
template <typename T>
constexpr int64_t kTileColumns = kTileVectors * kVectorBytes / static_cast<int64_t>(sizeof(T));

// Blocks that stay in the level-2 cache: kRows x kDepth of A and kDepth x kColumns of B. All multiples of the tiles.
constexpr int64_t kDepth = 256;
constexpr int64_t kRows = 96;
constexpr int64_t kColumns = 512;

// A matrix with any strides; element (i, j) at data[i * row_stride + j * column_stride].
template <typename T>
struct MatrixView {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;

  MatrixView at(int64_t row, int64_t column) const {
    return {data + row * row_stride + column * column_stride, row_stride, column_stride};
  }
};

// Where B is zero by structure: products with those elements are skipped. The diagonal runs from its first element.
enum class Zeros { kNone, kBelowDiagonal, kAboveDiagonal };

// Elements of workspace for one block of each factor, allocated by the caller once for many products.
template <typename T>
constexpr int64_t kGemmWorkspace = kDepth * (kRows + kColumns);

// [outer, depth] of the source as panels of kWidth outer indices: panel[depth][kWidth], the last one filled with zeros.
template <int64_t kWidth, typename T, typename Source>
inline __attribute__((always_inline)) void pack(const Source* source, int64_t outer_stride, int64_t depth_stride,
                                                int64_t outer, int64_t depth, T* panels) {
  for (int64_t first = 0; first < outer; first += kWidth, panels += kWidth * depth) {
    const Source* from = source + first * outer_stride;
    const int64_t width = outer - first < kWidth ? outer - first : kWidth;
    if (width == kWidth && outer_stride == 1) {
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t j = 0; j < kWidth; ++j) {
          panels[k * kWidth + j] = static_cast<T>(from[k * depth_stride + j]);
        }
      }
      continue;
    }
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t k = 0; k < depth; ++k) {
        panels[k * kWidth + j] = static_cast<T>(from[j * outer_stride + k * depth_stride]);
      }
    }
    for (int64_t j = width; j < kWidth; ++j) {
      for (int64_t k = 0; k < depth; ++k) {
        panels[k * kWidth + j] = T(0);
      }
    }
  }
}

// One tile of C: rows x columns of it are stored, all are computed.
template <typename T>
inline __attribute__((always_inline)) void multiply_tile(const T* a, const T* b, int64_t depth, T alpha, bool add, T* c,
                                                         int64_t row_stride, int64_t rows, int64_t columns) {
  using Vector = typename VectorOf<T>::type;
  constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));
  Vector sums[kTileRows][kTileVectors] = {};
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileColumns<T>) {
    Vector column[kTileVectors];
    for (int64_t v = 0; v < kTileVectors; ++v) {
      column[v] = *reinterpret_cast<const Vector*>(b + v * kLanes);
    }
    for (int64_t r = 0; r < kTileRows; ++r) {
      for (int64_t v = 0; v < kTileVectors; ++v) {
        sums[r][v] += a[r] * column[v];
      }
    }
  }
  if (rows == kTileRows && columns == kTileColumns<T>) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      for (int64_t v = 0; v < kTileVectors; ++v) {
        Vector* out = reinterpret_cast<Vector*>(c + r * row_stride + v * kLanes);
        *out = add ? *out + alpha * sums[r][v] : alpha * sums[r][v];
      }
    }
    return;
  }
  T padded[kTileRows * kTileColumns<T>];
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t v = 0; v < kTileVectors; ++v) {
      *reinterpret_cast<Vector*>(padded + r * kTileColumns<T> + v * kLanes) = alpha * sums[r][v];
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < columns; ++j) {
      T& out = c[r * row_stride + j];
      out = add ? out + padded[r * kTileColumns<T> + j] : padded[r * kTileColumns<T> + j];
    }
  }
}

constexpr int64_t clamped(int64_t value, int64_t limit) {
  return value < 0 ? 0 : value < limit ? value : limit;
}

template <typename T, typename A, typename B>
void multiply(int64_t rows, int64_t columns, int64_t depth, T alpha, MatrixView<A> a, MatrixView<B> b, bool add, T* c,
              int64_t row_stride, T* workspace, Zeros zeros = Zeros::kNone) {
  constexpr int64_t kWidth = kTileColumns<T>;
  T* const packed_b = workspace;
  T* const packed_a = workspace + kDepth * kColumns;
  for (int64_t row = 0; row < rows && depth == 0 && !add; ++row) {
    for (int64_t j = 0; j < columns; ++j) {
      c[row * row_stride + j] = T(0);
    }
  }
  for (int64_t column = 0; column < columns; column += kColumns) {
    const int64_t num_columns = columns - column < kColumns ? columns - column : kColumns;
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t num_k = depth - k < kDepth ? depth - k : kDepth;
      pack<kWidth>(b.at(k, column).data, b.column_stride, b.row_stride, num_columns, num_k, packed_b);
      for (int64_t row = 0; row < rows; row += kRows) {
        const int64_t num_rows = rows - row < kRows ? rows - row : kRows;
        pack<kTileRows>(a.at(row, k).data, a.row_stride, a.column_stride, num_rows, num_k, packed_a);
        for (int64_t j = 0; j < num_columns; j += kWidth) {
          const int64_t diagonal = column + j - k;
          const int64_t first = zeros == Zeros::kAboveDiagonal ? clamped(diagonal, num_k) : 0;
          const int64_t last = zeros == Zeros::kBelowDiagonal ? clamped(diagonal + kWidth, num_k) : num_k;
          for (int64_t i = 0; i < num_rows; i += kTileRows) {
            multiply_tile(packed_a + i * num_k + first * kTileRows, packed_b + j * num_k + first * kWidth, last - first,
                          alpha, add || k > 0, c + (row + i) * row_stride + column + j, row_stride,
                          num_rows - i < kTileRows ? num_rows - i : kTileRows,
                          num_columns - j < kWidth ? num_columns - j : kWidth);
          }
        }
      }
    }
  }
}
