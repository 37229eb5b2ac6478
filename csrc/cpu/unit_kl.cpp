#include "cpu/unit_kl.h"

#include <vector>

#include "cpu/pair_rows.h"
#include "cpu/rows.h"
#include "sod/row_result.h"

namespace sod::cpu {
namespace {

// One unit's row on each side, and its gradient; a thread's own, used again for every unit.
struct UnitRow {
  std::vector<float> student;
  std::vector<float> teacher;
  std::vector<float> gradient;
};

void gather(const float* row, const std::int32_t* columns, float* out, std::int64_t n) {
  gather_float32(row, columns, out, n);
}
void gather(const BFloat16* row, const std::int32_t* columns, float* out, std::int64_t n) {
  gather_bfloat16(bits_of(row), columns, out, n);
}
void gather(const Float16* row, const std::int32_t* columns, float* out, std::int64_t n) {
  gather_float16(bits_of(row), columns, out, n);
}

template <class T>
void gather_side(const UnitProblem& problem, const UnitSide& side, std::int64_t unit, double span_score,
                 std::vector<float>& out) {
  const std::int64_t n = problem.num_columns;
  out.resize(static_cast<std::size_t>(n + 1));
  const T* row = static_cast<const T*>(side.data) + side.rows[unit] * side.stride;
  // Columns in any order would ask for the lines of a long list one by one, from memory; in order they
  // stream.
  if (4 * n >= side.width) prefetch(row, side.width * static_cast<std::int64_t>(sizeof(T)));
  gather(row, side.columns + unit * problem.stride_columns, out.data(), n);
  for (int k = 0; k < 2; ++k) {
    const std::int64_t position = problem.excluded[2 * unit + k];
    if (position >= 0) out[static_cast<std::size_t>(position)] = -kInfinity;
  }
  out[static_cast<std::size_t>(n)] = static_cast<float>(span_score);
}

template <class T>
void gather_unit(const UnitProblem& problem, std::int64_t unit, UnitRow& row) {
  gather_side<T>(problem, problem.student, unit, problem.span_scores[2 * unit], row.student);
  gather_side<T>(problem, problem.teacher, unit, problem.span_scores[2 * unit + 1], row.teacher);
}

// The same options for rows of floats that hold one unit each.
Problem as_rows(const UnitProblem& problem) {
  Problem rows{};
  rows.rows = {DType::kFloat32, 1, problem.num_units, problem.num_columns + 1, problem.temperature, nullptr};
  rows.divergence = problem.divergence;
  rows.beta = problem.beta;
  rows.min_log_prob = -static_cast<double>(kInfinity);
  return rows;
}

template <class T>
void forward_unit(const UnitProblem& problem, const Problem& rows, const UnitOutputs& outputs,
                  std::int64_t unit, UnitRow& row, Exponent exponent) {
  RowState state{};
  if (problem.student.rows[unit] >= 0) {
    gather_unit<T>(problem, unit, row);
    state = pair_state(row.student.data(), row.teacher.data(), rows, exponent);
  }
  outputs.unit_kl[unit] = reported(state.divergence);
  outputs.unit_entropy[unit] = static_cast<float>(state.student_entropy);
  outputs.unit_state[unit] = state;
}

// What one student row's gradient is made of.
struct RowTerms {
  const std::int32_t* columns;  // ascending; num_columns of them, 0 without a unit
  std::int64_t num_columns;
  const float* at_columns;
  double dense;
  double row_lse;
  std::int64_t label;
  float onehot;
};

// A block is complete before it is stored, and rounded once.
template <class T>
void write_row(const T* student, T* out, std::int64_t size, const RowTerms& terms, double temperature,
               Exponent exponent) {
  const bool has_dense = terms.dense != 0;
  GradientRow dense{};
  if (has_dense) dense = make_student_gradient_row(terms.row_lse, 0, 0, -terms.dense, temperature);
  Scratch scratch, gradient;
  float* g = gradient.values;
  const Destination destination = destination_of(out, student);
  std::int64_t next = 0;
  for_each_block<T>({has_dense ? student : nullptr}, size, [&](std::int64_t start, std::int64_t n) {
    if (has_dense) {
      student_gradients(widen(student + start, scratch, n), g, n, dense, exponent);
    } else {
      std::fill(g, g + n, 0.0f);
    }
    for (; next < terms.num_columns && terms.columns[next] < start + n; ++next) {
      g[terms.columns[next] - start] += terms.at_columns[next];
    }
    if (terms.label >= start && terms.label < start + n) g[terms.label - start] += terms.onehot;
    store(g, out + start, n, destination);
  });
}

template <class T>
void backward_row(const UnitProblem& problem, const Problem& rows, const UnitBackwardInputs& inputs,
                  const Gradient& gradient, std::int64_t row, UnitRow& unit_row, Exponent exponent) {
  T* out = row_of<T>(gradient, row);
  const std::int64_t unit = inputs.row_units[row];
  const double upstream = unit >= 0 ? static_cast<double>(inputs.grad_unit_kl[unit]) : 0.0;
  const bool has_columns = unit >= 0 && has_gradient(upstream, inputs.unit_state[unit].divergence);
  RowTerms terms{};
  terms.dense = inputs.dense[row];
  terms.row_lse = inputs.row_lse[row];
  terms.label = inputs.labels[row];
  terms.onehot = static_cast<float>(inputs.onehot[row] / problem.temperature);
  // A row that nothing depends on has no gradient: neither read nor computed.
  if (!has_columns && terms.dense == 0 && inputs.onehot[row] == 0) {
    fill_zeros(out, 0, gradient.width);
    return;
  }
  if (has_columns) {
    gather_unit<T>(problem, unit, unit_row);
    unit_row.gradient.resize(static_cast<std::size_t>(problem.num_columns));
    const GradientRow pair = make_gradient_row(inputs.unit_state[unit], {upstream, 0, 0, 0}, rows);
    pair_gradients(unit_row.student.data(), unit_row.teacher.data(), unit_row.gradient.data(),
                   problem.num_columns, problem.divergence, pair, exponent);
    terms.columns = problem.student.columns + unit * problem.stride_columns;
    terms.num_columns = problem.num_columns;
    terms.at_columns = unit_row.gradient.data();
  }
  const T* student = static_cast<const T*>(problem.student.data) + row * problem.student.stride;
  write_row(student, out, inputs.vocab_size, terms, problem.temperature, exponent);
  fill_zeros(out, inputs.vocab_size, gradient.width);
}

}  // namespace

void unit_forward(const UnitProblem& problem, const UnitOutputs& outputs, int num_threads) {
  const Exponent exponent = make_exponent(problem.temperature);
  const Problem rows = as_rows(problem);
  with_row_type(problem.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_row(rows.rows, num_threads, [&](std::int64_t unit) {
      thread_local UnitRow row;
      forward_unit<T>(problem, rows, outputs, unit, row, exponent);
    });
  });
}

void unit_backward(const UnitProblem& problem, const UnitBackwardInputs& inputs, const Gradient& gradient,
                   int num_threads) {
  const Exponent exponent = make_exponent(problem.temperature);
  const Problem rows = as_rows(problem);
  const Rows student{problem.dtype, 1, inputs.num_rows, inputs.vocab_size, problem.temperature, nullptr};
  with_row_type(problem.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_row(student, num_threads, [&](std::int64_t row) {
      thread_local UnitRow unit_row;
      backward_row<T>(problem, rows, inputs, gradient, row, unit_row, exponent);
      finish_stores();
    });
  });
}

}  // namespace sod::cpu
