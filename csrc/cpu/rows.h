// Walking over one row in blocks, whatever its dtype.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "cpu/blocks.h"
#include "sod/number.h"
#include "sod/rows.h"
#include "sod/softmax_state.h"

namespace sod::cpu {

// Tags for the two 16-bit formats, which share a storage type.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

struct alignas(64) Scratch {
  float values[kBlock];
};

inline const std::uint16_t* bits_of(const BFloat16* x) {
  return &x->bits;
}
inline const std::uint16_t* bits_of(const Float16* x) {
  return &x->bits;
}

inline const float* widen(const float* x, Scratch&, std::int64_t) {
  return x;
}
inline const float* widen(const BFloat16* x, Scratch& scratch, std::int64_t n) {
  widen_bfloat16(bits_of(x), scratch.values, n);
  return scratch.values;
}
inline const float* widen(const Float16* x, Scratch& scratch, std::int64_t n) {
  widen_float16(bits_of(x), scratch.values, n);
  return scratch.values;
}

// A block as floats, and its largest entry.
struct Block {
  const float* values;
  float max;
};

inline Block read_block(const float* x, Scratch&, std::int64_t n) {
  return {x, largest(x, n)};
}
inline Block read_block(const BFloat16* x, Scratch& scratch, std::int64_t n) {
  return {scratch.values, largest_of_bfloat16(bits_of(x), scratch.values, n)};
}
inline Block read_block(const Float16* x, Scratch& scratch, std::int64_t n) {
  return {scratch.values, largest_of_float16(bits_of(x), scratch.values, n)};
}

inline float widen_one(const float* x) {
  return *x;
}
inline float widen_one(const BFloat16* x) {
  return float_from_bfloat16(x->bits);
}
inline float widen_one(const Float16* x) {
  return float_from_float16(x->bits);
}

// Where a gradient goes: into memory of its own, or over the logits, whose lines are in the cache already.
enum class Destination { kFresh, kOverLogits };

template <class T>
Destination destination_of(const T* out, const T* student) {
  return out == student ? Destination::kOverLogits : Destination::kFresh;
}

inline void convert(const float* gradient, float* out, std::int64_t n) {
  store_float32(gradient, out, n);
}
inline void convert(const float* gradient, BFloat16* out, std::int64_t n) {
  store_bfloat16(gradient, &out->bits, n);
}
inline void convert(const float* gradient, Float16* out, std::int64_t n) {
  store_float16(gradient, &out->bits, n);
}

template <class T>
void store(const float* gradient, T* out, std::int64_t n, Destination destination) {
  if (destination == Destination::kOverLogits) return convert(gradient, out, n);
  const std::int64_t bytes = n * static_cast<std::int64_t>(sizeof(T));
  if constexpr (std::is_same_v<T, float>) {
    stream(gradient, out, bytes);
  } else {
    alignas(64) T narrow[kBlock];
    convert(gradient, narrow, n);
    stream(narrow, out, bytes);
  }
}

// Columns [from, to) become 0.
template <class T>
void fill_zeros(T* out, std::int64_t from, std::int64_t to) {
  std::memset(static_cast<void*>(out + from), 0, static_cast<std::size_t>(to - from) * sizeof(T));
}

// Calls visit(start, length) for every block, having asked for the data of the one after it. Null rows are
// left out.
template <class T, class Visit>
void for_each_block(std::initializer_list<const T*> rows, std::int64_t size, Visit visit) {
  for (std::int64_t start = 0; start < size; start += kBlock) {
    const std::int64_t n = std::min(kBlock, size - start);
    const std::int64_t ahead = std::min(kBlock, size - start - n) * static_cast<std::int64_t>(sizeof(T));
    for (const T* row : rows) {
      if (row != nullptr) prefetch(row + start + n, ahead);
    }
    visit(start, n);
  }
}

template <class T>
SoftmaxState<double> sweep_softmax(const T* row, std::int64_t size, Exponent exponent) {
  SoftmaxState<double> state;
  Scratch scratch;
  for_each_block<T>({row}, size, [&](std::int64_t start, std::int64_t n) {
    const Block block = read_block(row + start, scratch, n);
    rebase(state, larger(state.max, block.max), exponent);
    add_softmax(state, block.values, n, exponent);
  });
  return state;
}

// Runs work(row) for every row. Rows differ in cost (those of no step are nearly free), so they are handed
// out in small bunches; which thread takes a row never changes its result.
template <class Work>
void for_each_row(const Rows& rows, int num_threads, Work work) {
  constexpr std::int64_t kEntriesPerBunch = 32768;
  const std::int64_t bunch =
      std::max<std::int64_t>(1, kEntriesPerBunch / std::max<std::int64_t>(1, rows.vocab_size));
  const std::int64_t count = rows.count();
  (void)bunch;
  (void)num_threads;
#pragma omp parallel for schedule(dynamic, bunch) num_threads(num_threads)
  for (std::int64_t row = 0; row < count; ++row) work(row);
}

// Calls work with a null pointer of the row type that `dtype` names.
template <class Work>
void with_row_type(DType dtype, Work work) {
  switch (dtype) {
    case DType::kFloat32:
      work(static_cast<float*>(nullptr));
      break;
    case DType::kBFloat16:
      work(static_cast<BFloat16*>(nullptr));
      break;
    case DType::kFloat16:
      work(static_cast<Float16*>(nullptr));
      break;
  }
}

}  // namespace sod::cpu
