"""Registration of ops and their derivatives with torch.library, in one way for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_NAMESPACE = "sod_kernels"
# Dropping a library would remove its ops, so each is kept for as long as the package is.
_LIBRARIES: list[Any] = []


class Op(NamedTuple):
    """One op.

    Attributes:
        schema: In the dispatcher's language, starting with the name.
        run: Computes it, on any device, outside autograd.
        fake: Gives tensors of the right shape and dtype only.
    """

    schema: str
    run: Callable[..., Any]
    fake: Callable[..., Any]

    @property
    def name(self) -> str:
        """Name without namespace."""
        return self.schema.partition("(")[0]


def register(
    op: Op, differentiate: Callable[..., Any], setup_context: Callable[..., Any] | None = None
) -> None:
    """Register an op and its derivative; op names are global to the process, so once only.

    Args:
        op: The op.
        differentiate: Takes the context and the gradients of the outputs.
        setup_context: Saves what `differentiate` needs; None for nothing.
    """
    if hasattr(getattr(torch.ops, _NAMESPACE), op.name):
        return
    # Typed loosely: torch ships no annotations for these methods.
    make_library: Any = torch.library.Library
    library = make_library(_NAMESPACE, "FRAGMENT")
    library.define(op.schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(op.name, op.run, "CompositeExplicitAutograd")
    qualified = f"{_NAMESPACE}::{op.name}"
    torch.library.register_fake(qualified, op.fake, lib=library)
    torch.library.register_autograd(qualified, differentiate, setup_context=setup_context, lib=library)
    _LIBRARIES.append(library)


def register_gradient(op: Op, function: str | None = None) -> None:
    """Register an op that makes gradients; its own derivative is an error that says what to do.

    Args:
        op: The op.
        function: Name for the message; None if several functions share the op, whose last argument it is.
    """

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function = function or inputs[-1]

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"{ctx.function}: the gradient of the gradient was asked for, which the backward sweep does not "
            "have. Call backward without create_graph=True."
        )

    register(op, refuse, remember)
