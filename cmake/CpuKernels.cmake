# fastood_add_cpu_kernels(NAME SOURCES...): the sources once per instruction set, each copy in a namespace of its own.
#
# -fno-math-errno and -fno-trapping-math let loops vectorise and change no result; -fopenmp-simd honours `omp simd` and
# brings in no OpenMP runtime. Never -ffast-math: in a shared object it switches the importing thread to flush-to-zero.

set(_fastood_kernel_options -O3 -fno-math-errno -fno-trapping-math -fopenmp-simd -Wall -Wextra)

function(fastood_add_cpu_kernels name)
  add_library(${name} INTERFACE)
  set(capabilities baseline)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND capabilities avx2 avx512)
    target_compile_definitions(${name} INTERFACE FASTOOD_HAVE_X86_KERNELS)
  endif()
  set(options_baseline "")
  set(options_avx2 -mavx2 -mfma)
  set(options_avx512 -mavx512f -mavx512vl -mavx512dq -mavx512bw -mfma -mprefer-vector-width=512)
  foreach(capability ${capabilities})
    add_library(${name}_${capability} OBJECT ${ARGN})
    target_compile_options(${name}_${capability} PRIVATE ${_fastood_kernel_options} ${options_${capability}})
    target_compile_definitions(${name}_${capability} PRIVATE FASTOOD_CPU_CAPABILITY=${capability}
                               $<TARGET_PROPERTY:${name},INTERFACE_COMPILE_DEFINITIONS>)
    target_sources(${name} INTERFACE $<TARGET_OBJECTS:${name}_${capability}>)
  endforeach()
endfunction()
