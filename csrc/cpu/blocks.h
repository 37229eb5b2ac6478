// The leaf loops: everything that touches a vocabulary entry on the CPU, one block that fits L1 at a time.
//
// A block is widened to float first, so the mathematics exists once, for float. Sums inside a block are float
// in every vector lane and go to double between blocks. Each function is cloned for AVX-512, AVX2 and the
// baseline.
#pragma once

#include <cstdint>

#include "sod/divergence.h"
#include "sod/softmax_state.h"

namespace sod::cpu {

constexpr std::int64_t kBlock = 256;

// Starts loading `bytes` at `address` into the cache.
void prefetch(const void* address, std::int64_t bytes);

float largest(const float* x, std::int64_t n);
// These also widen into `wide`.
float largest_of_bfloat16(const std::uint16_t* x, float* wide, std::int64_t n);
float largest_of_float16(const std::uint16_t* x, float* wide, std::int64_t n);
void widen_bfloat16(const std::uint16_t* x, float* wide, std::int64_t n);
void widen_float16(const std::uint16_t* x, float* wide, std::int64_t n);

// Entry i becomes x[columns[i]], widened.
void gather_float32(const float* x, const std::int32_t* columns, float* out, std::int64_t n);
void gather_bfloat16(const std::uint16_t* x, const std::int32_t* columns, float* out, std::int64_t n);
void gather_float16(const std::uint16_t* x, const std::int32_t* columns, float* out, std::int64_t n);

// Sums of a block relative to the maxima in `state`, added to it.
void add_reverse_kl(PairState<double>& state, const float* student, const float* teacher, std::int64_t n,
                    double floor, Exponent exponent);
void add_forward_kl(PairState<double>& state, const float* student, const float* teacher, std::int64_t n,
                    double floor, Exponent exponent);
// `state` must have been rebased to `student_max`.
void add_reference(ReferenceState<double>& state, const float* student, const float* reference,
                   std::int64_t n, float student_max, double floor, Exponent exponent);
void add_softmax(SoftmaxState<double>& state, const float* x, std::int64_t n, Exponent exponent);

struct JSDBlock {
  float divergence;
  float student_weight;
  float student_log_ratio;
};
JSDBlock sum_jsd(const float* student, const float* teacher, std::int64_t n, float student_base,
                 float teacher_base, Mixture mixture, Exponent exponent);

void student_gradients(const float* student, float* gradient, std::int64_t n, const GradientRow& row,
                       Exponent exponent);
void reverse_kl_gradients(const float* student, const float* teacher, float* gradient, std::int64_t n,
                          const GradientRow& row, Exponent exponent);
void forward_kl_gradients(const float* student, const float* teacher, float* gradient, std::int64_t n,
                          const GradientRow& row, Exponent exponent);
void jsd_gradients(const float* student, const float* teacher, float* gradient, std::int64_t n,
                   const GradientRow& row, Exponent exponent);

// Adds to `gradient`.
void add_reference_gradients(const float* student, const float* reference, float* gradient, std::int64_t n,
                             const ReferenceGradientRow& row, Exponent exponent);

// Gradients are not read again soon: this store goes past the cache where the processor can.
void stream(const void* values, void* out, std::int64_t bytes);
void store_float32(const float* gradient, float* out, std::int64_t n);
void store_bfloat16(const float* gradient, std::uint16_t* out, std::int64_t n);
void store_float16(const float* gradient, std::uint16_t* out, std::int64_t n);
// Makes the streamed stores visible to other threads.
void finish_stores();

}  // namespace sod::cpu
