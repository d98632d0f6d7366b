import itertools

import networkx as nx
import pytest
import torch

from groot_graph import Forest, root_forest

pytest.importorskip("transformers", minversion="5.5")

from groot_graph.models.grootl.trees import (  # noqa: E402
    CausalTree,
    ContextTree,
    TextLayout,
    cosine_dissimilarity,
    state_input_norm,
    state_input_product,
)

CHANNELS, STATE_SIZE = 5, 3


def layout_of(starts, stops, contexts, num_places, window=3, num_readouts=0) -> TextLayout:
    start, stop, context = (torch.tensor(value)[:, None] for value in (starts, stops, contexts))
    place = torch.arange(num_places)
    is_token = (place >= start) & (place < stop)
    return TextLayout(start, stop, start + context, num_places, window, num_readouts, is_token)


def inputs_of(layout: TextLayout) -> tuple[torch.Tensor, torch.Tensor]:
    shape = layout.batch_size, layout.num_places
    v = layout.without_padding(torch.randn(*shape, CHANNELS))
    return v, layout.without_padding(torch.randn(*shape, STATE_SIZE))


def weight_of(v, B, i, j) -> float:
    """From the outer products themselves."""
    x, y = (torch.outer(v[k], B[k]).flatten() for k in (i, j))
    return torch.exp(-torch.cosine_similarity(x, y, dim=0)).item()


def chain_parent(num_nodes: int) -> list[int]:
    return [min(node + 1, num_nodes - 1) for node in range(num_nodes)]


def context_parent(v, B, start, context_stop, num_nodes, window) -> list[int]:
    """By networkx, from the outer products, rooted at the last node."""
    graph = nx.path_graph(num_nodes)
    for j in range(start, context_stop):
        for i in range(max(start, j - window), j):
            graph.add_edge(i, j, weight=weight_of(v, B, i, j))
    tree = nx.minimum_spanning_tree(graph)
    above = dict(nx.bfs_predecessors(tree, num_nodes - 1))
    return [above.get(node, node) for node in range(num_nodes)]


def causal_parent(v, B, start, stop, num_nodes, window) -> list[int]:
    parent = list(range(num_nodes))
    for j in range(start + 1, stop):
        before = range(max(start, j - window), j)
        parent[j] = min(before, key=lambda i: weight_of(v, B, i, j))
    return parent


def parents_by_text(forest: Forest, layout: TextLayout) -> list[list[int]]:
    parent = forest.parent.view(layout.batch_size, layout.num_nodes)
    return (parent - layout.num_nodes * torch.arange(layout.batch_size)[:, None]).tolist()


def dissimilarity_of(v_i, B_i, v_j, B_j) -> torch.Tensor:
    norms = state_input_norm(v_i, B_i) * state_input_norm(v_j, B_j)
    return cosine_dissimilarity(state_input_product(v_i, B_i, v_j, B_j), norms)


def test_dissimilarity_is_that_of_the_outer_products():
    v, B = torch.randn(2, 7, CHANNELS), torch.randn(2, 7, STATE_SIZE)
    expected = [weight_of(v[0], B[0], 0, 1), weight_of(v[1], B[1], 3, 6)]
    found = [
        dissimilarity_of(v[0, 0], B[0, 0], v[0, 1], B[0, 1]),
        dissimilarity_of(v[1, 3], B[1, 3], v[1, 6], B[1, 6]),
    ]
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected))


def test_dissimilarity_of_equal_tokens_is_the_same_number():
    v, B = torch.randn(50, 1, 33), torch.randn(50, 1, 9)
    scale = torch.tensor([1.0, 3.0, 7.0, 0.1])[:, None]
    weight = dissimilarity_of(v, B, v * scale, B)
    assert weight.unique().tolist() == pytest.approx([torch.e**-1])
    assert weight.unique().numel() == 1


def test_dissimilarity_of_zero_is_one():
    v, B = torch.zeros(CHANNELS), torch.randn(STATE_SIZE)
    assert dissimilarity_of(v, B, torch.randn(CHANNELS), B) == 1


LAYOUTS = {
    "whole": ([0], [11], [11], 11),
    "one_token": ([0], [1], [1], 1),
    "two_tokens": ([0], [2], [2], 2),
    "context_then_chain": ([0, 0], [13, 13], [7, 2], 13),
    "no_context": ([0], [6], [0], 6),
    "padding_left": ([0, 5, 9], [10, 10, 10], [10, 4, 1], 10),
    "padding_right": ([0, 0, 0], [10, 4, 1], [9, 4, 1], 10),
    "padding_both": ([2, 1], [8, 9], [5, 8], 12),
    "nothing_but_padding": ([0, 0], [5, 0], [5, 0], 5),
}


