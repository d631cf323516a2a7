# Decides whether the CUDA kernels are built, says why, and enables the CUDA language.
#
# FASTOOD_CUDA (environment or -D): auto builds them where an nvcc with its headers is found and compiles a small kernel,
# 1 makes a missing or broken one an error, 0 leaves them out. A GPU is not needed. Searched in this order: CUDA_HOME,
# CUDA_PATH, the pip toolkit
# (`pip install "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.*"`: all of one version, each by name, or nvvm comes newer
# than nvcc), /usr/local/cuda, the nvcc on PATH. A folder counts only when bin/nvcc and
# include/cuda_runtime.h are both in it: an nvcc on PATH may be a wrapper script far from its headers, and one toolkit's
# nvcc with another's headers is a hard error.
# Sets FASTOOD_WITH_CUDA, FASTOOD_CUDA_ROOT, FASTOOD_CUDART, and FASTOOD_CUDA_REASON: why, for build_info().

set(FASTOOD_CUDA "$ENV{FASTOOD_CUDA}" CACHE STRING "auto, 0 or 1: build the CUDA kernels")
if(FASTOOD_CUDA STREQUAL "")
  set(FASTOOD_CUDA auto)
endif()
if(NOT FASTOOD_CUDA MATCHES "^(auto|0|1)$")
  message(FATAL_ERROR "FASTOOD_CUDA must be auto, 0 or 1, got '${FASTOOD_CUDA}'")
endif()

set(FASTOOD_WITH_CUDA 0)
set(FASTOOD_CUDA_REASON "")
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

# fastood_without_cuda(REASON): an error where CUDA kernels were asked for; otherwise the build goes on without them.
macro(fastood_without_cuda reason)
  if(FASTOOD_CUDA STREQUAL "1")
    message(FATAL_ERROR "FASTOOD_CUDA=1, but ${reason}")
  endif()
  set(FASTOOD_WITH_CUDA 0)
  set(FASTOOD_CUDA_REASON "${reason}")
endmacro()

# fastood_probe_cuda(): leave FASTOOD_CUDA_FAILURE empty if nvcc compiles a small kernel, else why it does not.
# First by itself, whose complaint is short, then under CMake, which asks more of it.
function(fastood_probe_cuda)
  set(FASTOOD_CUDA_FAILURE "" PARENT_SCOPE)
  set(_source "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/cuda_probe")
  set(_folder "${CMAKE_BINARY_DIR}/cuda_probe")
  file(SHA256 "${FASTOOD_CUDA_ROOT}/bin/nvcc" _nvcc)
  set(_probed "${FASTOOD_CUDA_ROOT} ${_nvcc} ${CMAKE_CUDA_ARCHITECTURES} ${CMAKE_CXX_COMPILER} $ENV{CUDAHOSTCXX} $ENV{CUDAFLAGS}")
  if(FASTOOD_CUDA_PROBED STREQUAL _probed)
    return()
  endif()
  message(STATUS "fastood: trying ${FASTOOD_CUDA_ROOT}/bin/nvcc")
  file(REMOVE_RECURSE "${_folder}")
  file(MAKE_DIRECTORY "${_folder}")
  separate_arguments(_flags NATIVE_COMMAND "$ENV{CUDAFLAGS}")
  if(NOT "$ENV{CUDAHOSTCXX}" STREQUAL "")
    list(APPEND _flags -ccbin "$ENV{CUDAHOSTCXX}")
  endif()
  foreach(_architecture ${CMAKE_CUDA_ARCHITECTURES})
    string(REGEX REPLACE "-.*" "" _number "${_architecture}")
    list(APPEND _flags "-gencode=arch=compute_${_number},code=sm_${_number}")
  endforeach()
  execute_process(COMMAND "${FASTOOD_CUDA_ROOT}/bin/nvcc" -std=c++20 ${_flags} -c "${_source}/probe.cu" -o "${_folder}/probe.o"
                  OUTPUT_VARIABLE _output ERROR_VARIABLE _output RESULT_VARIABLE _failed TIMEOUT 300)
  if(NOT _failed)
    set(_options "")
    foreach(_name CMAKE_CXX_COMPILER CMAKE_MAKE_PROGRAM CMAKE_CUDA_FLAGS CMAKE_CUDA_HOST_COMPILER)
      if(${_name})
        list(APPEND _options "-D${_name}=${${_name}}")
      endif()
    endforeach()
    execute_process(
      COMMAND "${CMAKE_COMMAND}" -S "${_source}" -B "${_folder}" -G "${CMAKE_GENERATOR}" ${_options}
              "-DFASTOOD_CUDA_ROOT=${FASTOOD_CUDA_ROOT}" "-DFASTOOD_CUDART=${FASTOOD_CUDART}"
              "-DCMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES}"
      OUTPUT_QUIET ERROR_VARIABLE _output RESULT_VARIABLE _failed TIMEOUT 300)
  endif()
  if(NOT _failed)
    set(FASTOOD_CUDA_PROBED "${_probed}" CACHE INTERNAL "The nvcc and the architectures that compiled a small kernel")
    return()
  endif()
  # It becomes a string of C++, one line long.
  set(_complaint "${_output} (${_failed})")
  string(REGEX REPLACE "[^ -~]|[\"\\;$]" " " _complaint "${_complaint}")
  string(REGEX REPLACE " +" " " _complaint "${_complaint}")
  string(STRIP "${_complaint}" _complaint)
  string(SUBSTRING "${_complaint}" 0 300 _complaint)
  set(FASTOOD_CUDA_FAILURE "${_complaint}" PARENT_SCOPE)
