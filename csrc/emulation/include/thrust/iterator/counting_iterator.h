// thrust::counting_iterator, as CUB's offsets use it.
#pragma once

namespace thrust {

template <typename T>
struct counting_iterator {
  T at;
  T operator[](T i) const { return at + i; }
  counting_iterator operator+(T i) const { return {at + i}; }
};

template <typename T>
counting_iterator<T> make_counting_iterator(T at) {
  return {at};
}

}  // namespace thrust
