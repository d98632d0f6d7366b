"""What a :class:`~groot_graph.nn.TreeSSM` computes, pair of nodes by pair of nodes."""

import torch
import torch.nn.functional as F

from groot_graph import Forest
from groot_graph.nn import TreeSSM


def line_to_root(parent: list, node: int) -> list:
    line = [node]
    while parent[node] != node:
        node = parent[node]
        line.append(node)
    return line


def is_heard(direction: str, line: list, other: list) -> bool:
    if direction == "up":
        return line[0] in other
    if direction == "down":
        return other[0] in line
    return line[-1] == other[-1]


def plain_loop(
    ssm: TreeSSM, u: torch.Tensor, forest: Forest, edge_length: torch.Tensor | None = None
) -> torch.Tensor:
    """The equations of the docstring, pair of nodes by pair of nodes."""
    dt, B, C = (u @ ssm.x_proj.weight.t()).split([ssm.dt_rank, ssm.state_size, ssm.state_size], 1)
    delta = F.softplus(dt @ ssm.dt_proj.weight.t() + ssm.dt_proj.bias)
    step = delta
    if edge_length is not None:
        step = delta + torch.outer(edge_length, F.softplus(ssm.sigma))
    A = -torch.exp(ssm.A_log)
    lines = [line_to_root(forest.parent.tolist(), node) for node in range(len(u))]
    y = []
    for i, line in enumerate(lines):
        h = torch.zeros_like(A)
        for j, other in enumerate(lines):
            if is_heard(ssm.direction, line, other):
                path = set(line) ^ set(other)
                transition = torch.stack(
                    [torch.ones_like(A), *(torch.exp(step[k, :, None] * A) for k in path)]
                ).prod(dim=0)
                h = h + transition * torch.outer(delta[j] * u[j], B[j])
        if ssm.state_norm is not None:
            norm = ssm.state_norm
            h = F.layer_norm(h.t(), norm.normalized_shape, norm.weight, norm.bias, norm.eps).t()
        y.append(h @ C[i] + ssm.D * u[i])
    return torch.stack(y)