@pytest.mark.parametrize("num_readouts", [0, 4])
@pytest.mark.parametrize("window", [1, 2, 3, 20])
@pytest.mark.parametrize("case", LAYOUTS)
def test_context_tree_is_the_minimum_spanning_tree(case, window, num_readouts):
    layout = layout_of(*LAYOUTS[case], window, num_readouts)
    v, B = inputs_of(layout)
    forest = ContextTree(window)(v, B, layout)
    expected = [
        context_parent(v[text], B[text], start, start + context, layout.num_nodes, window)
        for text, (start, context) in enumerate(zip(*LAYOUTS[case][::2], strict=False))
    ]
    assert parents_by_text(forest, layout) == expected


@pytest.mark.parametrize("window", [1, 2, 3, 20])
@pytest.mark.parametrize("case", LAYOUTS)
def test_causal_tree_takes_the_most_similar_predecessor(case, window):
    layout = layout_of(*LAYOUTS[case], window)
    v, B = inputs_of(layout)
    forest = CausalTree(window)(v, B, layout)
    expected = [
        causal_parent(v[text], B[text], start, stop, layout.num_nodes, window)
        for text, (start, stop) in enumerate(zip(*LAYOUTS[case][:2], strict=True))
    ]
    assert parents_by_text(forest, layout) == expected


def test_readouts_of_the_causal_tree_read_the_last_tokens():
    layout = layout_of([0, 3], [5, 5], [5, 2], 6, window=3, num_readouts=3 * STATE_SIZE)
    forest = CausalTree(3)(*inputs_of(layout), layout)
    parent = torch.tensor(parents_by_text(forest, layout))[:, 6:].view(2, 3, STATE_SIZE)
    assert (parent[0] == torch.tensor([[4], [3], [2]])).all()
    assert (parent[1, :2] == torch.tensor([[4], [3]])).all()
    # The second text has two tokens: what would read a third reads nothing.
    assert parent[1, 2].tolist() == [6 + 2 * STATE_SIZE + state for state in range(STATE_SIZE)]


def test_ties_go_to_the_lower_edge_number():
    layout = layout_of([0], [6], [6], 6)
    v, B = torch.ones(1, 6, CHANNELS), torch.ones(1, 6, STATE_SIZE)
    # 4-5, 3-5, 2-5, then 1-4 (3-4 and 2-4 close a circle), then 0-3.
    assert parents_by_text(ContextTree(3)(v, B, layout), layout) == [[3, 4, 5, 5, 5, 5]]
    assert parents_by_text(CausalTree(3)(v, B, layout), layout) == [[0, 0, 1, 2, 3, 4]]


def test_a_context_of_two_tokens_is_the_chain():
    layout = layout_of([0, 0, 0], [9, 9, 9], [0, 1, 2], 9)
    forest = ContextTree(3)(*inputs_of(layout), layout)
    assert parents_by_text(forest, layout) == [chain_parent(9)] * 3


def test_window_of_one_is_the_chain():
    layout = layout_of([0], [9], [9], 9, window=1)
    v, B = inputs_of(layout)
    assert parents_by_text(ContextTree(1)(v, B, layout), layout) == [chain_parent(9)]
    assert parents_by_text(CausalTree(1)(v, B, layout), layout) == [[0, *range(8)]]


def test_chain_of_the_layout_is_rooted_at_the_first_node_of_every_text():
    layout = layout_of([0, 2], [4, 4], [4, 2], 4, num_readouts=2)
    edges = torch.tensor([i for text in (0, 6) for i in itertools.pairwise(range(text, text + 6))])
    expected = root_forest(edges.t(), num_nodes=12, root="first")
    assert layout.chain.parent.equal(expected.parent)


@pytest.mark.parametrize("mode", [ContextTree, CausalTree])
def test_no_gradient_flows_through_the_choice(mode):
    layout = layout_of([0], [6], [6], 6)
    v, B = (value.requires_grad_() for value in inputs_of(layout))
    assert not mode(3)(v, B, layout).parent.requires_grad


@pytest.mark.parametrize("mode", [ContextTree, CausalTree])
def test_autocast_does_not_change_the_tree(mode):
    layout = layout_of([0], [60], [60], 60)
    v, B = inputs_of(layout)
    expected = mode(3)(v, B, layout)
    with torch.autocast("cpu", torch.bfloat16):
        assert mode(3)(v, B, layout).parent.equal(expected.parent)
