from torch import Tensor
from torch_geometric import is_compiling

elements_in_cache = 2**20  # of a CPU


def works_in_parts(x: Tensor) -> bool:
    r"""Whether work on a tensor may go part by part: a GPU and a compiler are better off with the
    whole.
    """
    return x.device.type == "cpu" and not is_compiling()


def num_in_cache(num_elements: int) -> int:
    r"""How many things of so many elements each are worked on at once, one or more."""
    return max(1, elements_in_cache // max(1, num_elements))
