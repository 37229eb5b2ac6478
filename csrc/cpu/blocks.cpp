#include "cpu/blocks.h"

#include <algorithm>
#include <cstring>

#include "sod/number.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace sod::cpu {

void prefetch(const void* address, std::int64_t bytes) {
  const char* start = static_cast<const char*>(address);
  for (std::int64_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(start + offset, 0, 2);
}

SOD_CLONES float largest(const float* x, std::int64_t n) {
  float m = -kInfinity;
#pragma omp simd reduction(max : m)
  for (std::int64_t i = 0; i < n; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

SOD_CLONES float largest_of_bfloat16(const std::uint16_t* x, float* wide, std::int64_t n) {
  float m = -kInfinity;
#pragma omp simd reduction(max : m)
  for (std::int64_t i = 0; i < n; ++i) {
    const float value = float_from_bfloat16(x[i]);
    wide[i] = value;
    m = value > m ? value : m;
  }
  return m;
}

SOD_CLONES float largest_of_float16(const std::uint16_t* x, float* wide, std::int64_t n) {
  float m = -kInfinity;
#pragma omp simd reduction(max : m)
  for (std::int64_t i = 0; i < n; ++i) {
    const float value = float_from_float16(x[i]);
    wide[i] = value;
    m = value > m ? value : m;
  }
  return m;
}

SOD_CLONES void widen_bfloat16(const std::uint16_t* x, float* wide, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) wide[i] = float_from_bfloat16(x[i]);
}

SOD_CLONES void widen_float16(const std::uint16_t* x, float* wide, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) wide[i] = float_from_float16(x[i]);
}

SOD_CLONES void gather_float32(const float* x, const std::int32_t* columns, float* out, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) out[i] = x[columns[i]];
}

SOD_CLONES void gather_bfloat16(const std::uint16_t* x, const std::int32_t* columns, float* out,
                                std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) out[i] = float_from_bfloat16(x[columns[i]]);
}

SOD_CLONES void gather_float16(const std::uint16_t* x, const std::int32_t* columns, float* out,
                               std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) out[i] = float_from_float16(x[columns[i]]);
}

SOD_CLONES void add_reverse_kl(PairState<double>& state, const float* student, const float* teacher,
                               std::int64_t n, double floor, Exponent exponent) {
  const float student_base = base_of(state.student_max);
  const float teacher_base = base_of(state.teacher_max);
  const float floor_in_block = static_cast<float>(floor - static_cast<double>(teacher_base));
  float student_sum = 0, teacher_sum = 0, moment = 0, difference = 0;
#pragma omp simd reduction(+ : student_sum, teacher_sum, moment, difference)
  for (std::int64_t i = 0; i < n; ++i) {
    const KLEntry entry =
        reverse_kl_entry(student[i] - student_base, teacher[i] - teacher_base, floor_in_block, exponent);
    student_sum += entry.student_weight;
    teacher_sum += entry.teacher_weight;
    moment += entry.student_moment;
    difference += entry.difference;
  }
  add(state, PairState<float>{0, 0, student_sum, teacher_sum, moment, difference, 0});
}

SOD_CLONES void add_forward_kl(PairState<double>& state, const float* student, const float* teacher,
                               std::int64_t n, double floor, Exponent exponent) {
  const float student_base = base_of(state.student_max);
  const float teacher_base = base_of(state.teacher_max);
  const float floor_in_block = static_cast<float>(floor - static_cast<double>(student_base));
  float student_sum = 0, teacher_sum = 0, moment = 0, difference = 0, above_floor = 0;
#pragma omp simd reduction(+ : student_sum, teacher_sum, moment, difference, above_floor)
  for (std::int64_t i = 0; i < n; ++i) {
    const KLEntry entry =
        forward_kl_entry(student[i] - student_base, teacher[i] - teacher_base, floor_in_block, exponent);
    student_sum += entry.student_weight;
    teacher_sum += entry.teacher_weight;
    moment += entry.student_moment;
    difference += entry.difference;
    above_floor += entry.above_floor;
  }
  add(state, PairState<float>{0, 0, student_sum, teacher_sum, moment, difference, above_floor});
}

SOD_CLONES void add_reference(ReferenceState<double>& state, const float* student, const float* reference,
                              std::int64_t n, float student_max, double floor, Exponent exponent) {
  const float student_base = base_of(student_max);
  const float reference_base = base_of(state.max);
  const float floor_in_block = static_cast<float>(floor - static_cast<double>(reference_base));
  float sum = 0, difference = 0;
#pragma omp simd reduction(+ : sum, difference)
  for (std::int64_t i = 0; i < n; ++i) {
    const ReferenceEntry entry =
        reference_entry(student[i] - student_base, reference[i] - reference_base, floor_in_block, exponent);
    sum += entry.weight;
    difference += entry.difference;
  }
  state.sum += static_cast<double>(sum);
  state.difference += static_cast<double>(difference);
}

