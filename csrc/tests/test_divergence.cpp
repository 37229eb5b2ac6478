// Value and gradient at single entries against long double.
#include <initializer_list>

#include "check.h"
#include "sod/divergence.h"

namespace {

using sod::Exponent;
using Real = long double;

const Exponent kUnit = sod::make_exponent(1.0);

Real power(float x) {
  return std::exp(static_cast<Real>(x));
}

void check_kl(float a, float b) {
  const Real p = power(a), q = power(b), u = static_cast<Real>(a) - static_cast<Real>(b);
  const sod::KLEntry reverse = sod::reverse_kl_entry(a, b, -INFINITY, kUnit);
  EXPECT_CLOSE(reverse.student_weight, static_cast<double>(p), 2e-6);
  EXPECT_CLOSE(reverse.teacher_weight, static_cast<double>(q), 2e-6);
  EXPECT_CLOSE(reverse.student_moment, static_cast<double>(p * a), 2e-6);
  EXPECT_CLOSE(reverse.difference, static_cast<double>(p * u), 2e-6);
  const sod::KLEntry forward = sod::forward_kl_entry(a, b, -INFINITY, kUnit);
  EXPECT_CLOSE(forward.difference, static_cast<double>(-q * u), 2e-6);
  EXPECT(forward.above_floor == forward.teacher_weight);

  const sod::GradientRow row{0, 0, -INFINITY, 0.7f, -0.2f, 0.3f, {0.25f, 1.0f, 1.0f}};
  const Real own = -0.2f * static_cast<Real>(a) + 0.3f;
  EXPECT_CLOSE(sod::student_gradient(a, row, kUnit), static_cast<double>(p * own), 5e-6);
  const Real reverse_gradient = p * (0.7f * u + own);
  const double reverse_error =
      std::fabs(sod::reverse_kl_gradient(a, b, row, kUnit) - static_cast<double>(reverse_gradient));
  EXPECT(reverse_error <= 2e-6 * static_cast<double>(p * (std::fabs(u) + std::fabs(own))));
  const Real forward_gradient = p * own - 0.7f * q;
  const double forward_error =
      std::fabs(sod::forward_kl_gradient(a, b, row, kUnit) - static_cast<double>(forward_gradient));
  EXPECT(forward_error <= 2e-6 * static_cast<double>(p * std::fabs(own) + q));
}

void check_reference(float a, float c) {
  const Real p = power(a), u = static_cast<Real>(a) - static_cast<Real>(c);
  const sod::ReferenceEntry entry = sod::reference_entry(a, c, -INFINITY, kUnit);
  EXPECT_CLOSE(entry.weight, static_cast<double>(power(c)), 2e-6);
  EXPECT_CLOSE(entry.difference, static_cast<double>(p * u), 2e-6);
  const sod::ReferenceGradientRow row{0, 0, -INFINITY, 0.7f, 0.3f};
  const double error =
      std::fabs(sod::reference_gradient(a, c, row, kUnit) - static_cast<double>(p * (0.7f * u + 0.3f)));
  EXPECT(error <= 2e-6 * static_cast<double>(p * (std::fabs(u) + 1)));
}

void check_jsd(float a, float b, float beta) {
  const Real p = power(a), q = power(b), m = (1 - static_cast<Real>(beta)) * p + static_cast<Real>(beta) * q;
  const Real value =
      (1 - static_cast<Real>(beta)) * p * std::log(p / m) + static_cast<Real>(beta) * q * std::log(q / m);
  const sod::Mixture mixture{beta, 1.0f, 1.0f};
  const sod::JSDEntry entry = sod::jsd_entry(a, b, mixture, kUnit);
  // Values are second order in the difference, so the first-order parts must cancel, not just nearly.
  const Real scale = std::fabs(p - q) + std::fabs(value);
  EXPECT(std::fabs(entry.divergence - static_cast<double>(value)) <= 1e-6 * static_cast<double>(scale));
  EXPECT(entry.divergence >= -1e-7f * static_cast<float>(scale));
  const Real ratio = p * std::log(p / m);
  const Real ratio_scale = p + std::fabs(ratio);
  EXPECT(std::fabs(entry.student_log_ratio - static_cast<double>(ratio)) <=
         2e-6 * static_cast<double>(ratio_scale));
  const sod::GradientRow row{0, 0, 0, 0.7f, -0.2f, 0.3f, mixture};
  const Real gradient = 0.7f * ratio + p * (-0.2f * static_cast<Real>(a) + 0.3f);
  EXPECT(std::fabs(sod::jsd_gradient(a, b, row, kUnit) - static_cast<double>(gradient)) <=
         3e-6 * static_cast<double>(p * (1 + std::fabs(a)) + std::fabs(ratio)));
}

}  // namespace

