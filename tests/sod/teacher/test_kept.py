"""Scores on disk: asked once, exact, told apart by teacher and text, made again where damaged."""

from __future__ import annotations

import sqlite3
import tomllib
from pathlib import Path

import pytest
import torch

from sod.algorithms import LossContext, make_algorithm
from sod.config_algorithms import OPDSection, SODSection
from sod.config_file import config_from_dict
from sod.config_teachers import TeacherSection, VLLMTeacherSection
from sod.errors import ConfigError, DataError
from sod.models import build_qwen3
from sod.packing import num_trained_tokens, pack
from sod.scoring import TopScores, row_states
from sod.teacher import Capability, KeptTeacher, LocalTeacher
from sod.teacher.base import teacher_scores
from sod.teacher.kept import SCORES_FILE
from sod.tokenization import tokenize_trajectory
from sod.types import Trajectory, Turn

V = 24


def model_of(seed):
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "max_positions": 32}
    return build_qwen3(vocab_size=V, seed=seed, **sizes).eval()


class Counting(LocalTeacher):
    num_sequences = 0

    def hidden(self, batch):
        self.num_sequences += len(
            set(batch.rows.div(batch.input_ids.shape[1], rounding_mode="floor").tolist())
        )
        return super().hidden(batch)


def batch_of(*ids):
    trajectories = [
        Trajectory(
            task_id=str(one),
            turns=(
                Turn(context_ids=(1, one), sampled_ids=(3, 4, one)),
                Turn(context_ids=(5,), sampled_ids=(6, 7)),
            ),
        )
        for one in ids
    ]
    sequences = [tokenize_trajectory(one) for one in trajectories]
    (batch,) = pack(sequences, range(len(ids)), max_tokens=1000, pad_id=0)
    return batch, LossContext(denominator=num_trained_tokens(sequences), round_number=1)


def kept(folder, teacher, num_top=V, fingerprint=None):
    fingerprint = teacher.fingerprint if fingerprint is None else fingerprint
    return KeptTeacher(teacher, folder, fingerprint=fingerprint, num_top=num_top, vocab_size=V)


def test_a_text_is_scored_once_also_by_the_next_run(tmp_path):
    teacher = Counting(model_of(1))
    first = kept(tmp_path / "new", teacher, num_top=4)
    batch, _ = batch_of(8, 9)
    before = first.top_scores(batch)
    more, _ = batch_of(9, 10)
    first.top_scores(more)
    assert (teacher.num_sequences, first.num_asked) == (3, 3)
    first.close()
    again = kept(tmp_path / "new", teacher, num_top=4)
    after = again.top_scores(batch)
    assert again.num_asked == 0
    assert torch.equal(after.log_probs, before.log_probs)
    assert torch.equal(after.ids, before.ids)
    again.close()


def test_what_is_listed_is_the_teacher_s_own(tmp_path):
    teacher, student = LocalTeacher(model_of(1)), model_of(0)
    batch, context = batch_of(8, 9, 10)
    for number, section in enumerate((OPDSection(), SODSection(), OPDSection(form="sampled"))):
        keeping = kept(tmp_path / str(number), teacher)
        losses = [
            make_algorithm(section, vocab_size=V)
            .loss(batch, row_states(student, batch), scores, context)
            .loss
            if not section.has_reward_term
            else torch.zeros(())
            for scores in (teacher.hidden(batch), teacher_scores(keeping, batch))
        ]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)
        keeping.close()
    few = kept(tmp_path / "few", teacher, num_top=2)
    listed = few.top_scores(batch)
    log_probs = teacher.hidden(batch).logits().log_softmax(-1)
    for row in range(batch.num_rows):
        ids = [one for one in listed.ids[row].tolist() if one >= 0]
        assert set(ids) == {*log_probs[row].topk(2).indices.tolist(), int(batch.labels[row])}
        assert len(set(ids)) == len(ids)
        wanted = log_probs[row, torch.tensor(ids)]
        torch.testing.assert_close(listed.log_probs[row][listed.ids[row] >= 0], wanted, rtol=1e-5, atol=1e-6)
    few.close()


def test_teachers_and_their_settings_are_told_apart(tmp_path):
    batch, _ = batch_of(8)
    one, other = LocalTeacher(model_of(1)), LocalTeacher(model_of(2))
    assert one.fingerprint != other.fingerprint
    assert LocalTeacher(model_of(1)).fingerprint == one.fingerprint
    for teacher, num_top in ((one, 4), (other, 4), (one, 5)):
        keeping = kept(tmp_path, teacher, num_top=num_top)
        keeping.top_scores(batch)
        assert keeping.num_asked == 1
        keeping.close()


