// Units of two token sequences that spell the same bytes.
//
// Both sequences cut one text. A unit is what lies between two neighbouring places where both cut it: the
// finest pieces that are whole tokens on both sides. One walk over both texts finds them and compares every
// byte on the way, in time linear in the tokens and their bytes, without memory of its own.
//
// A control token (end of turn and the like) has no bytes but a symbol: it is a piece of the text of its own,
// equal to control tokens of the same symbol. A token without bytes that is no control token moves no border;
// it joins the unit before it, and at the start of a segment the unit after it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace sod {

constexpr std::int32_t kText = -1;

// What the tokens of one vocabulary spell.
struct TokenTable {
  const std::uint8_t* bytes;    // of all tokens, one after the other
  const std::int64_t* offsets;  // (vocabulary + 1) into bytes
  const std::int32_t* symbols;  // (vocabulary); kText, the symbol of a control token, or less for no partner
  bool has_prefix_space;        // whether a text may begin with a space that the tokenizer put there
};

// Ids [begin, end) of one side, all inside the table.
struct Tokens {
  const TokenTable* table;
  const std::int64_t* ids;
  std::int64_t begin;
  std::int64_t end;

  std::int32_t symbol(std::int64_t token) const { return table->symbols[ids[token]]; }
};

// Appends to two arrays of [start, end) pairs; a segment of n and m tokens has at most min(n, m) units.
struct UnitWriter {
  std::int64_t* student_spans;
  std::int64_t* teacher_spans;
  std::int64_t count = 0;

  void append(std::int64_t student_start, std::int64_t student_end, std::int64_t teacher_start,
              std::int64_t teacher_end) {
    student_spans[2 * count] = student_start;
    student_spans[2 * count + 1] = student_end;
    teacher_spans[2 * count] = teacher_start;
    teacher_spans[2 * count + 1] = teacher_end;
    ++count;
  }

  void extend(std::int64_t student_end, std::int64_t teacher_end) {
    student_spans[2 * count - 1] = student_end;
    teacher_spans[2 * count - 1] = teacher_end;
  }
};

// A place in one side's text: `token` is the first token not wholly behind it.
class Cursor {
 public:
  explicit Cursor(const Tokens& tokens) : tokens_(tokens), token_(tokens.begin) { open(); }

  std::int64_t token() const { return token_; }
  bool is_done() const { return token_ == tokens_.end; }
  bool is_inside_token() const { return at_ != first_; }
  bool is_control() const { return symbol_ != kText; }
  std::int32_t symbol() const { return symbol_; }
  const std::uint8_t* bytes() const { return at_; }
  std::int64_t num_bytes() const { return stop_ - at_; }

  // Moves on by bytes of the token; at its end, to the next one.
  void read(std::int64_t count) {
    at_ += count;
    if (at_ == stop_) next();
  }

  void next() {
    ++token_;
    open();
  }

  void skip_tokens_without_bytes() {
    while (!is_done() && !is_control() && num_bytes() == 0) next();
  }

 private:
  void open() {
    symbol_ = kText;
    first_ = at_ = stop_ = nullptr;
    if (is_done()) return;
    const std::int64_t id = tokens_.ids[token_];
    symbol_ = tokens_.table->symbols[id];
    if (is_control()) return;
    first_ = at_ = tokens_.table->bytes + tokens_.table->offsets[id];
    stop_ = tokens_.table->bytes + tokens_.table->offsets[id + 1];
  }

  Tokens tokens_;
  std::int64_t token_;
  std::int32_t symbol_ = kText;
  const std::uint8_t* first_ = nullptr;
  const std::uint8_t* at_ = nullptr;
  const std::uint8_t* stop_ = nullptr;
};

inline std::int64_t leading_spaces(const Tokens& tokens) {
  std::int64_t count = 0;
  for (Cursor cursor(tokens);;) {
    cursor.skip_tokens_without_bytes();
    if (cursor.is_done() || cursor.is_control() || *cursor.bytes() != ' ') return count;
    cursor.read(1);
    ++count;
  }
}

// Drops the space that a tokenizer put before the text, where the other side begins with one space fewer.
inline void drop_prefix_space(const Tokens& student, const Tokens& teacher, Cursor& s, Cursor& t) {
  if (!student.table->has_prefix_space && !teacher.table->has_prefix_space) return;
  const std::int64_t surplus = leading_spaces(student) - leading_spaces(teacher);
  const bool is_dropped_here = surplus == 1 && student.table->has_prefix_space;
  const bool is_dropped_there = surplus == -1 && teacher.table->has_prefix_space;
  if (!is_dropped_here && !is_dropped_there) return;
  Cursor& cursor = is_dropped_here ? s : t;
  cursor.skip_tokens_without_bytes();
  cursor.read(1);
}

// Reads both sides from one common border to the next. False where they differ, or where one side's text ends
// inside a token of the other.
inline bool read_unit(Cursor& s, Cursor& t) {
  do {
    const std::int64_t count = std::min(s.num_bytes(), t.num_bytes());
    if (std::memcmp(s.bytes(), t.bytes(), static_cast<std::size_t>(count)) != 0) return false;
    s.read(count);
    t.read(count);
    if (!s.is_inside_token() && !t.is_inside_token()) return true;
    s.skip_tokens_without_bytes();
    t.skip_tokens_without_bytes();
  } while (!s.is_done() && !t.is_done() && !s.is_control() && !t.is_control());
  return false;
}

// Writes the units of one segment, on both sides the same text. With `is_truncated` control tokens at the end
// are left out and one text may go on where the other has ended; what lies beyond the last common border is
// in no unit. False where the texts differ.
inline bool align_segment(Tokens student, Tokens teacher, bool is_truncated, UnitWriter& units) {
  if (is_truncated) {
    while (student.begin < student.end && student.symbol(student.end - 1) != kText) --student.end;
    while (teacher.begin < teacher.end && teacher.symbol(teacher.end - 1) != kText) --teacher.end;
  }
  Cursor s(student), t(teacher);
  drop_prefix_space(student, teacher, s, t);
  const std::int64_t first_unit = units.count;
  std::int64_t student_start = student.begin, teacher_start = teacher.begin;
  for (;;) {
    s.skip_tokens_without_bytes();
    t.skip_tokens_without_bytes();
    if (units.count > first_unit) {
      units.extend(s.token(), t.token());
      student_start = s.token();
      teacher_start = t.token();
    }
    if (s.is_done() || t.is_done()) return is_truncated || (s.is_done() && t.is_done());
    if (s.is_control() || t.is_control()) {
      if (s.symbol() != t.symbol() || s.symbol() < 0) return false;
      s.next();
      t.next();
    } else if (!read_unit(s, t)) {
      return is_truncated && (s.is_done() || t.is_done());
    }
    units.append(student_start, s.token(), teacher_start, t.token());
  }
}

}  // namespace sod
