"""`linear_step_kl` is `step_kl` on the logits that it never makes: values and gradients, in float64."""

import pytest
import torch
from linear_inputs import (
    NUM_COLUMNS,
    PACKED_IDS,
    PACKED_TRAJECTORY,
    PADDED_IDS,
    learned,
    make_heads,
    norm_error,
    through_logits,
)

from sod_kernels import PolicyGradient, SodWeighting, TurnWeighting, linear_step_kl

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}
SAMPLED = torch.randint(NUM_COLUMNS, PACKED_IDS.shape, generator=torch.Generator().manual_seed(5))
SAMPLED[PACKED_IDS < 0] = -100


def causal(statistics):
    """One over the tokens so far in the trajectory: reads earlier steps and the step itself."""
    tokens = statistics.tokens.double()
    same = statistics.trajectory[:, None] == statistics.trajectory
    so_far = (torch.where(same, tokens, 0.0)).tril().sum(1)
    return torch.where(statistics.tokens > 0, 1.0 / so_far.clamp(min=1.0), 0.0)


causal.is_causal = True


def anything(statistics):
    return statistics.divergence / statistics.divergence.sum()


WEIGHTINGS = {
    "none": None,
    "tensor": torch.tensor([0.5, 2.0, 0.0, 1.3, 9.0, 0.7], dtype=torch.float64),
    "sod": SodWeighting(delta=0.3),
    "causal": causal,
    "turn": TurnWeighting(min_turns=2),
    "function": anything,
}


def assert_same_loss_and_gradients(heads, ids, wanted, options, *, chunk_size, single_sweep=True):
    out = linear_step_kl(
        **heads,
        step_ids=ids,
        chunk_size=chunk_size,
        single_sweep=single_sweep,
        backend="reference",
        **options,
    )
    torch.testing.assert_close(out.loss, wanted.loss, **TOLERANCE)
    parts = learned(heads)
    ours = torch.autograd.grad(out.loss, parts)
    exact = torch.autograd.grad(wanted.loss, parts, retain_graph=True)
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)
    return out


def assert_same_outputs(out, wanted):
    names = ("token_kl", "student_entropy", "step_divergence", "step_weights", "step_tokens")
    optional = ("token_reference_kl", "student_log_probs", "teacher_log_probs")
    for name in (*names, *(name for name in optional if getattr(wanted, name) is not None)):
        torch.testing.assert_close(getattr(out, name), getattr(wanted, name).detach(), **TOLERANCE)
    assert all(getattr(out, name) is None for name in optional if getattr(wanted, name) is None)


