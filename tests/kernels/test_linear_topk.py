"""`linear_topk_step_kl` is `topk_step_kl` on the logits that it never makes, in float64."""

import pytest
import torch
from linear_inputs import (
    NUM_COLUMNS,
    PACKED_IDS,
    PACKED_TRAJECTORY,
    PADDED_IDS,
    full_logits,
    learned,
    make_heads,
    norm_error,
)
from topk_inputs import DIVERGENCES, TAILS, make_teacher_lists

from sod_kernels import (
    PolicyGradient,
    SodWeighting,
    TurnWeighting,
    linear_topk_step_kl,
    topk_step_kl,
)

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}
SAMPLED = torch.randint(NUM_COLUMNS, PACKED_IDS.shape, generator=torch.Generator().manual_seed(5))
SAMPLED[PACKED_IDS < 0] = -100
FIELDS = ("token_kl", "student_entropy", "step_divergence", "step_weights", "step_tokens")
CHUNK_SIZES = (1, 2, 3, 4, 5, 7, 12, 20, PACKED_IDS.numel(), None)
WEIGHTINGS = {
    "none": None,
    "tensor": torch.tensor([0.5, 2.0, 0.0, 1.3, 9.0, 0.7], dtype=torch.float64),
    "sod": SodWeighting(delta=0.3),
    "turn": TurnWeighting(min_turns=2),
}


def make_batch(shape, *, k=4, **options):
    """The student's head, and lists of a teacher with awkward entries that leave every divergence finite."""
    heads = make_heads(shape, **options)
    logits = full_logits(heads, "teacher", torch.float64)[..., :NUM_COLUMNS]
    log_probs, ids = make_teacher_lists(logits.detach(), k)
    flat_log_probs, flat_ids = log_probs.view(-1, k), ids.view(-1, k)
    # Of the first token an id is absent, of the second one is listed twice, the third has no list.
    flat_ids[3, 1], flat_log_probs[3, 1] = -1, torch.nan
    flat_ids[4, 0], flat_log_probs[4, 0] = flat_ids[4, 2].item(), -torch.inf
    flat_ids[5] = -7
    return {name: each for name, each in heads.items() if name.startswith("student")}, (log_probs, ids)


def through_logits(student, lists, ids, *, scale=1.0, softcap=None, vocab_size=None, **options):
    logits = full_logits(
        student, "student", torch.float64, scale=scale, softcap=softcap, vocab_size=vocab_size
    )
    return topk_step_kl(logits, *lists, ids, backend="reference", **options)


def run(student, lists, ids, **options):
    return linear_topk_step_kl(
        student["student_hidden"],
        student["student_weight"],
        *lists,
        ids,
        student_bias=student.get("student_bias"),
        backend="reference",
        **options,
    )


def assert_same_gradients(student, ours, wanted):
    parts = learned(student)
    exact = torch.autograd.grad(wanted, parts, retain_graph=True)
    assert float(exact[1].abs().max()) > 1e-4
    for one, other in zip(torch.autograd.grad(ours, parts), exact, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)


def assert_same_outputs(out, wanted, *, has_sampled=False):
    names = (*FIELDS, "student_log_probs", "teacher_log_probs") if has_sampled else FIELDS
    for name in names:
        torch.testing.assert_close(getattr(out, name), getattr(wanted, name).detach(), **TOLERANCE)
    assert out.token_reference_kl is None
    if not has_sampled:
        assert out.student_log_probs is None


