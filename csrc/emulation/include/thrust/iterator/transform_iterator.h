// thrust::transform_iterator, as CUB's offsets use it.
#pragma once

namespace thrust {

template <typename Base, typename Function>
struct transform_iterator {
  Base base;
  Function function;
  template <typename Index>
  auto operator[](Index i) const {
    return function(base[i]);
  }
  template <typename Index>
  transform_iterator operator+(Index i) const {
    return {base + i, function};
  }
};

template <typename Base, typename Function>
transform_iterator<Base, Function> make_transform_iterator(Base base, Function function) {
  return {base, function};
}

}  // namespace thrust