class TestSingleSweep:
    @pytest.mark.parametrize("weighting", WEIGHTINGS)
    @pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
    def test_every_chunk_size_and_weighting(self, divergence, weighting):
        heads = make_heads(PACKED_IDS.shape)
        options = {
            "weighting": WEIGHTINGS[weighting],
            "divergence": divergence,
            "beta": 0.3 if divergence == "jsd" else None,
            "step_trajectory": PACKED_TRAJECTORY,
        }
        wanted = through_logits(heads, PACKED_IDS, **options)
        for chunk_size in (*range(1, 8), 12, 20, PACKED_IDS.numel(), None):
            out = assert_same_loss_and_gradients(heads, PACKED_IDS, wanted, options, chunk_size=chunk_size)
            assert_same_outputs(out, wanted)

    @pytest.mark.parametrize(
        ("reduction", "denominator"),
        [
            ("sum", None),
            ("token_mean", None),
            ("token_mean", torch.tensor(3)),
            ("step_mean", None),
            ("step_mean", 3.5),
            ("sequence_mean", None),
            ("sequence_mean", 3.5),
        ],
    )
    def test_reductions_and_token_weights(self, reduction, denominator):
        heads = make_heads(PACKED_IDS.shape)
        token_weights = torch.rand(PACKED_IDS.shape, generator=torch.Generator().manual_seed(1)).double()
        token_weights[4] = 0.0
        options = {
            "weighting": SodWeighting(),
            "reduction": reduction,
            "denominator": denominator,
            "token_weights": token_weights,
            "step_trajectory": PACKED_TRAJECTORY,
        }
        wanted = through_logits(heads, PACKED_IDS, **options)
        for chunk_size in (3, 9):
            assert_same_loss_and_gradients(heads, PACKED_IDS, wanted, options, chunk_size=chunk_size)

    def test_padded_rows_are_trajectories(self):
        heads = make_heads(PADDED_IDS.shape)
        options = {"weighting": SodWeighting(), "reduction": "sequence_mean"}
        wanted = through_logits(heads, PADDED_IDS, **options)
        for chunk_size in (2, 5, None):
            out = assert_same_loss_and_gradients(heads, PADDED_IDS, wanted, options, chunk_size=chunk_size)
            assert_same_outputs(out, wanted)
            assert out.token_kl.shape == PADDED_IDS.shape

    def test_mask_and_no_ids(self):
        heads = make_heads(PADDED_IDS.shape)
        for options in ({"response_mask": (PADDED_IDS >= 0).long()}, {}):
            wanted = through_logits(heads, None, weighting=SodWeighting(), **options)
            assert_same_loss_and_gradients(
                heads, None, wanted, {"weighting": SodWeighting(), **options}, chunk_size=4
            )

    def test_sod_divergence_of_sampled_tokens(self):
        heads = make_heads(PACKED_IDS.shape)
        options = {
            "weighting": SodWeighting(),
            "step_divergence": "abs_log_ratio",
            "sampled_ids": SAMPLED,
            "temperature": 1.7,
            "min_log_prob": -4.0,
        }
        wanted = through_logits(heads, PACKED_IDS, **options)
        for chunk_size in (1, 4, 50):
            out = assert_same_loss_and_gradients(heads, PACKED_IDS, wanted, options, chunk_size=chunk_size)
            assert_same_outputs(out, wanted)

    @pytest.mark.parametrize("weighting", ["none", "sod", "turn"])
    def test_second_target(self, weighting):
        heads = make_heads(PACKED_IDS.shape, has_reference=True)
        options = {"weighting": WEIGHTINGS[weighting], "step_trajectory": PACKED_TRAJECTORY}
        wanted = through_logits(heads, PACKED_IDS, **options)
        for chunk_size in (1, 3, 8, None):
            out = assert_same_loss_and_gradients(heads, PACKED_IDS, wanted, options, chunk_size=chunk_size)
            assert_same_outputs(out, wanted)

    @pytest.mark.parametrize("has_reference", [False, True])
    @pytest.mark.parametrize("single_sweep", [True, False])
    def test_bias_scale_softcap_and_padding_columns(self, single_sweep, has_reference):
        heads = make_heads(
            PACKED_IDS.shape, has_bias=True, has_reference=has_reference, num_columns=(13, 12, 15)
        )
        models = ("student", "teacher", "reference")[: 3 if has_reference else 2]
        scales = dict(zip(models, (0.7, 1.3, 0.9), strict=False))
        softcaps = dict(zip(models, (2.0, 5.0, 3.0), strict=False))
        shared = {"weighting": SodWeighting(), "step_trajectory": PACKED_TRAJECTORY, "vocab_size": 11}
        wanted = through_logits(heads, PACKED_IDS, scales=scales, softcaps=softcaps, **shared)
        options = shared | {f"{model}_logit_scale": scales[model] for model in models}
        options |= {f"{model}_softcap": softcaps[model] for model in models}
        for chunk_size in (2, 7, None):
            assert_same_loss_and_gradients(
                heads, PACKED_IDS, wanted, options, chunk_size=chunk_size, single_sweep=single_sweep
            )
        out = linear_step_kl(**heads, step_ids=PACKED_IDS, backend="reference", **options)
        _, weight, bias = torch.autograd.grad(out.loss, learned(heads))
        assert not weight[11:].any()
        assert not bias[11:].any()

    def test_softcap_of_the_student_alone(self):
        heads = make_heads(PACKED_IDS.shape)
        wanted = through_logits(heads, PACKED_IDS, softcaps={"student": 1.5}, weighting=SodWeighting())
        options = {"student_softcap": 1.5, "weighting": SodWeighting()}
        assert_same_loss_and_gradients(heads, PACKED_IDS, wanted, options, chunk_size=5)


