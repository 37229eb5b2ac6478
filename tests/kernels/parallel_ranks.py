"""What each rank of the tests of `process_group=` runs; imported by processes of their own."""

import torch
from torch import distributed as dist

from sod_kernels import SodWeighting, linear_step_kl, linear_topk_step_kl, step_kl, topk_step_kl

MASK = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 1, 0, 1]])
COLUMNS = 12
GRADIENT = "gradient"
OUTPUTS = (
    "loss",
    "token_kl",
    "token_reference_kl",
    "student_entropy",
    "student_log_probs",
    "teacher_log_probs",
    "step_divergence",
    "step_weights",
    "step_tokens",
)
SCENARIOS = {
    f"{name}-{divergence}-{str(dtype).removeprefix('torch.')}": (name, divergence, dtype)
    for name in ("plain", "padded", "mostly_padding", "excluded_shard", "infinite", "packed")
    for divergence in ("reverse_kl", "forward_kl", "jsd", "floored reverse_kl", "floored forward_kl")
    for dtype in (torch.float64, torch.float32)
}
TOPK_SCENARIOS = {
    f"topk-{name}-{tail}-{divergence}-{str(dtype).removeprefix('torch.')}": (name, tail, divergence, dtype)
    for name, tail, divergence in (
        ("plain", "bucket", "reverse_kl"),
        ("plain", "bucket", "forward_kl"),
        ("plain", "bucket", "jsd"),
        ("plain", "renormalise", "reverse_kl"),
        ("plain", "drop", "forward_kl"),
        ("padded", "bucket", "reverse_kl"),
        ("mostly_padding", "bucket", "reverse_kl"),
        ("excluded_shard", "bucket", "forward_kl"),
        ("packed", "renormalise", "jsd"),
    )
    for dtype in (torch.float64, torch.float32)
}
LINEAR_SCENARIOS = {
    f"linear-{kind}-{mode}-{vocab_size}": (kind, mode == "single", vocab_size)
    for kind, mode, vocab_size in (
        ("reverse_kl", "single", None),
        ("reverse_kl", "double", None),
        ("jsd", "single", 10),
        ("reverse_kl", "single", 2),
        ("lists", "single", None),
        ("lists", "double", 10),
        ("lists", "single", 2),
    )
}
LINEAR_STEPS = torch.tensor([0, 0, 0, 0, 0, -1, 1, 1, 2, 2, 2, 2, 2, 3])
TOPK_OUTPUTS = tuple(name for name in OUTPUTS if name != "token_reference_kl")


def make_batch(name, dtype):
    """Whole logits and the other arguments; 12 columns, which 2, 3 and 4 ranks share evenly."""
    generator = torch.Generator().manual_seed(4)
    student, teacher, reference = (
        2.0 * torch.randn(3, 2, 7, COLUMNS, generator=generator, dtype=torch.float64)
    ).to(dtype)
    options = {"response_mask": MASK, "weighting": SodWeighting(), "reduction": "step_mean"}
    # Tokens of every shard are sampled.
    options["sampled_ids"] = torch.arange(14).view(2, 7) % COLUMNS
    if name in ("padded", "mostly_padding"):
        options["vocab_size"] = 10 if name == "padded" else 2
        options["sampled_ids"] = options["sampled_ids"] % options["vocab_size"]
        for logits in (student, teacher, reference):
            logits[..., options["vocab_size"] :] = torch.nan
    if name == "excluded_shard":
        for logits in (student, teacher, reference):
            logits[..., 6:] = -torch.inf
        options["sampled_ids"] = options["sampled_ids"] % 6
        options["temperature"] = 1.7
    if name == "infinite":
        # Row 4 of each: one side excludes a whole shard where the other has mass.
        teacher[:, 4, 6:] = student[1, 1, :6] = -torch.inf
        options["sampled_ids"] = torch.full((2, 7), 9)
        options["step_divergence"] = "kl"
    if name == "packed":
        options = {"step_ids": torch.tensor([0, 0, 1, -1, 1, 2, 3]), "sampled_ids": torch.arange(7)}
        options["weighting"] = torch.tensor([0.4, 1.0, 0.0, 2.0], dtype=torch.float64)
        student, teacher, reference = student[0], teacher[0], reference[0]
    return student, teacher, reference, options


def run(name, divergence, dtype, cut, group):
    """Outputs and the gradient of an objective that uses all of them, of the columns that `cut` keeps."""
    student, teacher, reference, options = make_batch(name, dtype)
    student = cut(student).clone().requires_grad_()
    out = step_kl(
        student,
        cut(teacher),
        reference_logits=cut(reference),
        divergence=divergence.removeprefix("floored "),
        min_log_prob=-2.5 if divergence.startswith("floored") else None,
        process_group=group,
        backend="reference",
        **options,
    )
    weights = torch.linspace(0.5, 1.5, 7, dtype=out.token_kl.dtype)
    finite = torch.where(out.token_kl.isfinite(), out.token_kl, 0.0)
    objective = torch.where(out.loss.isfinite(), out.loss, 0.0) + (weights * finite).sum()
    objective = objective + (weights * out.student_log_probs).square().sum() * 0.1
    objective = objective - 0.3 * (weights * out.student_entropy).sum()
    reference_kl = torch.where(out.token_reference_kl.isfinite(), out.token_reference_kl, 0.0)
    (gradient,) = torch.autograd.grad(objective + reference_kl.sum(), student)
    return {GRADIENT: gradient, **{field: getattr(out, field).detach() for field in OUTPUTS}}