int main() {
  for (float a = 0.0f; a > -12.0f; a -= 0.371f) {
    for (float b = 0.0f; b > -12.0f; b -= 0.413f) {
      check_kl(a, b);
      check_reference(a, b);
      for (const float beta : {0.1f, 0.5f, 0.9f}) check_jsd(a, b, beta);
    }
    check_kl(a, a);
    check_jsd(a, a + 1e-3f, 0.5f);
    EXPECT(sod::jsd_entry(a, a, {0.3f, 1.0f, 1.0f}, kUnit).divergence == 0.0f);
  }

  // -inf: no weight contributes nothing, whatever the other side; weight against nothing is infinite.
  const float none = -INFINITY;
  EXPECT(sod::reverse_kl_entry(none, -1.0f, none, kUnit).difference == 0.0f);
  EXPECT(sod::reverse_kl_entry(none, none, none, kUnit).difference == 0.0f);
  EXPECT(sod::reverse_kl_entry(none, -1.0f, none, kUnit).student_moment == 0.0f);
  EXPECT(sod::reverse_kl_entry(-1.0f, none, none, kUnit).difference == INFINITY);
  EXPECT_CLOSE(sod::reverse_kl_entry(-1.0f, none, -5.0f, kUnit).difference, std::exp(-1.0) * 4, 1e-6);
  EXPECT(sod::forward_kl_entry(-1.0f, none, none, kUnit).difference == 0.0f);
  EXPECT(sod::forward_kl_entry(none, none, none, kUnit).difference == 0.0f);
  EXPECT(sod::forward_kl_entry(none, -1.0f, none, kUnit).difference == INFINITY);
  EXPECT_CLOSE(sod::forward_kl_entry(none, -1.0f, -5.0f, kUnit).difference, std::exp(-1.0) * 4, 1e-6);
  EXPECT(sod::forward_kl_entry(-6.0f, -1.0f, -5.0f, kUnit).above_floor == 0.0f);
  EXPECT(sod::reference_entry(none, none, none, kUnit).difference == 0.0f);
  EXPECT(sod::reference_entry(-1.0f, none, none, kUnit).difference == INFINITY);
  EXPECT_CLOSE(sod::reference_entry(-1.0f, none, -5.0f, kUnit).difference, std::exp(-1.0) * 4, 1e-6);
  EXPECT(sod::reference_gradient(none, -1.0f, {0, 0, none, 0.7f, 0.3f}, kUnit) == 0.0f);
  EXPECT(sod::reference_gradient(none, none, {0, 0, none, 0.7f, 0.3f}, kUnit) == 0.0f);
  const sod::GradientRow row{0, 0, none, 0.7f, 0.0f, 0.3f, {0.5f, 1.0f, 1.0f}};
  EXPECT(sod::reverse_kl_gradient(none, -1.0f, row, kUnit) == 0.0f);
  EXPECT(sod::reverse_kl_gradient(none, none, row, kUnit) == 0.0f);
  EXPECT(sod::jsd_gradient(none, -1.0f, row, kUnit) == 0.0f);
  EXPECT(sod::jsd_gradient(none, none, row, kUnit) == 0.0f);
  // p log(p / m) = 0 and beta q log(1 / beta) where only the teacher has mass, and the other way round.
  EXPECT_CLOSE(sod::jsd_entry(none, -1.0f, row.mixture, kUnit).divergence,
               0.5 * std::exp(-1.0) * std::log(2.0), 1e-6);
  EXPECT_CLOSE(sod::jsd_entry(-1.0f, none, row.mixture, kUnit).divergence,
               0.5 * std::exp(-1.0) * std::log(2.0), 1e-6);
  EXPECT(sod::jsd_entry(none, none, row.mixture, kUnit).divergence == 0.0f);

  // NaN shows, it is not swallowed by a comparison.
  const float nan = __builtin_nanf("");
  EXPECT(std::isnan(sod::reverse_kl_entry(nan, -1.0f, none, kUnit).student_weight));
  EXPECT(std::isnan(sod::reverse_kl_entry(-1.0f, nan, none, kUnit).teacher_weight));
  EXPECT(std::isnan(sod::reverse_kl_gradient(nan, -1.0f, row, kUnit)));
  EXPECT(std::isnan(sod::jsd_entry(-1.0f, nan, row.mixture, kUnit).divergence));
  return sod::test::finish();
}