class TestForms:
    def test_views_and_integer_ids_are_taken_as_they_are(self):
        heads = make_heads((3, 9))
        ids = PADDED_IDS.to(torch.int16)
        views = {name: each[:, 1:-1] if name.endswith("hidden") else each for name, each in heads.items()}
        views["student_weight"] = heads["student_weight"].detach().T.clone().T.requires_grad_()
        wanted = through_logits(views, ids, weighting=SodWeighting())
        out = linear_step_kl(
            **views, step_ids=ids, weighting=SodWeighting(), chunk_size=4, backend="reference"
        )
        parts = [heads["student_hidden"], views["student_weight"]]
        for ours, exact in zip(
            *(torch.autograd.grad(each.loss, parts) for each in (out, wanted)), strict=True
        ):
            torch.testing.assert_close(ours, exact, **TOLERANCE)

    @pytest.mark.parametrize(
        ("student", "teacher"), [(torch.float32, torch.float64), (torch.float64, torch.bfloat16)]
    )
    def test_models_of_different_dtypes_meet_in_the_wider_one(self, student, teacher):
        heads = {
            name: each.detach().to(teacher if name.startswith("teacher") else student)
            for name, each in make_heads(PACKED_IDS.shape).items()
        }
        for name in ("student_hidden", "student_weight"):
            heads[name].requires_grad_()
        wanted = through_logits(heads, PACKED_IDS)
        out = linear_step_kl(**heads, step_ids=PACKED_IDS, chunk_size=5, backend="reference")
        assert out.loss.dtype == torch.float64
        torch.testing.assert_close(out.loss, wanted.loss, **TOLERANCE)
        for ours, exact in zip(
            *(torch.autograd.grad(each.loss, learned(heads)) for each in (out, wanted)), strict=True
        ):
            assert ours.dtype == student
            torch.testing.assert_close(ours, exact)


def policy_and_plain_loss(heads, weighting, *, kl_coefficient, entropy_coefficient, dual_clip):
    """The whole objective: ours as options, and plain torch on `step_kl`'s outputs."""
    generator = torch.Generator().manual_seed(2)
    active = PACKED_IDS >= 0
    wanted = through_logits(
        heads, PACKED_IDS, sampled_ids=SAMPLED, weighting=weighting, step_trajectory=PACKED_TRAJECTORY
    )
    noise = torch.randn(PACKED_IDS.shape, generator=generator, dtype=torch.float64)
    old = torch.where(active, wanted.student_log_probs.detach() + noise, torch.nan)
    advantages = 2.0 * torch.randn(PACKED_IDS.shape, generator=generator, dtype=torch.float64)
    advantages = torch.where(active, advantages, torch.nan)
    ratio = (wanted.student_log_probs - old).exp()
    term = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    if dual_clip is not None:
        term = torch.where(advantages < 0, torch.minimum(term, -dual_clip * advantages), term)
    count = active.sum()
    loss = kl_coefficient * wanted.loss + term[active].sum() / count
    loss = loss - entropy_coefficient * wanted.student_entropy[active].sum() / count
    policy = PolicyGradient(advantages=advantages, old_log_probs=old, dual_clip=dual_clip)
    options = {
        "policy_gradient": policy,
        "kl_coefficient": kl_coefficient,
        "entropy_coefficient": entropy_coefficient,
        "sampled_ids": SAMPLED,
        "weighting": weighting,
        "step_trajectory": PACKED_TRAJECTORY,
    }
    return options, loss