class TestSingleSweep:
    @pytest.mark.parametrize(
        ("tail", "weighting"),
        # The weightings take no negative divergence, which "drop" may give.
        [
            (tail, name)
            for tail in TAILS
            for name in WEIGHTINGS
            if tail != "drop" or name in ("none", "tensor")
        ],
    )
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_every_chunk_size_tail_and_weighting(self, divergence, tail, weighting):
        student, lists = make_batch(PACKED_IDS.shape)
        options = {
            "tail": tail,
            "weighting": WEIGHTINGS[weighting],
            "divergence": divergence,
            "beta": 0.3 if divergence == "jsd" else None,
            "step_trajectory": PACKED_TRAJECTORY,
        }
        wanted = through_logits(student, lists, PACKED_IDS, **options)
        for chunk_size in CHUNK_SIZES:
            out = run(student, lists, PACKED_IDS, chunk_size=chunk_size, **options)
            torch.testing.assert_close(out.loss, wanted.loss, **TOLERANCE)
            assert_same_gradients(student, out.loss, wanted.loss)
            assert_same_outputs(out, wanted)

    def test_sampled_ids_temperature_and_padded_rows(self):
        student, lists = make_batch(PADDED_IDS.shape)
        options = {
            "weighting": SodWeighting(),
            "reduction": "sequence_mean",
            "temperature": 1.7,
            "min_log_prob": -3.0,
            "sampled_ids": torch.arange(PADDED_IDS.numel()).view(PADDED_IDS.shape) % NUM_COLUMNS,
        }
        wanted = through_logits(student, lists, PADDED_IDS, **options)
        for chunk_size in (1, 4, None):
            out = run(student, lists, PADDED_IDS, chunk_size=chunk_size, **options)
            torch.testing.assert_close(out.loss, wanted.loss, **TOLERANCE)
            assert_same_gradients(student, out.loss, wanted.loss)
            assert_same_outputs(out, wanted, has_sampled=True)

    def test_sod_divergence_of_listed_samples(self):
        student, (log_probs, ids) = make_batch(PACKED_IDS.shape)
        ids[5] = torch.arange(4)
        log_probs[5] = -2.0
        sampled = torch.where(PACKED_IDS >= 0, ids.max(-1).values, -100)
        options = {
            "weighting": SodWeighting(),
            "step_divergence": "abs_log_ratio",
            "sampled_ids": sampled,
            "token_weights": torch.linspace(0.0, 2.0, PACKED_IDS.numel(), dtype=torch.float64),
        }
        wanted = through_logits(student, (log_probs, ids), PACKED_IDS, **options)
        out = run(student, (log_probs, ids), PACKED_IDS, chunk_size=5, **options)
        assert_same_gradients(student, out.loss, wanted.loss)
        assert_same_outputs(out, wanted, has_sampled=True)

    @pytest.mark.parametrize("single_sweep", [True, False])
    def test_bias_scale_softcap_and_padding_columns(self, single_sweep):
        student, lists = make_batch(PACKED_IDS.shape, has_bias=True, num_columns=(13, 11))
        shared = {"weighting": SodWeighting(), "vocab_size": 11}
        wanted = through_logits(student, lists, PACKED_IDS, scale=0.7, softcap=2.0, **shared)
        for chunk_size in (3, None):
            out = run(
                student,
                lists,
                PACKED_IDS,
                student_logit_scale=0.7,
                student_softcap=2.0,
                chunk_size=chunk_size,
                single_sweep=single_sweep,
                **shared,
            )
            assert_same_gradients(student, out.loss, wanted.loss)
        gradients = torch.autograd.grad(run(student, lists, PACKED_IDS, **shared).loss, learned(student))
        assert not gradients[1][11:].any()
        assert not gradients[2][11:].any()


class TestWholeObjective:
    @pytest.mark.parametrize("single_sweep", [True, False])
    def test_equals_plain_torch(self, single_sweep):
        student, lists = make_batch(PACKED_IDS.shape)
        wanted = through_logits(student, lists, PACKED_IDS, sampled_ids=SAMPLED, weighting=SodWeighting())
        active = PACKED_IDS >= 0
        noise = torch.linspace(-1.0, 1.0, PACKED_IDS.numel(), dtype=torch.float64)
        old = torch.where(active, wanted.student_log_probs.detach() + noise, torch.nan)
        advantages = torch.where(active, noise.flip(0), torch.nan)
        ratio = (wanted.student_log_probs - old).exp()
        term = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)[active].mean()
        loss = 0.6 * wanted.loss + term - 0.05 * wanted.student_entropy[active].mean()
        for chunk_size in (1, 6, None):
            out = run(
                student,
                lists,
                PACKED_IDS,
                sampled_ids=SAMPLED,
                weighting=SodWeighting(),
                policy_gradient=PolicyGradient(advantages=advantages, old_log_probs=old, dual_clip=None),
                kl_coefficient=0.6,
                entropy_coefficient=0.05,
                single_sweep=single_sweep,
                chunk_size=chunk_size,
            )
            torch.testing.assert_close(out.loss, loss, **TOLERANCE)
            assert_same_gradients(student, out.loss, loss)


