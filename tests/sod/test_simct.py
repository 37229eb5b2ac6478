"""SimCT as a divergence of the objective: against the kernel and OPD, with weights and reward on top."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sod.algorithms import LossContext, make_algorithm
from sod.config import RolloutSection, RunConfig, RunSection, TrainerSection
from sod.config_algorithms import OPDSection, SODSection
from sod.config_simct import SimCTSection
from sod.config_teachers import TeacherSection, VLLMTeacherSection
from sod.errors import ConfigError, TrainingError
from sod.loop.scores import check_scores
from sod.packing import pack
from sod.teacher.cache import Targets
from sod.tokenization import tokenize_trajectory
from sod.translation import translate_round
from sod_kernels import CROSS_TOKENIZER_LOSSES, SodWeighting, sod_weights, tdur_weights, unit_kl
from tests.sod.conversations import make_sides, rolled_out
from tests.sod.trained_tokenizers import SPECIAL

ADVANTAGES = [1.5, -0.7]
PAIRS = {
    "identity": (("byte_level", "hermes"), ("byte_level", "hermes")),
    "other": (("byte_level", "hermes"), ("digits", "plain")),
}


def made(name):
    """A packed batch of two trajectories of three turns, one turn untrained, and the logits of both sides."""
    # With every control token bridged, the shared columns of equal tokenizers are all columns.
    bridge = [(special, special) for special in SPECIAL] if name == "identity" else ()
    renderer, pair = make_sides(*PAIRS[name], bridge=bridge)
    observation = ({"role": "user", "content": "and?"},)
    trajectories = []
    for texts in (("the answer 17", "def add(a, b)", "42"), ("12 34", "你好, I think", "x = 5678")):
        asked = [(text, index == 2, observation) for index, text in enumerate(texts)]
        one = rolled_out(pair, renderer, asked)
        turns = (one.turns[0], replace(one.turns[1], is_trained=False), one.turns[2])
        turns = tuple(replace(turn, sampled_log_probs=(-1.0,) * len(turn.sampled_ids)) for turn in turns)
        trajectories.append(replace(one, turns=turns))
    translated = translate_round(trajectories, pair, align="minimal", may_drop=False)
    sequences = [tokenize_trajectory(one) for one in trajectories]
    options = {"max_tokens": 4000, "pad_id": 0, "advantages": ADVANTAGES}
    (batch,) = pack(sequences, [0, 1], **options, translated=translated)
    (plain,) = pack(sequences, [0, 1], **options)
    sizes = [len(table) for table in pair.tables]
    draw = torch.Generator().manual_seed(3)
    student = torch.randn(batch.num_rows, sizes[0] + 3, generator=draw)
    if name == "identity":
        teacher = student + 0.7 * torch.randn(student.shape, generator=draw)
    else:
        teacher = torch.randn(batch.counterpart.batch.num_rows, sizes[1] + 5, generator=draw)
    return batch, plain, student, teacher, sizes


def run(section, batch, student, teacher, sizes, *, denominator=40, **context):
    leaf = student.clone().requires_grad_()
    algorithm = make_algorithm(section, vocab_size=sizes[0])
    output = algorithm.loss(
        batch, leaf, teacher, LossContext(denominator=denominator, round_number=1, **context)
    )
    (gradient,) = torch.autograd.grad(output.loss, leaf)
    return replace(output, loss=output.loss.detach()), gradient


def units_of(batch, student, teacher, sizes, **options):
    """The kernel called by hand, one value per unit."""
    other = batch.counterpart
    return unit_kl(
        student,
        teacher,
        other.units,
        other.vocab_map,
        student_ids=batch.labels,
        teacher_ids=other.batch.labels,
        step_ids=batch.row_steps,
        num_steps=batch.num_steps,
        step_trajectory=batch.step_trajectory,
        student_vocab_size=sizes[0],
        teacher_vocab_size=sizes[1],
        reduction="none",
        **options,
    )


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_with_equal_tokenizers_it_is_opd(divergence):
    batch, plain, student, teacher, sizes = made("identity")
    own, gradient = run(SimCTSection(divergence=divergence), batch, student, teacher, sizes)
    opd, expected = run(OPDSection(divergence=divergence), plain, student, teacher, sizes)
    torch.testing.assert_close(own.loss, opd.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own.step_divergence, opd.step_divergence, rtol=1e-6, atol=1e-6)
    assert own.step_tokens.tolist() == opd.step_tokens.tolist()
    for key in ("kl/token", "entropy/token", "log_ratio/token", "log_ratio_abs/token"):
        torch.testing.assert_close(
            own.token_sums[key].float(), opd.token_sums[key].float(), rtol=1e-4, atol=1e-4
        )


WEIGHTS = {
    "uniform": ({}, lambda kernel, batch: torch.ones(batch.num_steps)),
    "sod": (
        {"weight": "sod", "delta": 0.5},
        lambda kernel, batch: sod_weights(kernel.step_divergence, batch.step_trajectory, delta=0.5),
    ),
}


@pytest.mark.parametrize("weight", [*WEIGHTS, "atod"])
@pytest.mark.parametrize("score", ["log_prob", "logit"])
def test_the_loss_is_the_weighted_mean_over_units(weight, score):
    batch, _, student, teacher, sizes = made("other")
    leaf = student.clone().requires_grad_()
    kernel = units_of(batch, leaf, teacher, sizes, score=score, step_divergence="abs_log_ratio")
    if weight == "atod":
        settings = {"weight": "atod", "min_turns": 2}
        entropy = kernel.unit_entropy.double()
        sums = torch.zeros(batch.num_steps, dtype=torch.float64).index_add(0, kernel.unit_steps, entropy)
        weights = tdur_weights(
            kernel.step_divergence,
            # Rounded once: the range over a trajectory may be small.
            (sums / kernel.step_units).float(),
            kernel.step_tokens,
            batch.step_trajectory,
            min_turns=2,
        )
    else:
        settings, weigh = WEIGHTS[weight]
        weights = weigh(kernel, batch)
    is_trained = batch.row_loss_mask[batch.counterpart.units.student_spans[:, 0]]
    by_unit = torch.where(is_trained, weights[kernel.unit_steps] * kernel.unit_kl, 0.0)
    (expected,) = torch.autograd.grad(by_unit.sum() / 40, leaf)
    output, gradient = run(SimCTSection(score=score, **settings), batch, student, teacher, sizes)
    assert float(by_unit.detach().sum()) > 0.5
    torch.testing.assert_close(output.loss, by_unit.sum().detach() / 40, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(output.step_weights, weights.float(), rtol=1e-5, atol=1e-6)
    assert (weights.unique().numel() == 1) == (weight == "uniform")
    assert float(output.token_sums["unit/compared"]) == int(is_trained.sum())
    # Untrained turns, and the columns beyond the tokens, get nothing.
    assert not gradient[~batch.row_loss_mask].any()
    assert not gradient[:, sizes[0] :].any()


OPTIONS = {
    "one_to_one": ({"unit_filter": "one_to_one"}, {"unit_filter": "one_to_one"}),
    "topk": ({"topk": 5}, {"topk": 5}),
    "masked": ({"mask_first_token": True}, {"mask_first_token": True}),
    "mass": ({"min_teacher_mass": 0.9}, {"min_teacher_mass": 0.9}),
    "temperature": ({"temperature": 2.0}, {"temperature": 2.0}),
    "jsd": ({"divergence": "jsd", "beta": 0.3}, {"divergence": "jsd", "beta": 0.3}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_reaches_the_kernel(name):
    settings, options = OPTIONS[name]
    batch, _, student, teacher, sizes = made("other")
    kernel = units_of(batch, student, teacher, sizes, **options)
    is_trained = batch.row_loss_mask[batch.counterpart.units.student_spans[:, 0]]
    expected = torch.where(is_trained, kernel.unit_kl, 0.0).sum() / 40
    output, _ = run(SimCTSection(**settings), batch, student, teacher, sizes)
    plain, _ = run(SimCTSection(), batch, student, teacher, sizes)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert abs(float(output.loss - plain.loss)) > 1e-4


@pytest.mark.parametrize(
    ("loss", "settings"), [("uld", {"topk": 4}), ("gold", {}), ("alm", {"unit_filter": "one_to_one"})]
)
def test_the_baselines_take_the_place_of_the_divergence_under_step_weights(loss, settings):
    batch, _, student, teacher, sizes = made("other")
    section = SimCTSection(loss=loss, weight="sod", **settings)
    output, gradient = run(section, batch, student, teacher, sizes)
    other = batch.counterpart
    leaf = student.clone().requires_grad_()
    expected = CROSS_TOKENIZER_LOSSES[loss](
        leaf,
        teacher,
        other.units,
        other.vocab_map,
        student_ids=batch.labels,
        teacher_ids=other.batch.labels,
        step_ids=batch.row_steps,
        step_trajectory=batch.step_trajectory,
        num_steps=batch.num_steps,
        student_vocab_size=sizes[0],
        teacher_vocab_size=sizes[1],
        weighting=SodWeighting(),
        token_weights=batch.row_loss_mask.float(),
        denominator=40.0,
        **{"unit_filter": None, **settings},
    )
    torch.testing.assert_close(output.loss, expected.loss.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.loss, leaf)[0])
    torch.testing.assert_close(output.step_weights, expected.step_weights)
    assert float(gradient.abs().max()) > 1e-4


def test_the_reward_term_is_that_of_opd():
    batch, plain, student, teacher, sizes = made("identity")
    settings = {"reward_coefficient": 0.7, "divergence": "forward_kl"}
    own, gradient = run(SimCTSection(**settings), batch, student, teacher, sizes)
    opd, expected = run(OPDSection(**settings), plain, student, teacher, sizes)
    torch.testing.assert_close(own.loss, opd.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.token_sums["policy/loss"], opd.token_sums["policy/loss"])


def test_low_precision_of_one_side_is_no_obstacle():
    batch, _, student, teacher, sizes = made("other")
    whole, _ = run(SimCTSection(), batch, student, teacher, sizes)
    mixed, _ = run(SimCTSection(), batch, student, teacher.bfloat16(), sizes)
    assert float(mixed.loss) == pytest.approx(float(whole.loss), rel=0.02)


def test_a_batch_without_the_teachers_side_is_refused():
    _, plain, student, teacher, sizes = made("other")
    with pytest.raises(ValueError, match="simct: wanted a batch with a counterpart in the teacher's tokens"):
        run(SimCTSection(), plain, student, teacher, sizes)


def test_a_teachers_score_that_is_no_number_is_named_by_its_own_row():
    batch, _, _, teacher, _ = made("other")
    other = batch.counterpart.batch
    row = int((other.row_steps == 4).nonzero()[1])
    teacher[row] = torch.nan
    with pytest.raises(TrainingError, match="teacher scores trajectory 1 of the round, turn 1, token 1"):
        check_scores(batch, Targets(teacher=teacher, reference=None))


WRONG = {
    "an unread bound": ({"delta": 0.3}, r'delta = 0.3: belongs to weight = "sod", but weight = "uniform"'),
    "an unread count": (
        {"weight": "sod", "min_turns": 2},
        r'min_turns = 2: belongs to weight = "atod", but weight = "sod"',
    ),
    "a floor": ({"min_log_prob": -5.0}, r'min_log_prob = -5.0: .* "simct" has no floor; remove it'),
    "a mask without spans": (
        {"mask_first_token": True, "unit_filter": "one_to_one"},
        r"mask_first_token = true: belongs to unit_filter = \"all\"",
    ),
    "a score without spans": (
        {"score": "logit", "unit_filter": "one_to_one"},
        r'score = "logit": belongs to unit_filter = "all"',
    ),
    "half a bridge": ({"bridge": ("<a>",)}, r"bridge holds '<a>'; wanted \"STUDENT = TEACHER\""),
    "another form": ({"form": "sampled"}, r"form = 'sampled': wanted one of 'vocab'"),
    "another loss": ({"loss": "god"}, r"loss = 'god': wanted one of 'simct', 'uld', 'gold', 'alm'"),
    "a score of another loss": (
        {"loss": "alm", "score": "logit"},
        r"score = 'logit': belongs to loss = 'simct'",
    ),
    "a list of another loss": (
        {"loss": "gold", "topk": 3},
        r"topk = 3: belongs to loss = 'simct' or 'uld', but loss = 'gold'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_do_not_fit_are_refused(name):
    settings, words = WRONG[name]
    with pytest.raises(ConfigError, match=rf"\[algorithm\] {words}"):
        SimCTSection(**settings)


def test_a_bridge_is_taken_apart():
    section = SimCTSection(bridge=("<|im_end|> = <|eot_id|>", "<a>  =  <b>"))
    assert section.bridge_pairs == (("<|im_end|>", "<|eot_id|>"), ("<a>", "<b>"))


def config(tmp_path, **sections):
    return RunConfig(
        run=RunSection(output=tmp_path),
        trainer=TrainerSection(rounds=1),
        rollout=RolloutSection(),
        **sections,
    )


def test_a_teacher_that_lists_is_refused_and_a_template_that_nobody_reads(tmp_path):
    served = VLLMTeacherSection(model="name", url="http://127.0.0.1:1")
    with pytest.raises(ConfigError, match='algorithm "simct" compares full logits with a teacher of another'):
        config(tmp_path, algorithm=SimCTSection(), teacher=served)
    reads = TeacherSection(model="name", chat_template="plain")
    assert config(tmp_path, algorithm=SimCTSection(), teacher=reads).teacher is reads
    for setting in ({"chat_template": "plain"}, {"enable_thinking": False}):
        with pytest.raises(ConfigError, match=r'\[teacher\] .*: belongs to algorithm "simct", whose teacher'):
            config(tmp_path, algorithm=SODSection(), teacher=TeacherSection(model="name", **setting))