class TestWholeObjective:
    @pytest.mark.parametrize("single_sweep", [True, False])
    @pytest.mark.parametrize("has_reference", [True, False])
    @pytest.mark.parametrize("weighting", ["none", "sod", "turn"])
    @pytest.mark.parametrize(
        ("kl_coefficient", "entropy_coefficient", "dual_clip"), [(0.7, 0.05, 1.5), (0.0, 0.0, None)]
    )
    def test_equals_plain_torch(
        self, weighting, has_reference, single_sweep, kl_coefficient, entropy_coefficient, dual_clip
    ):
        heads = make_heads(PACKED_IDS.shape, has_reference=has_reference)
        options, loss = policy_and_plain_loss(
            heads,
            WEIGHTINGS[weighting],
            kl_coefficient=kl_coefficient,
            entropy_coefficient=entropy_coefficient,
            dual_clip=dual_clip,
        )
        exact = torch.autograd.grad(loss, learned(heads))
        for chunk_size in (1, 6, None):
            out = linear_step_kl(
                **heads,
                step_ids=PACKED_IDS,
                single_sweep=single_sweep,
                chunk_size=chunk_size,
                backend="reference",
                **options,
            )
            torch.testing.assert_close(out.loss, loss, **TOLERANCE)
            for ours, one in zip(torch.autograd.grad(out.loss, learned(heads)), exact, strict=True):
                torch.testing.assert_close(ours, one, **TOLERANCE)

    def test_entropy_alone_in_an_open_step(self):
        heads = make_heads(PACKED_IDS.shape)
        wanted = through_logits(heads, PACKED_IDS, weighting=SodWeighting())
        loss = wanted.loss - 0.3 * wanted.student_entropy.sum() / (PACKED_IDS >= 0).sum()
        out = linear_step_kl(
            **heads,
            step_ids=PACKED_IDS,
            weighting=SodWeighting(),
            entropy_coefficient=0.3,
            chunk_size=4,
            backend="reference",
        )
        torch.testing.assert_close(out.loss, loss, **TOLERANCE)
        gradients = (torch.autograd.grad(each, learned(heads)) for each in (out.loss, loss))
        for ours, exact in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, exact, **TOLERANCE)


class TestTwoSweeps:
    @pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
    @pytest.mark.parametrize("has_reference", [False, True])
    def test_any_upstream_gradient(self, divergence, has_reference):
        heads = make_heads(PADDED_IDS.shape, has_reference=has_reference)
        sampled = torch.randint(NUM_COLUMNS, PADDED_IDS.shape, generator=torch.Generator().manual_seed(3))
        options = {"divergence": divergence, "sampled_ids": sampled, "weighting": SodWeighting()}
        upstream = torch.randn((4, *PADDED_IDS.shape), generator=torch.Generator().manual_seed(4)).double()

        def objective(out):
            total = 3.0 * out.loss + (upstream[0] * out.token_kl).sum()
            total = total + (upstream[1] * out.student_log_probs).sum()
            total = total + (upstream[2] * out.student_entropy).sum()
            if has_reference:
                total = total + (upstream[3] * out.token_reference_kl).sum()
            return total

        wanted = through_logits(heads, PADDED_IDS, **options)
        exact = torch.autograd.grad(objective(wanted), learned(heads))
        for chunk_size in (1, 4, None):
            out = linear_step_kl(
                **heads,
                step_ids=PADDED_IDS,
                single_sweep=False,
                chunk_size=chunk_size,
                backend="reference",
                **options,
            )
            torch.testing.assert_close(out.loss, wanted.loss, **TOLERANCE)
            for ours, one in zip(torch.autograd.grad(objective(out), learned(heads)), exact, strict=True):
                torch.testing.assert_close(ours, one, **TOLERANCE)

    def test_loss_per_token(self):
        heads = make_heads(PACKED_IDS.shape)
        options = {"reduction": "none", "weighting": SodWeighting()}
        wanted = through_logits(heads, PACKED_IDS, **options)
        out = linear_step_kl(
            **heads, step_ids=PACKED_IDS, single_sweep=False, chunk_size=7, backend="reference", **options
        )
        torch.testing.assert_close(out.loss, wanted.loss, **TOLERANCE)
        each = torch.linspace(-1.0, 1.0, PACKED_IDS.numel(), dtype=torch.float64)
        gradients = (torch.autograd.grad((each * one.loss).sum(), learned(heads)) for one in (out, wanted))
        for ours, exact in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, exact, **TOLERANCE)

    @pytest.mark.parametrize("single_sweep", [True, False])
    def test_gradcheck(self, single_sweep):
        ids = torch.tensor([0, 0, 0, -1, 1, 1])
        heads = make_heads(ids.shape, has_bias=True, num_columns=(5, 5))
        teacher = {name: each for name, each in heads.items() if name.startswith("teacher")}

        def loss(hidden, weight, bias):
            return linear_step_kl(
                hidden,
                weight,
                **teacher,
                student_bias=bias,
                step_ids=ids,
                student_softcap=3.0,
                # Weights are constants of the gradient: given, so that differences do not move them.
                weighting=torch.tensor([0.4, 1.1]),
                entropy_coefficient=0.2,
                chunk_size=2,
                single_sweep=single_sweep,
                backend="reference",
            ).loss

        assert torch.autograd.gradcheck(loss, learned(heads))


