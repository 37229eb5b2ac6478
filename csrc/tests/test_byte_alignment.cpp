#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/alignment.h"

namespace {

using Spans = std::vector<std::vector<std::int64_t>>;

// A vocabulary from strings; one that starts with '<' is a control token whose symbol is its second letter.
struct Vocabulary {
  explicit Vocabulary(const std::vector<std::string>& tokens, bool has_prefix_space = false) {
    offsets.push_back(0);
    for (const std::string& token : tokens) {
      const bool is_control = !token.empty() && token[0] == '<';
      if (!is_control) bytes += token;
      offsets.push_back(static_cast<std::int64_t>(bytes.size()));
      symbols.push_back(!is_control ? sod::kText : token[1] == '?' ? -2 : token[1] - 'a');
    }
    table = {reinterpret_cast<const std::uint8_t*>(bytes.data()), offsets.data(), symbols.data(),
             has_prefix_space};
  }
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  std::string bytes;
  std::vector<std::int64_t> offsets;
  std::vector<std::int32_t> symbols;
  sod::TokenTable table{};
};

// Every token has an id of its own, in the order of the text, so text and ids are given as one.
struct Text {
  explicit Text(const std::vector<std::string>& tokens, bool has_prefix_space = false)
      : vocabulary(tokens, has_prefix_space) {
    for (std::size_t id = 0; id < tokens.size(); ++id) ids.push_back(static_cast<std::int64_t>(id));
  }

  sod::Tokens tokens() const {
    return {&vocabulary.table, ids.data(), 0, static_cast<std::int64_t>(ids.size())};
  }

