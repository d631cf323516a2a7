# Decides whether the CUDA kernels are built, says why, and enables the CUDA language.
#
# FASTOOD_CUDA (environment or -D): auto builds them where an nvcc with its headers is found, 1 makes a missing one an
# error, 0 leaves them out. A GPU is not needed. Searched in this order: CUDA_HOME, CUDA_PATH, the pip toolkit
# (`pip install "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.*"`: all of one version, each by name, or nvvm comes newer
# than nvcc), /usr/local/cuda, the nvcc on PATH. A folder counts only when bin/nvcc and
# include/cuda_runtime.h are both in it: an nvcc on PATH may be a wrapper script far from its headers, and one toolkit's
# nvcc with another's headers is a hard error.
# Sets FASTOOD_WITH_CUDA, FASTOOD_CUDA_ROOT, FASTOOD_CUDART.

set(FASTOOD_CUDA "$ENV{FASTOOD_CUDA}" CACHE STRING "auto, 0 or 1: build the CUDA kernels")
if(FASTOOD_CUDA STREQUAL "")
  set(FASTOOD_CUDA auto)
endif()
if(NOT FASTOOD_CUDA MATCHES "^(auto|0|1)$")
  message(FATAL_ERROR "FASTOOD_CUDA must be auto, 0 or 1, got '${FASTOOD_CUDA}'")
endif()

set(FASTOOD_WITH_CUDA 0)
set(_fastood_searched "")
if(NOT FASTOOD_CUDA STREQUAL "0")
  find_program(_fastood_nvcc_on_path nvcc NO_CACHE)
  set(_fastood_path_root "")
  if(_fastood_nvcc_on_path)
    get_filename_component(_fastood_nvcc_real "${_fastood_nvcc_on_path}" REALPATH)
    get_filename_component(_fastood_path_root "${_fastood_nvcc_real}/../.." ABSOLUTE)
  endif()
  if(NOT DEFINED FASTOOD_CUDA_SEARCH)
    set(FASTOOD_CUDA_SEARCH "$ENV{CUDA_HOME}" "$ENV{CUDA_PATH}" "${Python_SITELIB}/nvidia/cu13" /usr/local/cuda
                            "${_fastood_path_root}")
  endif()
  foreach(_root ${FASTOOD_CUDA_SEARCH})
    if(NOT _root)
      continue()
    endif()
    list(APPEND _fastood_searched "${_root}")
    if(EXISTS "${_root}/bin/nvcc" AND EXISTS "${_root}/include/cuda_runtime.h")
      find_library(_fastood_cudart NAMES libcudart_static.a PATHS "${_root}/lib64" "${_root}/lib"
                   "${_root}/targets/x86_64-linux/lib" "${_root}/targets/sbsa-linux/lib" NO_DEFAULT_PATH NO_CACHE)
      if(_fastood_cudart)
        set(FASTOOD_WITH_CUDA 1)
        set(FASTOOD_CUDA_ROOT "${_root}")
        set(FASTOOD_CUDART "${_fastood_cudart}")
        break()
      endif()
    endif()
  endforeach()
  list(REMOVE_DUPLICATES _fastood_searched)
  if(FASTOOD_CUDA STREQUAL "1" AND NOT FASTOOD_WITH_CUDA)
    message(FATAL_ERROR "FASTOOD_CUDA=1, but no CUDA toolkit (bin/nvcc, include/cuda_runtime.h, libcudart_static.a) in: "
                        "${_fastood_searched}. Set CUDA_HOME, or pip install \"cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.*\".")
  endif()
endif()

if(FASTOOD_WITH_CUDA)
  # The pip toolkit has no lib64, where nvcc would have CMake's test programs look for their libraries.
  get_filename_component(_fastood_library_dir "${FASTOOD_CUDART}" DIRECTORY)
  set(ENV{LIBRARY_PATH} "${_fastood_library_dir}:$ENV{LIBRARY_PATH}")
  set(_fastood_try_compile "${CMAKE_TRY_COMPILE_TARGET_TYPE}")
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
  set(CMAKE_CUDA_COMPILER "${FASTOOD_CUDA_ROOT}/bin/nvcc")
  # TORCH_CUDA_ARCH_LIST in torch's form ("9.0;10.0+PTX") or our default; +PTX adds code for GPUs to come.
  set(_fastood_archs "$ENV{TORCH_CUDA_ARCH_LIST}")
  if(_fastood_archs STREQUAL "")
    set(_fastood_archs "8.0;9.0;10.0+PTX")
  endif()
  string(REPLACE " " ";" _fastood_archs "${_fastood_archs}")
  set(CMAKE_CUDA_ARCHITECTURES "")
  foreach(_arch ${_fastood_archs})
    string(REGEX REPLACE "[.]" "" _number "${_arch}")
    if(_number MATCHES "^([0-9]+[a-z]?)\\+PTX$")
      list(APPEND CMAKE_CUDA_ARCHITECTURES "${CMAKE_MATCH_1}")
    elseif(_number MATCHES "^[0-9]+[a-z]?$")
      list(APPEND CMAKE_CUDA_ARCHITECTURES "${_number}-real")
    else()
      message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST entries look like 9.0 or 9.0+PTX, got '${_arch}'")
    endif()
  endforeach()
  enable_language(CUDA)
  set(CMAKE_TRY_COMPILE_TARGET_TYPE "${_fastood_try_compile}")
  message(STATUS "fastood: CUDA kernels on (${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}, "
                 "architectures ${CMAKE_CUDA_ARCHITECTURES})")
elseif(FASTOOD_CUDA STREQUAL "0")
  message(STATUS "fastood: CUDA kernels off (FASTOOD_CUDA=0)")
else()
  message(STATUS "fastood: CUDA kernels off (FASTOOD_CUDA=auto found no toolkit in: ${_fastood_searched})")
endif()
