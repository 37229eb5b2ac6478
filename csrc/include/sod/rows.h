// Rows of logits in memory, the same for every operation.
//
// N = batch * time rows; a row whose step id is negative belongs to no step: it is not read, and gets 0. Rows
// are contiguous; `batch` and `time` have strides of their own, so a view that drops the last position of
// every sequence needs no copy. Token arrays are dense (batch, time).
#pragma once

#include <cstdint>

#include "sod/number.h"
#include "sod/portable.h"

namespace sod {

struct Logits {
  const void* data;           // null where there are none
  std::int64_t stride_batch;  // in elements
  std::int64_t stride_time;
};

struct Rows {
  DType dtype;
  std::int64_t batch;
  std::int64_t time;
  std::int64_t vocab_size;  // columns at and beyond it are never read
  double temperature;
  const std::int64_t* step_ids;

  SOD_INLINE std::int64_t count() const { return batch * time; }
};

struct Gradient {
  void* data;          // dense (batch, time, width), the dtype of the logits; may be the student's logits
  std::int64_t width;  // at least vocab_size; the rest becomes 0
};

template <class T>
SOD_INLINE const T* row_of(const Logits& logits, const Rows& rows, std::int64_t row) {
  if (logits.data == nullptr) return nullptr;
  const std::int64_t sequence = row / rows.time;
  const std::int64_t position = row % rows.time;
  return static_cast<const T*>(logits.data) + sequence * logits.stride_batch + position * logits.stride_time;
}

template <class T>
SOD_INLINE T* row_of(const Gradient& gradient, std::int64_t row) {
  return static_cast<T*>(gradient.data) + row * gradient.width;
}

}  // namespace sod