class TestTwoSweeps:
    @pytest.mark.parametrize("tail", TAILS)
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_any_upstream_gradient(self, divergence, tail):
        student, lists = make_batch(PACKED_IDS.shape)
        upstream = torch.randn((3, *PACKED_IDS.shape), generator=torch.Generator().manual_seed(4)).double()
        options = {"divergence": divergence, "tail": tail, "sampled_ids": SAMPLED, "reduction": "none"}

        def objective(out):
            total = (out.loss * upstream[0]).sum() + (upstream[0] * out.token_kl).sum()
            total = total + (upstream[1] * out.student_log_probs).sum()
            return total + (upstream[2] * out.student_entropy).sum()

        wanted = through_logits(student, lists, PACKED_IDS, **options)
        for chunk_size in (1, 4, None):
            out = run(student, lists, PACKED_IDS, single_sweep=False, chunk_size=chunk_size, **options)
            torch.testing.assert_close(out.loss, wanted.loss, **TOLERANCE)
            assert_same_gradients(student, objective(out), objective(wanted))

    @pytest.mark.parametrize("single_sweep", [True, False])
    @pytest.mark.parametrize("tail", TAILS)
    def test_gradcheck(self, tail, single_sweep):
        ids = torch.tensor([0, 0, 0, -1, 1, 1])
        student, lists = make_batch(ids.shape, has_bias=True, k=3)

        def loss(hidden, weight, bias):
            return linear_topk_step_kl(
                hidden,
                weight,
                *lists,
                ids,
                student_bias=bias,
                student_softcap=3.0,
                tail=tail,
                # Weights are constants of the gradient: given, so that differences do not move them.
                weighting=torch.tensor([0.4, 1.1]),
                entropy_coefficient=0.2,
                chunk_size=2,
                single_sweep=single_sweep,
                backend="reference",
            ).loss

        assert torch.autograd.gradcheck(loss, learned(student), fast_mode=True)


class TestWhatIsLearned:
    @pytest.mark.parametrize("single_sweep", [True, False])
    @pytest.mark.parametrize("frozen", ["student_hidden", "student_weight", "student_bias"])
    def test_frozen_parts_get_none(self, frozen, single_sweep):
        student, lists = make_batch(PACKED_IDS.shape, has_bias=True)
        through_logits(student, lists, PACKED_IDS, weighting=SodWeighting()).loss.backward()
        exact = {name: each.grad for name, each in student.items()}
        student = {
            name: each.detach().clone().requires_grad_(name != frozen) for name, each in student.items()
        }
        lists[0].requires_grad_()
        options = {"weighting": SodWeighting(), "chunk_size": 5, "single_sweep": single_sweep}
        run(student, lists, PACKED_IDS, **options).loss.backward()
        assert student[frozen].grad is None
        assert lists[0].grad is None
        for name in set(student) - {frozen}:
            torch.testing.assert_close(student[name].grad, exact[name], **TOLERANCE)

    def test_single_sweep_detaches_all_but_the_loss(self):
        student, lists = make_batch(PACKED_IDS.shape)
        for weighting in (SodWeighting(), TurnWeighting()):
            out = run(student, lists, PACKED_IDS, sampled_ids=SAMPLED, weighting=weighting)
            assert out.loss.requires_grad
            assert not any(
                each.requires_grad for each in (out.token_kl, out.student_entropy, out.student_log_probs)
            )


