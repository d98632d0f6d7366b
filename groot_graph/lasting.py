r"""Whether a tensor that is made now may serve later calls."""

import torch


def makes_plain_tensors() -> bool:
    r"""Whether a tensor that is made now outlives the call: none does that a compiler, an export or
    a mode such as that of fake tensors makes, and symbolic sizes are no keys.
    """
    if torch.compiler.is_compiling():
        return False
    has_modes = torch._C._len_torch_dispatch_stack() > 0
    return not has_modes and torch._C._functorch.peek_interpreter_stack() is None


def current_stream(device: torch.device) -> int:
    r"""The stream that a tensor made now is ready on: on another it may not be there yet."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def is_captured(device: torch.device) -> bool:
    r"""Whether a tensor that is made now belongs to a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
