# Enables the CUDA language with FASTOOD_NVCC and FASTOOD_CUDART's folder, for CMAKE_CUDA_ARCHITECTURES.
#
# A file of its own because it is run twice: in cmake/cuda_probe, where it may fail, and then in the build.

# The pip toolkit has no lib64, where nvcc would have CMake's test programs look for their libraries.
get_filename_component(_fastood_library_dir "${FASTOOD_CUDART}" DIRECTORY)
set(ENV{LIBRARY_PATH} "${_fastood_library_dir}:$ENV{LIBRARY_PATH}")
# CMake keeps to the compiler of a folder's first configure, which would meet the headers of a toolkit chosen later.
set(_fastood_toolkit "${FASTOOD_NVCC} ${FASTOOD_NVCC_VERSION}")
if(NOT "${FASTOOD_CUDA_ENABLED}" STREQUAL "${_fastood_toolkit}")
  file(REMOVE "${CMAKE_PLATFORM_INFO_DIR}/CMakeCUDACompiler.cmake")
  set(FASTOOD_CUDA_ENABLED "${_fastood_toolkit}" CACHE INTERNAL "The toolkit that the CUDA language was enabled with")
endif()
set(CMAKE_CUDA_COMPILER "${FASTOOD_NVCC}")
set(_fastood_try_compile "${CMAKE_TRY_COMPILE_TARGET_TYPE}")
set(_fastood_platform_variables "${CMAKE_TRY_COMPILE_PLATFORM_VARIABLES}")
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
# Before 3.29 CMake does not hand ranlib to a test project of CUDA alone, whose archive then runs an empty command.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CMAKE_RANLIB)
enable_language(CUDA)
set(CMAKE_TRY_COMPILE_TARGET_TYPE "${_fastood_try_compile}")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES "${_fastood_platform_variables}")
# CMake before 3.26 does not know that nvcc speaks C++20.
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
