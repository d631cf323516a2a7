// Checks of the host tests: counted, printed if they fail, and turned into the exit code.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace fastood::testing {

inline int failures = 0;
inline int checks = 0;

// Counts a check and returns whether it holds.
inline bool count(bool ok) {
  ++checks;
  failures += !ok;
  return ok;
}

inline void expect(bool ok, const char* what, double got, double want) {
  if (!count(ok)) {
    std::printf("FAILED %s: got %.17g, want %.17g\n", what, got, want);
  }
}

// `where`: the row, the byte or the number of classes.
inline void expect(bool ok, const char* what, int64_t where, double got, double want) {
  if (!count(ok)) {
    std::printf("FAILED %s at %lld: got %.17g, want %.17g\n", what, static_cast<long long>(where), got, want);
  }
}

inline void expect(bool ok, const char* what, int64_t where) {
  if (!count(ok)) {
    std::printf("FAILED %s at %lld\n", what, static_cast<long long>(where));
  }
}

// Prints the numbers of checks and failures of a copy of the kernels; returns the exit code of the test.
inline int report(const char* copy) {
  std::printf("%s: %d checks, %d failed\n", copy, checks, failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace fastood::testing