  Vocabulary vocabulary;
  std::vector<std::int64_t> ids;
};

struct Found {
  bool is_same;
  Spans units;
};

Found align(const Text& student, const Text& teacher, bool is_truncated = false) {
  const std::size_t room = 2 * (student.ids.size() + teacher.ids.size() + 1);
  std::vector<std::int64_t> student_spans(room), teacher_spans(room);
  sod::UnitWriter units{student_spans.data(), teacher_spans.data()};
  const bool is_same = sod::align_segment(student.tokens(), teacher.tokens(), is_truncated, units);
  Spans spans;
  for (std::int64_t unit = 0; unit < units.count; ++unit) {
    const auto at = static_cast<std::size_t>(2 * unit);
    spans.push_back({student_spans[at], student_spans[at + 1], teacher_spans[at], teacher_spans[at + 1]});
  }
  return {is_same, spans};
}

void test_minimal_units() {
  const Found worked = align(Text({"4", "2", "+", "<e"}), Text({"42", "+", "<e"}));
  EXPECT(worked.is_same);
  EXPECT((worked.units == Spans{{0, 2, 0, 1}, {2, 3, 1, 2}, {3, 4, 2, 3}}));
  // Borders that leapfrog make one unit; the next common border ends it.
  EXPECT((align(Text({"a", "bc", "de", "f"}), Text({"ab", "cd", "e", "f"})).units ==
          Spans{{0, 3, 0, 3}, {3, 4, 3, 4}}));
  // Borders inside a character of several bytes.
  EXPECT((align(Text({"\xe4\xbd", "\xa0", "!"}), Text({"\xe4", "\xbd\xa0", "!"})).units ==
          Spans{{0, 2, 0, 2}, {2, 3, 2, 3}}));
  EXPECT(align(Text({}), Text({})).is_same);
}

void test_differences() {
  EXPECT(!align(Text({"ab"}), Text({"ac"})).is_same);
  EXPECT(!align(Text({"ab"}), Text({"a"})).is_same);
  EXPECT(!align(Text({"a"}), Text({"a", "b"})).is_same);
  EXPECT(!align(Text({"a", "<e"}), Text({"a", "<f"})).is_same);
  EXPECT(!align(Text({"a", "<e"}), Text({"a", "b"})).is_same);
  EXPECT(!align(Text({"a", "<e", "b"}), Text({"ab", "<e"})).is_same);
  // A control token without partner equals nothing, not even itself.
  EXPECT(!align(Text({"<?"}), Text({"<?"})).is_same);
}

void test_tokens_without_bytes() {
  EXPECT((align(Text({"", "a", "", "b", ""}), Text({"a", "b"})).units == Spans{{0, 3, 0, 1}, {3, 5, 1, 2}}));
  EXPECT(
      (align(Text({"a", "", "b", "c"}), Text({"ab", "", "c"})).units == Spans{{0, 3, 0, 2}, {3, 4, 2, 3}}));
  EXPECT((align(Text({"", "<e"}), Text({"<e"})).units == Spans{{0, 2, 0, 1}}));
}

void test_prefix_space() {
  const Spans one_unit{{0, 1, 0, 1}};
  EXPECT((align(Text({" hi"}, true), Text({"hi"})).units == one_unit));
  EXPECT((align(Text({"hi"}), Text({" hi"}, true)).units == one_unit));
  EXPECT((align(Text({"  hi"}, true), Text({" hi"})).units == one_unit));
  // Both put one there, or the space is the text's.
  EXPECT((align(Text({" hi"}, true), Text({" hi"}, true)).units == one_unit));
  EXPECT((align(Text({" hi"}, true), Text({" hi"})).units == one_unit));
  // A token that was only the space has no bytes left.
  EXPECT((align(Text({" ", "h", "i"}, true), Text({"hi"})).units == Spans{{0, 3, 0, 1}}));
  EXPECT(!align(Text({" hi"}), Text({"hi"})).is_same);
  EXPECT(!align(Text({"   hi"}, true), Text({" hi"})).is_same);
}

void test_truncated() {
  EXPECT((align(Text({"a", "b"}), Text({"a", "b", "<e"}), true).units == Spans{{0, 1, 0, 1}, {1, 2, 1, 2}}));
  EXPECT((align(Text({"a", "<e"}), Text({"a", "<e", "<?"}), true).units == Spans{{0, 1, 0, 1}}));
  // What lies beyond the last common border is in no unit.
  const Found cut = align(Text({"a", "b"}), Text({"a", "bc", "d"}), true);
  EXPECT(cut.is_same);
  EXPECT((cut.units == Spans{{0, 1, 0, 1}}));
  EXPECT(!align(Text({"a", "x"}), Text({"a", "bc"}), true).is_same);
  EXPECT(!align(Text({"a", "<e", "b"}), Text({"ab"}), true).is_same);
}

void test_segments() {
  const Vocabulary letters({"a", "b", "ab", "<e", "x"});
  // Student: a b <e  x  ab <e; the x belongs to no segment. Teacher: ab <e  a b <e.
  const std::vector<std::int64_t> student{0, 1, 3, 4, 2, 3}, teacher{2, 3, 0, 1, 3};
  const std::vector<std::int64_t> student_segments{0, 3, 4, 6}, teacher_segments{0, 2, 2, 5};
  const std::vector<std::uint8_t> is_truncated{0, 1};
  std::vector<std::int64_t> student_spans(8), teacher_spans(8), segment_units(2);
  sod::cpu::AlignmentProblem problem{
      letters.table,           letters.table,           student.data(),      teacher.data(),
      student_segments.data(), teacher_segments.data(), is_truncated.data(), 2};
  const sod::cpu::AlignmentOutputs outputs{student_spans.data(), teacher_spans.data(), segment_units.data()};
  EXPECT(sod::cpu::align(problem, outputs) == -1);
  EXPECT((segment_units == std::vector<std::int64_t>{2, 1}));
  EXPECT((student_spans == std::vector<std::int64_t>{0, 2, 2, 3, 4, 5, 0, 0}));
  EXPECT((teacher_spans == std::vector<std::int64_t>{0, 1, 1, 2, 2, 4, 0, 0}));

  const std::vector<std::int64_t> other{0, 3, 3, 6};
  problem.student_segments = other.data();
  EXPECT(sod::cpu::align(problem, outputs) == 1);
}

}  // namespace

int main() {
  test_minimal_units();
  test_differences();
  test_tokens_without_bytes();
  test_prefix_space();
  test_truncated();
  test_segments();
  return sod::test::finish();
}