@pytest.mark.parametrize(
    "damage",
    [
        "payload = substr(payload, 1, 20)",
        "payload = zeroblob(length(payload))",
        "payload = NULL",
        "checksum = x'00'",
    ],
)
def test_a_damaged_entry_is_found_and_made_again(tmp_path, damage):
    teacher, (batch, _) = LocalTeacher(model_of(1)), batch_of(8, 9)
    first = kept(tmp_path, teacher)
    wanted = first.top_scores(batch)
    first.close()
    with sqlite3.connect(tmp_path / SCORES_FILE) as file:
        file.execute(f"UPDATE scores SET {damage} WHERE rowid = 1")
    file.close()
    again = kept(tmp_path, teacher)
    with pytest.warns(RuntimeWarning, match="a damaged entry is made again"):
        scores = again.top_scores(batch)
    assert (again.num_damaged, again.num_asked) == (1, 1)
    torch.testing.assert_close(scores.log_probs, wanted.log_probs)
    again.top_scores(batch)
    assert again.num_asked == 1
    again.close()


def test_what_is_no_number_is_not_kept(tmp_path):
    teacher, (batch, _) = LocalTeacher(model_of(1)), batch_of(8)
    keeping = kept(tmp_path, teacher)
    with torch.no_grad():
        teacher.model.model.norm.weight.fill_(float("nan"))
        assert keeping.top_scores(batch).log_probs.isnan().any()
        teacher.model.model.norm.weight.fill_(1.0)
    assert keeping.top_scores(batch).log_probs.isfinite().any()
    assert keeping.num_asked == 2
    keeping.close()


def test_a_file_that_is_no_file_of_scores_is_named(tmp_path):
    (tmp_path / SCORES_FILE).write_bytes(b"something else that is long enough to be looked at" * 100)
    keeping = kept(tmp_path, LocalTeacher(model_of(1)))
    with pytest.raises(
        DataError, match=r"scores in .*scores\.sqlite: file is not a database\. Free disk space"
    ):
        keeping.top_scores(batch_of(8)[0])
    keeping.close()


class Sampled:
    capabilities = frozenset({Capability.SAMPLED})
    is_closed = False

    def top_scores(self, batch):
        return TopScores(log_probs=-batch.labels[:, None].float(), ids=batch.labels[:, None])

    def close(self):
        self.is_closed = True


def test_a_teacher_that_lists_is_kept_as_it_lists(tmp_path):
    listing, (batch, _) = Sampled(), batch_of(8, 9)
    keeping = kept(tmp_path, listing, num_top=0, fingerprint="x")
    assert keeping.capabilities == {Capability.SAMPLED}
    assert kept(tmp_path, LocalTeacher(model_of(1))).capabilities == {Capability.TOP_K, Capability.SAMPLED}
    for _ in range(2):
        scores = keeping.top_scores(batch)
        assert torch.equal(scores.ids, batch.labels[:, None])
        assert torch.equal(scores.log_probs, -batch.labels[:, None].float())
    assert keeping.num_asked == 2
    keeping.close()
    assert listing.is_closed


RUN = '[run]\noutput = "o"\n[trainer]\nrounds = 1\n[algorithm]\nname = "opd"\n[teacher]\nmodel = "org/t"\n'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            'keep_scores = "folder"\n',
            '[teacher] scores_folder is missing: it belongs to keep_scores = "folder"',
        ),
        ('scores_folder = "s"\n', 'and here keep_scores = "round"; give both or none'),
        ("num_top = 8\n", "[teacher] num_top = 8: belongs to scores that are kept on disk"),
        ('keep_scores = "always"\n', "wanted one of 'round', 'run', 'folder'"),
    ],
)
def test_settings_that_are_not_read(change, words):
    with pytest.raises(ConfigError) as caught:
        config_from_dict(tomllib.loads(RUN + change), base=Path("/base"))
    assert words in str(caught.value)


def test_what_is_kept_is_a_list_and_no_logits():
    config = config_from_dict(
        tomllib.loads(RUN + 'keep_scores = "folder"\nscores_folder = "s"\n'), base=Path("/base")
    )
    assert config.teacher.scores_folder == Path("/base/s")
    with pytest.raises(ConfigError, match='"local" with scores kept on disk lists log-probs of a few ids'):
        config_from_dict(
            tomllib.loads(RUN.replace('"opd"', '"stm"') + 'keep_scores = "run"\n'), base=Path("/base")
        )
    assert not TeacherSection(model="m").is_listing
    assert VLLMTeacherSection(model="m", url="http://h:1").is_listing
