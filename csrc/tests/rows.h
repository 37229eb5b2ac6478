// Rows for the tests, and the divergences of a row pair in long double.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "sod/number.h"
#include "sod/step_kl.h"

namespace sod::test {

using Row = std::vector<float>;
using Real = long double;

inline Row random_row(std::size_t size, double scale, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0.0, scale);
  Row row(size);
  for (float& value : row) value = static_cast<float>(normal(generator));
  return row;
}

// ---- rows as they lie in memory

using Bytes = std::vector<char>;

inline std::size_t size_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : 2;
}

// Relative, of a float's rounding to the dtype.
inline double rounding_of(DType dtype) {
  return dtype == DType::kFloat32 ? 0 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
}

inline Bytes encode(const Row& row, DType dtype) {
  Bytes bytes(row.size() * size_of(dtype));
  for (std::size_t i = 0; i < row.size(); ++i) {
    const std::uint16_t half =
        dtype == DType::kBFloat16 ? bfloat16_from_float(row[i]) : float16_from_float(row[i]);
    const void* from = dtype == DType::kFloat32 ? static_cast<const void*>(&row[i]) : &half;
    std::memcpy(bytes.data() + i * size_of(dtype), from, size_of(dtype));
  }
  return bytes;
}

inline Row decode(const Bytes& bytes, DType dtype) {
  Row row(bytes.size() / size_of(dtype));
  for (std::size_t i = 0; i < row.size(); ++i) {
    std::uint16_t half;
    const char* from = bytes.data() + i * size_of(dtype);
    std::memcpy(&half, from, sizeof half);
    if (dtype == DType::kFloat32) {
      std::memcpy(&row[i], from, sizeof row[i]);
    } else {
      row[i] = dtype == DType::kBFloat16 ? float_from_bfloat16(half) : float_from_float16(half);
    }
  }
  return row;
}

// ---- truth

inline std::vector<Real> log_softmax(const Row& row, double temperature) {
  Real max = -INFINITY;
  for (const float x : row) max = std::fmax(max, static_cast<Real>(x) / temperature);
  Real sum = 0;
  for (const float x : row) sum += std::exp(static_cast<Real>(x) / temperature - max);
  std::vector<Real> result;
  for (const float x : row) result.push_back(static_cast<Real>(x) / temperature - max - std::log(sum));
  return result;
}

struct Truth {
  Real divergence = 0;
  Real entropy = 0;
  std::vector<Real> gradient;          // of the divergence
  std::vector<Real> entropy_gradient;  // of the entropy
  std::vector<Real> log_p;
  std::vector<Real> log_q;
};

inline Truth truth_of(const Row& student, const Row& teacher, Divergence divergence, double beta,
                      double temperature, double floor) {
  Truth truth;
  truth.log_p = log_softmax(student, temperature);
  truth.log_q = log_softmax(teacher, temperature);
  const std::size_t size = student.size();
  std::vector<Real> f(size), weight(size);
  Real mean = 0, mass = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const Real lp = truth.log_p[i], lq = truth.log_q[i], p = std::exp(lp), q = std::exp(lq);
    if (p > 0) truth.entropy -= p * lp;
    const Real log_m = std::log((1 - beta) * p + beta * q);
    switch (divergence) {
      case Divergence::kReverseKL:
        f[i] = lp - std::fmax(lq, static_cast<Real>(floor));
        if (p > 0) truth.divergence += p * f[i];
        break;
      case Divergence::kForwardKL:
        if (q > 0) truth.divergence += q * (lq - std::fmax(lp, static_cast<Real>(floor)));
        weight[i] = lp > static_cast<Real>(floor) ? q : 0;
        mass += weight[i];
        break;
      case Divergence::kJSD:
        f[i] = (1 - beta) * (lp - log_m);
        if (p > 0) truth.divergence += p * f[i];
        if (q > 0) truth.divergence += beta * q * (lq - log_m);
        break;
    }
    if (p > 0) mean += p * f[i];
  }
  for (std::size_t i = 0; i < size; ++i) {
    const Real lp = truth.log_p[i], p = std::exp(lp);
    const bool is_forward = divergence == Divergence::kForwardKL;
    const Real own = is_forward ? mass * p - weight[i] : (p > 0 ? p * (f[i] - mean) : 0);
    truth.gradient.push_back(own / temperature);
    truth.entropy_gradient.push_back(p > 0 ? -p * (lp + truth.entropy) / temperature : 0);
  }
  return truth;
}

}  // namespace sod::test