class TestInfinities:
    @pytest.mark.parametrize("single_sweep", [True, False])
    def test_a_listed_zero_probability_is_infinite_without_a_gradient(self, single_sweep):
        student, (log_probs, ids) = make_batch(PACKED_IDS.shape)
        log_probs[6, 2] = -torch.inf
        options = {"weighting": SodWeighting(), "chunk_size": 4, "single_sweep": single_sweep}
        out = run(student, (log_probs, ids), PACKED_IDS, **options)
        assert out.token_kl[6].isinf()
        # The first step is infinite and keeps its weight of 1; all later ones have weight 0 beside it.
        assert out.loss.isinf()
        for each in torch.autograd.grad(out.loss, learned(student)):
            assert bool(each.isfinite().all())
        for finite in ({"min_log_prob": -9.0}, {"divergence": "jsd"}, {"divergence": "forward_kl"}):
            wanted = through_logits(student, (log_probs, ids), PACKED_IDS, weighting=None, **finite)
            ours = run(student, (log_probs, ids), PACKED_IDS, **(options | finite | {"weighting": None}))
            assert bool(ours.token_kl.isfinite().all())
            assert_same_gradients(student, ours.loss, wanted.loss)

    @pytest.mark.parametrize("tail", TAILS)
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_a_head_that_excludes_listed_ids(self, tail, divergence):
        student, lists = make_batch(PACKED_IDS.shape, has_bias=True)
        bias = student["student_bias"].detach().clone()
        bias[lists[1][8, 0]] = -torch.inf
        student["student_bias"] = bias.requires_grad_()
        options = {"tail": tail, "divergence": divergence, "chunk_size": 4}
        out = run(student, lists, PACKED_IDS, **options)
        assert not bool(out.token_kl.isnan().any())
        assert bool(out.token_kl.isinf().any()) == (divergence == "forward_kl")
        for each in torch.autograd.grad(out.loss, learned(student)):
            assert not bool(each.isnan().any())

    @pytest.mark.parametrize("single_sweep", [True, False])
    @pytest.mark.parametrize("num_rows", [0, 3])
    def test_nothing_in_a_step(self, num_rows, single_sweep):
        hidden = torch.full((num_rows, 4), torch.nan, requires_grad=True)
        weight = torch.ones(5, 4, requires_grad=True)
        log_probs, ids = torch.full((num_rows, 2), torch.nan), torch.full((num_rows, 2), 99)
        out = linear_topk_step_kl(
            hidden,
            weight,
            log_probs,
            ids,
            torch.full((num_rows,), -1),
            num_steps=2,
            weighting=SodWeighting(),
            single_sweep=single_sweep,
        )
        assert out.loss == 0
        assert out.step_weights.tolist() == [0.0, 0.0]
        gradients = torch.autograd.grad(out.loss, (hidden, weight))
        assert not any(bool(each.any()) for each in gradients)

    def test_one_column(self):
        hidden = torch.randn(3, 4, requires_grad=True)
        lists = (torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int64))
        for tail in TAILS:
            out = linear_topk_step_kl(hidden, torch.randn(1, 4), *lists, tail=tail)
            assert out.token_kl.tolist() == [0.0, 0.0, 0.0]
            out.loss.backward()
            assert not bool(hidden.grad.any())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_error_of_low_precision_inputs(backend, dtype, limit):
    ids = torch.arange(96) // 20
    heads = make_heads(ids.shape, sizes=(32, 48), num_columns=(500, 500), dtype=dtype)
    lists = make_teacher_lists(full_logits(heads, "teacher", torch.float64).detach(), 40)
    lists = (lists[0].float(), lists[1])
    student = {name: each for name, each in heads.items() if name.startswith("student")}
    wanted = through_logits(student, lists, ids, weighting=SodWeighting())
    exact = torch.autograd.grad(wanted.loss, learned(student))
    out = linear_topk_step_kl(
        *learned(student), *lists, ids, weighting=SodWeighting(), chunk_size=13, backend=backend
    )
    assert out.loss.dtype == torch.float32
    assert abs(float(out.loss.detach() / wanted.loss.detach()) - 1) <= 10 * limit
    torch.testing.assert_close(out.step_weights.double(), wanted.step_weights, rtol=1e-4, atol=1e-6)
    for one, other in zip(torch.autograd.grad(out.loss, learned(student)), exact, strict=True):
        assert one.dtype == dtype
        assert norm_error(one, other.to(dtype)) <= limit
