// What the compilers call the same thing: functions for host and device, and clones for several processors.
#pragma once

#if defined(__CUDACC__)
#define SOD_INLINE __host__ __device__ __forceinline__
#else
#define SOD_INLINE inline __attribute__((always_inline))
#endif

// SOD_CLONES goes on leaf functions only: the body of an OpenMP region is outlined before it is cloned.
// The build defines SOD_USE_CLONES where compiler, linker and C library support it.
#if defined(SOD_USE_CLONES)
#define SOD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SOD_CLONES
#endif
