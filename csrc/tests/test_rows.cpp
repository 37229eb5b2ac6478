// Where a row begins: 64-bit arithmetic all the way, as rows times columns passes 2^31. Nothing is read.
#include <cstdint>
#include <initializer_list>

#include "check.h"
#include "sod/rows.h"

namespace {

constexpr std::int64_t kVocab = 151936;
constexpr std::int64_t kFar = std::int64_t{1} << 31;

std::int64_t distance(const void* begin, const void* row) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(row) -
                                   reinterpret_cast<std::uintptr_t>(begin));
}

}  // namespace

int main() {
  // An address that stands for memory which would take gigabytes.
  void* base = reinterpret_cast<void*>(std::uintptr_t{1} << 20);
  for (const std::int64_t row : {0, 1, 14134, 14135, 65535}) {
    const sod::Rows packed{sod::DType::kFloat32, 1, 65536, kVocab, 1.0, nullptr};
    const sod::Logits logits{base, 0, kVocab};
    EXPECT(distance(base, sod::row_of<float>(logits, packed, row)) == 4 * row * kVocab);
    const sod::Gradient gradient{base, kVocab};
    EXPECT(distance(base, sod::row_of<float>(gradient, row)) == 4 * row * kVocab);
  }
  // A batch of views: strides of their own, each beyond 2^31 elements.
  const sod::Rows padded{sod::DType::kFloat32, 3, 4, kVocab, 1.0, nullptr};
  const sod::Logits logits{base, 5 * kFar, kFar};
  EXPECT(distance(base, sod::row_of<float>(logits, padded, 11)) == 4 * (2 * 5 * kFar + 3 * kFar));
  EXPECT((sod::row_of<float>(sod::Logits{nullptr, kFar, kFar}, padded, 11)) == nullptr);
  EXPECT(padded.count() == 12);
  return sod::test::finish();
}
