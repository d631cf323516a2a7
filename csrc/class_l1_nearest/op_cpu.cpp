// torch.ops.fastood.class_l1_nearest on the CPU: the work of each thread.
//
// Queries of a class are compared with its keys in groups. All groups in order, each with its keys in order, form one
// sequence of work, which is divided into stretches of equal length, one per thread. Only a group at a boundary is
// split between two threads; memory beyond inputs and outputs is O(M + threads).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../common/cpu_rows.h"
#include "cpu.h"
#include "op.h"

namespace fastood::class_l1_nearest {
namespace {

// Below this many differences a second thread costs more than it saves.
constexpr int64_t kDifferences = int64_t{1} << 19;
// Cost of loading a key, in comparisons with a query.
constexpr int64_t kFetch = 8;

struct QueryGroup {
  int64_t first;  // position in the sorted order
  int64_t count;
  KeyRange keys;
  int64_t work_before;  // of the groups before it

  int64_t cost() const { return count + kFetch; }
  int64_t work_after() const { return work_before + (keys.end - keys.begin) * cost(); }
  // The first key at or after `work` in the sequence.
  int64_t key_at(int64_t work) const {
    return std::clamp(keys.begin + (work - work_before + cost() - 1) / cost(), keys.begin, keys.end);
  }
};

void check_range(const int64_t* order, int64_t begin, int64_t end, int64_t count, const char* name) {
  for (int64_t i = begin; i < end; ++i) {
    STD_TORCH_CHECK(order[i] >= 0 && order[i] < count, name, " must be in [0, ", count, "), got ", order[i]);
  }
}

// The groups whose class has keys.
std::vector<QueryGroup> group_queries(const ClassL1NearestInput& in) {
  const int64_t* const classes = integers(in.query_classes);
  std::vector<QueryGroup> groups;
  int64_t work = 0;
  for (int64_t first = 0; first < in.num_queries;) {
    int64_t end = first + 1;
    while (end < in.num_queries && classes[end] == classes[first]) {
      ++end;
    }
    const KeyRange keys = keys_of_class(integers(in.key_classes), in.num_keys, classes[first]);
    check_range(integers(in.key_order), keys.begin, keys.end, in.num_keys, "key_order");
    for (; first < end; first += kGroupQueries) {
      groups.push_back({first, std::min(kGroupQueries, end - first), keys, work});
      work = groups.back().work_after();
    }
    first = end;
  }
  std::erase_if(groups, [](const QueryGroup& group) { return group.keys.begin == group.keys.end; });
  return groups;
}

template <typename Key, typename T = Compute<Key>>
std::vector<Nearest<T>> search(const ClassL1NearestInput& in, const std::vector<QueryGroup>& groups) {
  std::vector<Nearest<T>> found(in.num_queries, Nearest<T>::none());
  if (groups.empty()) {
    return found;
  }
  const int64_t work = groups.back().work_after();
  const int64_t num_stretches =
      std::clamp<int64_t>(work / std::max<int64_t>(1, kDifferences / in.dim), 1, torch::stable::get_num_threads());
  // The result of a stretch for the group that began in the previous stretch.
  std::vector<Nearest<T>> continued(num_stretches * kGroupQueries, Nearest<T>::none());
  std::vector<size_t> first_group(num_stretches);
  torch::stable::parallel_for(0, num_stretches, 1, [&](int64_t begin, int64_t end) {
    for (int64_t stretch = begin; stretch < end; ++stretch) {
      const int64_t from = work / num_stretches * stretch + std::min(stretch, work % num_stretches);
      const int64_t to = from + work / num_stretches + (stretch < work % num_stretches ? 1 : 0);
      size_t g = std::partition_point(groups.begin(), groups.end(),
                                      [&](const QueryGroup& group) { return group.work_after() <= from; }) -
                 groups.begin();
      first_group[stretch] = g;
      for (; g < groups.size() && groups[g].work_before < to; ++g) {
        const QueryGroup& group = groups[g];
        const NearestGroup<Key> part{static_cast<const T*>(in.query.const_data_ptr()),
                                     integers(in.query_order) + group.first,
                                     group.count,
                                     static_cast<const Key*>(in.keys.const_data_ptr()),
                                     in.key_stride,
                                     integers(in.key_order),
                                     group.key_at(from),
                                     group.key_at(to),
                                     in.dim};
        const bool begins_here = group.work_before >= from;
        FASTOOD_CPU_DISPATCH(class_l1_nearest<Key>)
        (part, begins_here ? &found[group.first] : &continued[stretch * kGroupQueries]);
      }
    }
  });
  for (int64_t stretch = 0; stretch < num_stretches; ++stretch) {
    const QueryGroup& group = groups[first_group[stretch]];
    for (int64_t q = 0; q < group.count; ++q) {
      const Nearest<T>& later = continued[stretch * kGroupQueries + q];
      found[group.first + q].offer(later.distance, later.position);
    }
  }
  return found;
}

template <typename Key, typename T = Compute<Key>>
void nearest_keys(const ClassL1NearestInput& in, T* distance, int64_t* index) {
  const int64_t* const query_order = integers(in.query_order);
  const auto* const query = static_cast<const T*>(in.query.const_data_ptr());
  check_range(query_order, 0, in.num_queries, in.num_queries, "query_order");
  // Rows that no position names stay NaN.
  std::fill_n(distance, in.num_queries, static_cast<T>(NAN));
  std::fill_n(index, in.num_queries, -1);
  for (int64_t i = 0; i < in.num_queries; ++i) {
    distance[query_order[i]] = Nearest<T>::none().distance;
  }
  const std::vector<QueryGroup> groups = group_queries(in);
  const std::vector<Nearest<T>> found = search<Key>(in, groups);
  for (const QueryGroup& group : groups) {
    for (int64_t i = group.first; i < group.first + group.count; ++i) {
      const int64_t row = query_order[i];
      distance[row] = distance_or_nan(found[i], query + row * in.dim, in.dim);
      index[row] = found[i].position < 0 ? -1 : integers(in.key_order)[found[i].position];
    }
  }
}

std::tuple<Tensor, Tensor> class_l1_nearest_cpu(const Tensor& query, const Tensor& query_classes,
                                                const Tensor& query_order, const Tensor& keys,
                                                const Tensor& key_classes, const Tensor& key_order) {
  const ClassL1NearestInput in(query, query_classes, query_order, keys, key_classes, key_order);
  const std::tuple<Tensor, Tensor> result = in.empty_results();
  void* const distance = std::get<0>(result).mutable_data_ptr();
  auto* const index = static_cast<int64_t*>(std::get<1>(result).mutable_data_ptr());
  dispatch_logits(in.keys, [&]<typename Key>() { nearest_keys<Key>(in, static_cast<Compute<Key>*>(distance), index); });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastood, CPU, m) {
  m.impl("class_l1_nearest", TORCH_BOX(&class_l1_nearest_cpu));
}

}  // namespace fastood::class_l1_nearest