class TestWhatIsLearned:
    @pytest.mark.parametrize("single_sweep", [True, False])
    @pytest.mark.parametrize("frozen", ["student_hidden", "student_weight", "student_bias"])
    def test_frozen_parts_get_none(self, frozen, single_sweep):
        heads = make_heads(PACKED_IDS.shape, has_bias=True)
        wanted = through_logits(heads, PACKED_IDS, weighting=SodWeighting())
        wanted.loss.backward()
        exact = {name: heads[name].grad for name in heads}
        for name in heads:
            heads[name] = (
                heads[name].detach().clone().requires_grad_(name.startswith("student") and name != frozen)
            )
        out = linear_step_kl(
            **heads,
            step_ids=PACKED_IDS,
            weighting=SodWeighting(),
            chunk_size=5,
            single_sweep=single_sweep,
            backend="reference",
        )
        out.loss.backward()
        for name in heads:
            if heads[name].requires_grad:
                torch.testing.assert_close(heads[name].grad, exact[name], **TOLERANCE)
            else:
                assert heads[name].grad is None

    def test_nobody_but_the_student_learns(self):
        heads = make_heads(PACKED_IDS.shape, has_bias=True, has_reference=True)
        for each in heads.values():
            each.requires_grad_()
        for single_sweep in (True, False):
            linear_step_kl(**heads, step_ids=PACKED_IDS, single_sweep=single_sweep).loss.backward()
        assert {name for name in heads if heads[name].grad is not None} == {
            "student_hidden",
            "student_weight",
            "student_bias",
        }

    def test_single_sweep_detaches_all_but_the_loss(self):
        heads = make_heads(PACKED_IDS.shape)
        for weighting in (SodWeighting(), TurnWeighting()):
            out = linear_step_kl(**heads, step_ids=PACKED_IDS, sampled_ids=SAMPLED, weighting=weighting)
            assert out.loss.requires_grad
            assert not out.token_kl.requires_grad
            assert not out.student_entropy.requires_grad
            assert not out.student_log_probs.requires_grad

    def test_no_gradient_no_backward_sweep(self, monkeypatch):
        from sod_kernels.reference import backend

        heads = make_heads(PACKED_IDS.shape)
        wanted = linear_step_kl(**heads, step_ids=PACKED_IDS, weighting=SodWeighting(), backend="reference")

        def fail(*arguments, **options):
            raise AssertionError("the backward sweep ran")

        monkeypatch.setattr(backend, "backward", fail)
        with torch.no_grad():
            out = linear_step_kl(**heads, step_ids=PACKED_IDS, weighting=SodWeighting(), backend="reference")
        assert torch.equal(out.loss, wanted.loss)

    def test_gradient_goes_on_into_the_model_and_scales(self):
        heads = make_heads(PACKED_IDS.shape)
        states = torch.randn(PACKED_IDS.shape[0], 5, dtype=torch.float64)
        layer = torch.nn.Linear(5, 4, dtype=torch.float64)
        heads["student_hidden"] = layer(states)
        wanted = torch.autograd.grad(
            5.0 * through_logits(heads, PACKED_IDS).loss, layer.weight, retain_graph=True
        )
        out = linear_step_kl(**heads, step_ids=PACKED_IDS, backend="reference")
        for keeps_graph in (True, True, False):
            (ours,) = torch.autograd.grad(5.0 * out.loss, layer.weight, retain_graph=keeps_graph)
            torch.testing.assert_close(ours, wanted[0], **TOLERANCE)


