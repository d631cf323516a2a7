// Declares the kernels of one header once per instruction set: the copies that FASTOOD_CPU_DISPATCH chooses from.
//
// Included inside the namespace of a subject, and so without an include guard, after
//     #define FASTOOD_CPU_KERNELS "../subject/cpu_kernels.h"
// which is relative to this folder.
namespace baseline {
#include FASTOOD_CPU_KERNELS
}
#if defined(FASTOOD_HAVE_X86_KERNELS)
namespace avx2 {
#include FASTOOD_CPU_KERNELS
}
namespace avx512 {
#include FASTOOD_CPU_KERNELS
}
#endif
#undef FASTOOD_CPU_KERNELS