SOD_CLONES void add_softmax(SoftmaxState<double>& state, const float* x, std::int64_t n, Exponent exponent) {
  const float base = base_of(state.max);
  float sum = 0, moment = 0;
#pragma omp simd reduction(+ : sum, moment)
  for (std::int64_t i = 0; i < n; ++i) {
    const float a = x[i] - base;
    const float weight = exp_of(a, exponent);
    sum += weight;
    moment += weight * at_least(a, exponent.lowest);
  }
  state.sum += static_cast<double>(sum);
  state.moment += static_cast<double>(moment);
}

SOD_CLONES JSDBlock sum_jsd(const float* student, const float* teacher, std::int64_t n, float student_base,
                            float teacher_base, Mixture mixture, Exponent exponent) {
  float divergence = 0, student_weight = 0, student_log_ratio = 0;
#pragma omp simd reduction(+ : divergence, student_weight, student_log_ratio)
  for (std::int64_t i = 0; i < n; ++i) {
    const JSDEntry entry = jsd_entry(student[i] - student_base, teacher[i] - teacher_base, mixture, exponent);
    divergence += entry.divergence;
    student_weight += entry.student_weight;
    student_log_ratio += entry.student_log_ratio;
  }
  return {divergence, student_weight, student_log_ratio};
}

SOD_CLONES void student_gradients(const float* student, float* gradient, std::int64_t n,
                                  const GradientRow& row, Exponent exponent) {
  const GradientRow r = row;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    gradient[i] = student_gradient(student[i] - r.student_base, r, exponent);
  }
}

SOD_CLONES void reverse_kl_gradients(const float* student, const float* teacher, float* gradient,
                                     std::int64_t n, const GradientRow& row, Exponent exponent) {
  const GradientRow r = row;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    gradient[i] = reverse_kl_gradient(student[i] - r.student_base, teacher[i] - r.teacher_base, r, exponent);
  }
}

SOD_CLONES void forward_kl_gradients(const float* student, const float* teacher, float* gradient,
                                     std::int64_t n, const GradientRow& row, Exponent exponent) {
  const GradientRow r = row;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    gradient[i] = forward_kl_gradient(student[i] - r.student_base, teacher[i] - r.teacher_base, r, exponent);
  }
}

SOD_CLONES void jsd_gradients(const float* student, const float* teacher, float* gradient, std::int64_t n,
                              const GradientRow& row, Exponent exponent) {
  const GradientRow r = row;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    gradient[i] = jsd_gradient(student[i] - r.student_base, teacher[i] - r.teacher_base, r, exponent);
  }
}

SOD_CLONES void add_reference_gradients(const float* student, const float* reference, float* gradient,
                                        std::int64_t n, const ReferenceGradientRow& row, Exponent exponent) {
  const ReferenceGradientRow r = row;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    gradient[i] +=
        reference_gradient(student[i] - r.student_base, reference[i] - r.reference_base, r, exponent);
  }
}

void stream(const void* values, void* out, std::int64_t bytes) {
  const char* from = static_cast<const char*>(values);
  char* to = static_cast<char*>(out);
  std::int64_t i = 0;
#if defined(__SSE2__)
  // Whole cache lines: a partly written line would be read from memory first.
  const auto past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(to) % 64);
  i = std::min(bytes, (64 - past) % 64);
  std::memcpy(to, from, static_cast<std::size_t>(i));
  for (; i + 64 <= bytes; i += 64) {
    for (std::int64_t j = i; j < i + 64; j += 16) {
      const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + j));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + j), part);
    }
  }
#endif
  std::memcpy(to + i, from + i, static_cast<std::size_t>(bytes - i));
}

void store_float32(const float* gradient, float* out, std::int64_t n) {
  std::memcpy(out, gradient, static_cast<std::size_t>(n) * sizeof(float));
}

SOD_CLONES void store_bfloat16(const float* gradient, std::uint16_t* out, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) out[i] = bfloat16_from_float(gradient[i]);
}

SOD_CLONES void store_float16(const float* gradient, std::uint16_t* out, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) out[i] = float16_from_float(gradient[i]);
}

void finish_stores() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace sod::cpu