class TestExcludedRows:
    def test_what_they_hold_does_not_matter(self):
        heads = make_heads(PACKED_IDS.shape)
        clean = linear_step_kl(**heads, step_ids=PACKED_IDS, weighting=SodWeighting(), chunk_size=6)
        exact = torch.autograd.grad(clean.loss, learned(heads))
        spoiled = {name: each.detach().clone() for name, each in heads.items()}
        for name in ("student_hidden", "teacher_hidden"):
            spoiled[name][PACKED_IDS < 0] = torch.nan
        for name in ("student_hidden", "student_weight"):
            spoiled[name].requires_grad_()
        out = linear_step_kl(**spoiled, step_ids=PACKED_IDS, weighting=SodWeighting(), chunk_size=6)
        assert torch.equal(out.loss, clean.loss)
        ours = torch.autograd.grad(out.loss, learned(spoiled))
        assert all(torch.equal(one, other) for one, other in zip(ours, exact, strict=True))
        assert not ours[0][PACKED_IDS < 0].any()
        assert not out.token_kl[PACKED_IDS < 0].any()

    @pytest.mark.parametrize("single_sweep", [True, False])
    @pytest.mark.parametrize("num_rows", [0, 3])
    def test_nothing_in_a_step(self, num_rows, single_sweep):
        heads = make_heads((num_rows,), has_reference=True)
        ids = torch.full((num_rows,), -1)
        out = linear_step_kl(
            **heads, step_ids=ids, num_steps=2, weighting=SodWeighting(), single_sweep=single_sweep
        )
        assert out.loss == 0
        assert out.step_tokens.tolist() == [0, 0]
        assert out.step_weights.tolist() == [0.0, 0.0]
        assert out.token_reference_kl.shape == (num_rows,)
        gradients = torch.autograd.grad(out.loss, learned(heads))
        assert [tuple(each.shape) for each in gradients] == [(num_rows, 4), (NUM_COLUMNS, 4)]
        assert not any(each.any() for each in gradients)

    def test_infinite_divergence_has_weight_zero_and_no_gradient(self):
        ids = torch.tensor([0, 0, 1, 1, 1, 1, 2])
        heads = make_heads(ids.shape, has_bias=True)
        heads["teacher_bias"] = heads["teacher_bias"].clone()
        heads["teacher_bias"][3] = -torch.inf
        for single_sweep in (True, False):
            out = linear_step_kl(
                **heads,
                step_ids=ids,
                weighting=SodWeighting(),
                divergence="reverse_kl",
                chunk_size=2,
                single_sweep=single_sweep,
                backend="reference",
            )
            assert out.token_kl.isinf().all()
            assert not any(each.isnan().any() for each in torch.autograd.grad(out.loss, learned(heads)))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
@pytest.mark.parametrize("kind", ["random", "near"])
def test_error_of_low_precision_inputs(dtype, limit, kind):
    ids = torch.arange(96) // 20
    heads = make_heads(ids.shape, sizes=(32, 48), num_columns=(500, 500), dtype=dtype)
    if kind == "near":
        noise = torch.randn(heads["student_weight"].shape, generator=torch.Generator().manual_seed(1))
        heads["teacher_hidden"] = heads["student_hidden"].detach()
        heads["teacher_weight"] = (heads["student_weight"].detach() + 0.02 * noise).to(dtype)
    wanted = through_logits(heads, ids, weighting=SodWeighting())
    exact = torch.autograd.grad(wanted.loss, learned(heads))
    out = linear_step_kl(**heads, step_ids=ids, weighting=SodWeighting(), chunk_size=13, backend="reference")
    ours = torch.autograd.grad(out.loss, learned(heads))
    assert abs(float(out.loss.detach() / wanted.loss.detach()) - 1) <= 10 * limit
    torch.testing.assert_close(
        out.step_divergence.double(), wanted.step_divergence.double(), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(out.step_weights.double(), wanted.step_weights.double(), rtol=1e-4, atol=1e-6)
    plain = through_logits(heads, ids, weighting=SodWeighting(), dtype=torch.float32)
    yardstick = torch.autograd.grad(plain.loss, learned(heads))
    for one, other, usual in zip(ours, exact, yardstick, strict=True):
        assert one.dtype == dtype
        # Autograd wants the dtype of the inputs; what that last rounding costs is nobody's error. Of a pair
        # near, float32 logits are not enough for 1e-5, whoever multiplies.
        rounded = other.to(dtype)
        assert norm_error(one, rounded) <= max(limit, 2.0 * norm_error(usual, rounded) * (kind == "near"))
