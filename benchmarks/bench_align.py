"""Alignment of two tokenizers over the length of a response, beside what the released code of SimCT does.

    python benchmarks/bench_align.py [--output results.json]

Two byte-level BPE tokenizers are trained on the text of this repository, one on prose and one on code, and
cut both. The C++ aligner and the Python reference must give the same units, and the greedy form those of the
walk over decoded prefixes, before anything is timed. That walk decodes both prefixes again at every token, so
it grows with the square of the length; it is timed on short responses and scaled to the long one, and the
record says so.

Least traffic of our side per token: its id (8 bytes), two offsets (16), a symbol (4) and what it spells.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from sod_kernels import Units, VocabMap, align_units

ROOT = Path(__file__).parents[1]
LONG = 32768
LENGTHS = (1024, 4096, 16384, LONG, 65536)
WALK_LENGTHS = (256, 512, 1024)
VOCAB_SIZES = (2000, 8000)
BYTES_PER_TOKEN = 8 + 16 + 4


def corpus(pattern: str) -> list[str]:
    """Lines of this repository, ASCII only: the walk over decoded prefixes loses its way elsewhere."""
    paths = sorted(ROOT.glob(pattern))
    return [line for path in paths for line in path.read_text().splitlines(keepends=True) if line.isascii()]


def train(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def walk(student: Tokenizer, teacher: Tokenizer, ids: list[int], others: list[int]) -> list[list[int]]:
    """Spans by decoding both prefixes at every token: a border follows equal tokens with equal histories."""
    i = j = 0
    begin, spans = (0, 0), []
    while i < len(ids) and j < len(others):
        history, other = student.decode(ids[:i]), teacher.decode(others[:j])
        is_anchor = history == other and student.decode([ids[i]]) == teacher.decode([others[j]])
        i, j = i + (len(history) <= len(other)), j + (len(other) <= len(history))
        if is_anchor:
            spans.append([begin[0], i, begin[1], j])
            begin = i, j
    return spans


def rows(units: Units) -> list[list[int]]:
    return torch.cat([units.student_spans, units.teacher_spans], 1).tolist()


def check(student: Tokenizer, teacher: Tokenizer, ids: Tensor, others: Tensor, vocab_map: VocabMap) -> None:
    """Compare every contestant on one response; nothing is timed if they disagree."""
    native, reference = (
        rows(align_units(ids, others, vocab_map, backend=backend)) for backend in ("native", "reference")
    )
    if native != reference:
        raise SystemExit("The native aligner disagrees with the reference; nothing was timed.")
    if rows(align_units(ids, others, vocab_map, align="greedy")) != walk(
        student, teacher, ids.tolist(), others.tolist()
    ):
        raise SystemExit("The greedy form disagrees with the walk over prefixes; nothing was timed.")


def timed(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Seconds per call after one to warm up: median, quantiles, and what the calling thread really ran."""
    function()
    seconds, of_thread = [], []
    for _ in range(repeats):
        begin, thread_begin = time.perf_counter(), time.thread_time()
        function()
        of_thread.append(time.thread_time() - thread_begin)
        seconds.append(time.perf_counter() - begin)
    seconds.sort()
    return {
        "median_thread_s": statistics.median(of_thread),
        "median_s": statistics.median(seconds),
        "p20_s": seconds[len(seconds) // 5],
        "p80_s": seconds[-1 - len(seconds) // 5],
    }


def slope(points: list[tuple[int, float]]) -> float:
    """Exponent of the growth between the first and the last point."""
    (first, before), (last, after) = points[0], points[-1]
    return math.log(after / before) / math.log(last / first)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=21, help="timed calls of our side")
    parser.add_argument("--output", type=Path, help="file for the record; it is printed either way")
    options = parser.parse_args()
    prose, code = corpus("docs/**/*.md"), corpus("sod*/**/*.py")
    student, teacher = train(prose, VOCAB_SIZES[0]), train(code, VOCAB_SIZES[1])
    vocab_map = VocabMap.from_tokenizers(student, teacher, bridge=())
    whole = "".join([*prose, *code])
    # No token spells more than a few characters on average.
    whole_ids = student.encode(whole * (LENGTHS[-1] * 8 // len(whole) + 1)).ids

    def response(length: int) -> tuple[Tensor, Tensor]:
        text = student.decode(whole_ids[:length])
        return torch.tensor(whole_ids[:length]), torch.tensor(teacher.encode(text).ids)

    check(student, teacher, *response(WALK_LENGTHS[0]), vocab_map)
    records: list[dict[str, object]] = []
    ours, theirs = [], []
    for length in LENGTHS:
        ids, others = response(length)
        lists = ids.tolist(), others.tolist()
        traffic = (ids.numel() + others.numel()) * BYTES_PER_TOKEN
        for op, backend, given, repeats in (
            ("align_units, native", "native", (ids, others), options.repeats),
            ("align_units, native, from lists", "native", lists, options.repeats),
            ("align_units, reference", "reference", (ids, others), 3),
        ):
            found = timed(lambda: align_units(*given, vocab_map, backend=backend), repeats)  # noqa: B023
            record = {"op": op, "student_tokens": length, "teacher_tokens": others.numel(), **found}
            records.append({**record, "mb_per_s_of_ids": traffic / found["median_s"] / 1e6})
            if given is not lists and backend == "native":
                ours.append((length, found["median_s"]))
    for length in WALK_LENGTHS:
        ids, others = (each.tolist() for each in response(length))
        found = timed(lambda: walk(student, teacher, ids, others), 1)  # noqa: B023
        records.append({"op": "walk over decoded prefixes", "student_tokens": length, **found})
        theirs.append((length, found["median_s"]))
    scaled = theirs[-1][1] * (LONG / theirs[-1][0]) ** 2
    record = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "vocab_sizes": VOCAB_SIZES,
        "rows": records,
        "growth_exponent_native": slope(ours),
        "growth_exponent_walk": slope(theirs),
        "native_s_at_32768": dict(ours)[LONG],
        "walk_s_at_32768_scaled_by_the_square": scaled,
        "times_faster_at_32768": scaled / dict(ours)[LONG],
    }
    text = json.dumps(record, indent=2)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