endfunction()

# The newest GPUs of the default list need a recent compiler; below 12.0 none of it is tried.
if(FASTOOD_WITH_CUDA)
  execute_process(COMMAND "${FASTOOD_CUDA_ROOT}/bin/nvcc" --version OUTPUT_VARIABLE _fastood_nvcc_version ERROR_QUIET)
  string(REGEX MATCH "release ([0-9]+[.][0-9]+)" _ "${_fastood_nvcc_version}")
  set(_fastood_nvcc_version "${CMAKE_MATCH_1}")
  if(NOT _fastood_nvcc_version)
    fastood_without_cuda("${FASTOOD_CUDA_ROOT}/bin/nvcc --version does not run")
  elseif(_fastood_nvcc_version VERSION_LESS 12.0)
    fastood_without_cuda("nvcc ${_fastood_nvcc_version} in ${FASTOOD_CUDA_ROOT} is older than 12.0")
  elseif(_fastood_nvcc_version VERSION_LESS 12.8)
    set(_fastood_default_archs "7.5;8.0;9.0+PTX")
  else()
    set(_fastood_default_archs "7.5;8.0;9.0;10.0+PTX")
  endif()
endif()

if(FASTOOD_WITH_CUDA)
  set(FASTOOD_CUDA_REASON "nvcc ${_fastood_nvcc_version} in ${FASTOOD_CUDA_ROOT}")
  # TORCH_CUDA_ARCH_LIST in torch's form ("9.0;10.0+PTX") or our default; +PTX adds code for GPUs to come.
  set(_fastood_archs "$ENV{TORCH_CUDA_ARCH_LIST}")
  if(_fastood_archs STREQUAL "")
    set(_fastood_archs "${_fastood_default_archs}")
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
  # enable_language ends the build when it fails, so that nvcc is tried elsewhere first.
  fastood_probe_cuda()
  if(FASTOOD_CUDA_FAILURE)
    fastood_without_cuda("nvcc ${_fastood_nvcc_version} in ${FASTOOD_CUDA_ROOT} does not compile: ${FASTOOD_CUDA_FAILURE}")
    set(CMAKE_CUDA_ARCHITECTURES "")
  endif()
endif()

if(FASTOOD_WITH_CUDA)
  include(${CMAKE_CURRENT_LIST_DIR}/EnableCuda.cmake)
  set(FASTOOD_CUDA_OPTIONS "")
  # A tenth of the size; before 13.0 drivers are admitted that cannot unpack it.
  if(_fastood_nvcc_version VERSION_GREATER_EQUAL 13.0)
    list(APPEND FASTOOD_CUDA_OPTIONS --compress-mode=size)
  endif()
  message(STATUS "fastood: CUDA kernels on (${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}, "
                 "architectures ${CMAKE_CUDA_ARCHITECTURES})")
else()
  if(FASTOOD_CUDA STREQUAL "0")
    set(FASTOOD_CUDA_REASON "FASTOOD_CUDA=0")
  elseif(NOT FASTOOD_CUDA_REASON)
    set(FASTOOD_CUDA_REASON "no CUDA toolkit (bin/nvcc, include/cuda_runtime.h, libcudart_static.a) in: ${_fastood_searched}")
  endif()
  message(STATUS "fastood: CUDA kernels off (${FASTOOD_CUDA_REASON})")
endif()
# A list in a message is read by people.
string(REPLACE ";" ", " FASTOOD_CUDA_REASON "${FASTOOD_CUDA_REASON}")