def run_topk(name, tail, divergence, dtype, cut, group):
    """The same against lists, which every rank has whole."""
    student, teacher, _, options = make_batch(name, dtype)
    valid = teacher[..., : options.get("vocab_size")]
    log_probs, ids = valid.log_softmax(-1).topk(min(5, valid.shape[-1]), dim=-1)
    # One id absent, one twice, the sampled token behind the list.
    ids[..., 0, 0] = -1
    sampled = options["sampled_ids"][..., None]
    lists = (
        torch.cat((log_probs, valid.log_softmax(-1).gather(-1, sampled)), -1),
        torch.cat((ids, sampled), -1),
    )
    student = cut(student).clone().requires_grad_()
    if tail == "drop":
        options["weighting"] = None
    out = topk_step_kl(
        student, *lists, tail=tail, divergence=divergence, process_group=group, backend="reference", **options
    )
    weights = torch.linspace(0.5, 1.5, 7, dtype=out.token_kl.dtype)
    objective = out.loss + (weights * torch.where(out.token_kl.isfinite(), out.token_kl, 0.0)).sum()
    objective = objective + (weights * out.student_log_probs).square().sum() * 0.1
    objective = objective - 0.3 * (weights * out.student_entropy).sum()
    (gradient,) = torch.autograd.grad(objective, student)
    return {GRADIENT: gradient, **{field: getattr(out, field).detach() for field in TOPK_OUTPUTS}}


def run_linear(kind, single_sweep, vocab_size, cut, group):
    """The same from hidden states, whole on every rank, and heads, of which `cut` keeps rows."""
    generator = torch.Generator().manual_seed(6)
    rows = LINEAR_STEPS.numel()
    hidden, teacher_hidden = torch.randn(2, rows, 3, generator=generator, dtype=torch.float64)
    weight, teacher_weight = torch.randn(2, COLUMNS, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(COLUMNS, generator=generator, dtype=torch.float64)
    valid = slice(None, vocab_size)
    for each in (weight, teacher_weight, bias):
        each[len(each[valid]) :] = torch.nan
    learned = [hidden, cut(weight), cut(bias)]
    learned = [each.clone().requires_grad_() for each in learned]
    options = {
        "student_bias": learned[2],
        "student_softcap": 4.0,
        "sampled_ids": torch.arange(rows) % (vocab_size or COLUMNS),
        "weighting": SodWeighting(),
        "entropy_coefficient": 0.1,
        "single_sweep": single_sweep,
        "vocab_size": vocab_size,
        "chunk_size": 3 if single_sweep else None,
        "process_group": group,
        "backend": "reference",
    }
    if kind == "lists":
        logits = teacher_hidden @ teacher_weight[valid].T
        lists = logits.log_softmax(-1).topk(min(4, logits.shape[-1]))
        out = linear_topk_step_kl(*learned[:2], *lists, LINEAR_STEPS, **options)
    else:
        teacher = (teacher_hidden, cut(teacher_weight))
        out = linear_step_kl(*learned[:2], *teacher, LINEAR_STEPS, divergence=kind, **options)
    objective = out.loss
    if not single_sweep:
        objective = objective + 0.1 * out.student_log_probs.square().sum() + out.token_kl.sum()
    gradients = torch.autograd.grad(objective, learned)
    return {GRADIENT: gradients, **{field: getattr(out, field).detach() for field in TOPK_OUTPUTS}}


def _message(call):
    try:
        call()
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def work(rank, world_size, folder):
    """Run every scenario as one rank and leave the results in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    try:
        group = dist.group.WORLD
        width = COLUMNS // world_size

        def cut(logits):
            return logits[..., rank * width : (rank + 1) * width]

        results = {key: run(*scenario, cut, group) for key, scenario in SCENARIOS.items()}
        results |= {key: run_topk(*scenario, cut, group) for key, scenario in TOPK_SCENARIOS.items()}
        results |= {
            key: run_linear(*scenario, lambda rows: rows[rank * width : (rank + 1) * width], group)
            for key, scenario in LINEAR_SCENARIOS.items()
        }
        head, lists = torch.zeros(3 + (rank == 1), 2), (torch.zeros(4, 1) - 1.0, torch.zeros(4, 1).long())
        results["unequal heads"] = _message(
            lambda: linear_topk_step_kl(torch.zeros(4, 2), head, *lists, process_group=group)
        )
        odd = torch.zeros(2, 3, 4 + (rank == 1))
        results["unequal widths"] = _message(lambda: step_kl(odd, odd, process_group=group))
        odd = torch.zeros(2 + (rank == 1), 4)
        results["unequal rows"] = _message(lambda: step_kl(odd, odd, process_group=group))
        alone = dist.new_group([0])
        results["not a member"] = _message(lambda: step_kl(odd, odd, process_group=alone))
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
