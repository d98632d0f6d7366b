r"""Which derivatives are asked for beside the gradient.

Operations of :obj:`torch.library` know neither dual numbers nor the derivatives of
:obj:`torch.func`. A :class:`torch.autograd.Function` around each knows both, but no compiler takes
it: it stands in where such a derivative is asked for.
"""

import torch
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad


def asks_for_derivatives() -> bool:
    r"""Whether dual numbers or a transform of :obj:`torch.func` may ask for a derivative."""
    if torch.compiler.is_compiling():
        return False
    stack = get_interpreter_stack()
    if stack is None:
        return forward_ad._current_level >= 0
    transforms = [transform.key() for transform in stack]
    if transforms.count(TransformType.Jvp) > 1:
        raise NotImplementedError(
            "groot_graph does not carry derivatives forward twice, as in torch.func.jvp of "
            "torch.func.jvp: take one of the two backward, as torch.func.hessian does"
        )
    return transforms[-1] != TransformType.Functionalize


def is_differentiated_again() -> bool:
    r"""Whether the gradient that is computed now may be differentiated, as under
    :obj:`create_graph=True`.
    """
    return not torch.compiler.is_compiling() and torch.is_grad_enabled()


def refuse_batched_forests(in_dims: tuple) -> None:
    r"""Under :func:`torch.func.vmap`: every entry of the batch goes along the same forest."""
    if any(dim is not None for dim in in_dims):
        raise ValueError(
            "'forest' must be the same for the whole batch of torch.func.vmap, got one per entry: "
            "put the graphs beside each other in one, as torch_geometric.data.Batch does"
        )
