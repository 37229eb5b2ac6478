#include <vector>

#include "check.h"
#include "sod/segments.h"

int main() {
  std::vector<float> kl{1.0f, 100.0f, 2.0f, 4.0f}, student{-1.0f, 0.0f, -2.0f, -4.0f};
  std::vector<float> teacher{-3.0f, 0.0f, -1.0f, -4.5f}, entropy{0.5f, 9.0f, 0.25f, 0.125f};
  sod::ForwardOutputs outputs{};
  outputs.token_kl = kl.data();
  outputs.student_log_probs = student.data();
  outputs.teacher_log_probs = teacher.data();
  outputs.student_entropy = entropy.data();

  // Rows 0, 2 and 3 of one step, out of order.
  sod::StepSums sums;
  for (const int row : {3, 0, 2}) sod::add_token(sums, outputs, row);
  EXPECT(sums.values[0] == 3);
  EXPECT(sums.values[1] == 7.0);
  EXPECT(sums.values[2] == 2.0 + 1.0 + 0.5);
  EXPECT(sums.values[3] == 7.0);
  EXPECT(sums.values[4] == 0.875);

  // Without sampled ids there are no log-probs.
  outputs.student_log_probs = outputs.teacher_log_probs = nullptr;
  sod::StepSums unsampled;
  sod::add_token(unsampled, outputs, 2);
  EXPECT(unsampled.values[1] == 2.0);
  EXPECT(unsampled.values[2] == 0.0);
  EXPECT(unsampled.values[3] == 0.0);
  return sod::test::finish();
}
