"""Weigh the steps of two agent trajectories by their divergence from the teacher, and train on them.

Run: python examples/01_step_kl.py
"""

import torch

from sod_kernels import SodWeighting, step_kl


def main() -> None:
    torch.manual_seed(0)
    num_rows, num_tokens, vocab_size = 2, 12, 1000
    teacher_logits = 4 * torch.randn(num_rows, num_tokens, vocab_size)
    # The student drifts: each later token is further from the teacher.
    drift = torch.linspace(0.1, 1.0, num_tokens)[None, :, None]
    student_logits = (teacher_logits + drift * torch.randn(num_rows, num_tokens, vocab_size)).requires_grad_()
    # Three steps per trajectory; tool output (0) belongs to none.
    response_mask = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1]] * num_rows)

    plain = step_kl(student_logits, teacher_logits, response_mask=response_mask)
    weighted = step_kl(
        student_logits, teacher_logits, response_mask=response_mask, weighting=SodWeighting(delta=0.2)
    )
    weighted.loss.backward()

    print(f"backend {weighted.backend}; loss {plain.loss:.4f} uniform, {weighted.loss:.4f} weighted by step")
    print("step  tokens  divergence  weight")
    rows = zip(weighted.step_tokens, weighted.step_divergence, weighted.step_weights, strict=True)
    for step, (tokens, divergence, weight) in enumerate(rows):
        print(f"{step:4d}  {int(tokens):6d}  {float(divergence):10.4f}  {float(weight):6.3f}")


if __name__ == "__main__":
    main()
