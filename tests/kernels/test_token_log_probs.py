"""`token_log_probs` against plain torch, in every layout, and what it refuses."""

import pytest
import torch

from sod_kernels import backends, step_kl, token_log_probs

BACKENDS = [name for name, status in backends().items() if status.available["cpu"]]


def make_logits(shape=(2, 5, 13), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def plain(logits, ids, temperature=1.0):
    log_p = (logits / temperature).log_softmax(-1)
    picked = torch.where(ids >= 0, log_p.gather(-1, ids.clamp(min=0)), 0.0)
    return picked, -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("num_ids", [1, 4])
def test_values_and_gradient(num_ids, temperature):
    logits = make_logits()
    ids = torch.randint(-1, 13, (2, 5, num_ids), generator=torch.Generator().manual_seed(1))
    out = token_log_probs(logits, ids, temperature=temperature)
    wanted = plain(logits, ids, temperature)
    for ours, exact in zip(out, wanted, strict=True):
        torch.testing.assert_close(ours, exact)
    ours, exact = (
        torch.autograd.grad((a * a).sum() - 0.3 * b.sum(), logits)[0] for a, b in (tuple(out), wanted)
    )
    torch.testing.assert_close(ours, exact)


def test_gradcheck():
    ids = torch.tensor([[3, 3, -1], [0, 12, 5]])
    assert torch.autograd.gradcheck(lambda z: token_log_probs(z, ids), (make_logits((2, 13)),))


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_padded_and_single_ids_agree(backend):
    logits = make_logits(dtype=torch.float32)
    ids = torch.randint(13, (2, 5), generator=torch.Generator().manual_seed(1))
    padded = token_log_probs(logits, ids, backend=backend)
    assert padded.log_probs.shape == ids.shape
    packed = token_log_probs(logits.flatten(0, 1), ids.flatten()[:, None], backend=backend)
    assert torch.equal(packed.log_probs.view(2, 5), padded.log_probs)
    assert torch.equal(packed.entropy.view(2, 5), padded.entropy)


def test_equals_what_step_kl_says_of_the_student():
    logits = make_logits(dtype=torch.float32)
    ids = torch.randint(13, (2, 5), generator=torch.Generator().manual_seed(1))
    alone = token_log_probs(logits, ids, temperature=0.8)
    beside = step_kl(logits, -logits, sampled_ids=ids, temperature=0.8)
    torch.testing.assert_close(alone.log_probs, beside.student_log_probs)
    torch.testing.assert_close(alone.entropy, beside.student_entropy)


def test_padding_columns_are_not_read():
    logits = make_logits(dtype=torch.float32)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    padded = torch.nn.functional.pad(logits, (0, 3), value=torch.nan)
    out = token_log_probs(padded, ids, vocab_size=13)
    assert torch.equal(out.log_probs, token_log_probs(logits, ids).log_probs)
    (grad,) = torch.autograd.grad(out.log_probs.sum(), padded)
    assert bool((grad[..., 13:] == 0).all())


def test_no_tokens():
    out = token_log_probs(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    assert out.log_probs.shape == out.entropy.shape == (0,)


@pytest.mark.no_cover
def test_compiled_equals_eager():
    torch._dynamo.reset()
    logits, ids = make_logits(), torch.ones(2, 5, dtype=torch.int64)
    compiled = torch.compile(
        lambda z: token_log_probs(z, ids).log_probs.sum(), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(logits), token_log_probs(logits, ids).log_probs.sum())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student_logits": [1.0]}, TypeError, "student_logits is list; wanted a tensor"),
        ({"student_logits": torch.zeros(5)}, ValueError, r"student_logits has shape \(5,\); wanted"),
        ({"ids": torch.zeros(2, 5)}, TypeError, "ids has dtype torch.float32; wanted one of"),
        ({"ids": torch.zeros(5, 2).long()}, ValueError, r"ids has shape \(5, 2\); wanted \(2, 5\), or"),
        (
            {"ids": torch.full((2, 5), 13)},
            ValueError,
            r"ids holds 13 at \[0, 0, 0\]; wanted ids from -1 to 12",
        ),
        ({"temperature": 0.0}, ValueError, "temperature=0.0; wanted a finite number above 0"),
        ({"vocab_size": 14}, ValueError, "vocab_size=14; wanted at most 13"),
        ({"backend": "cuda"}, ValueError, "backend='cuda'"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"student_logits": torch.zeros(2, 5, 13), "ids": torch.zeros(2, 5).long(), **change}
    with pytest.raises(error, match=f"token_log_probs: {message}"):
        token_log_probs(**arguments)


def test_gradient_of_the_gradient_is_refused_under_its_own_name():
    logits = torch.randn(2, 3, requires_grad=True)
    log_probs = token_log_probs(logits, torch.tensor([0, 2])).log_probs
    (grad,) = torch.autograd.grad(log_probs.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^token_log_probs: the gradient of the gradient was asked for"):
        grad.sum().backward()
