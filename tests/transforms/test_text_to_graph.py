import pytest
import torch
from torch_geometric.data import Batch, Data

from groot_graph import minimum_spanning_forest
from groot_graph.transforms import TextToGraph


def text_edges_by_loops(num_tokens, window, context_length):
    edges = []
    for t in range(num_tokens - 1, 0, -1):
        for distance in range(1, (window if t < context_length else 1) + 1):
            if t - distance >= 0:
                edges.append([t - distance, t])
    return torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t()


def test_repr():
    assert str(TextToGraph(2, 5)) == "TextToGraph(window=2, context_length=5)"


def test_edges_by_hand():
    data = TextToGraph(window=3, context_length=4)(torch.arange(6))
    forward = [(4, 5), (3, 4), (2, 3), (1, 3), (0, 3), (1, 2), (0, 2), (0, 1)]
    backward = [(target, source) for source, target in forward]
    assert data.edge_index.t().tolist() == [list(edge) for edge in forward + backward]


@pytest.mark.parametrize("context_length", [0, 1, 2, 3, 5, 7, 9, None])
@pytest.mark.parametrize("window", [1, 2, 3, 8])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3, 7])
def test_edges(num_tokens, window, context_length):
    data = TextToGraph(window, context_length)(torch.zeros(num_tokens, dtype=torch.long))
    length = num_tokens if context_length is None else context_length
    forward = text_edges_by_loops(num_tokens, window, length)
    assert data.edge_index.tolist() == torch.cat([forward, forward.flip(0)], dim=1).tolist()


@pytest.mark.parametrize("context_length", [0, 1, 2])
def test_a_short_context_gives_the_chain(context_length):
    data = TextToGraph(context_length=context_length)(torch.arange(5))
    assert data.edge_index.tolist() == [[3, 2, 1, 0, 4, 3, 2, 1], [4, 3, 2, 1, 3, 2, 1, 0]]


def test_reverse_edges_leave_the_forest_as_it_is():
    ids = torch.tensor([1, 2, 1, 1, 2, 2, 1, 3, 1])  # most edges tie
    data = TextToGraph()(ids)
    weight = (data.x[data.edge_index[0]] - data.x[data.edge_index[1]]).abs()
    one_way = data.num_edges // 2
    both = minimum_spanning_forest(data.edge_index, weight, data.num_nodes)
    single = minimum_spanning_forest(data.edge_index[:, :one_way], weight[:one_way], data.num_nodes)
    assert both[:one_way].equal(single)
    assert not both[one_way:].any()


@pytest.mark.parametrize(
    "tokens", [torch.arange(15).view(3, 5), torch.rand(3, 5, 4)], ids=["ids", "embeddings"]
)
def test_a_batch_of_sequences_is_the_batch_of_their_graphs(tokens):
    transform = TextToGraph(window=2, context_length=4)
    data = transform(tokens)
    expected = Batch.from_data_list([transform(sequence) for sequence in tokens])
    for key in ("x", "edge_index", "batch", "ptr"):
        assert data[key].equal(expected[key]), key


def test_lists_of_ids():
    assert TextToGraph()([7, 8, 9]).x.tolist() == [7, 8, 9]
    assert TextToGraph()([[7, 8], [9, 7]]).batch.tolist() == [0, 0, 1, 1]
    assert TextToGraph()([]).num_nodes == 0


def test_remembered_edges_cannot_be_changed_through_a_result():
    expected = TextToGraph()(torch.arange(6)).edge_index.clone()
    TextToGraph()(torch.arange(6)).edge_index.fill_(-1)
    assert TextToGraph()(torch.arange(6)).edge_index.equal(expected)


def test_a_data_keeps_its_other_attributes():
    out = TextToGraph(key="tokens")(Data(tokens=torch.arange(3), y=1))
    assert out.y == 1
    assert "tokens" not in out
    assert out.x.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (torch.tensor(3), ValueError, r"\[T\] or \[B, T\], got \[\]"),
        (torch.zeros(1, 2, 3, dtype=torch.long), ValueError, r"got \[1, 2, 3\]"),
        (torch.rand(3), ValueError, r"\[T, C\] or \[B, T, C\], got \[3\]"),
        (torch.tensor([True]), TypeError, "token ids or embeddings, got torch.bool"),
        ("text", TypeError, "a Tensor or a list, got str"),
        ([[1, 2], [3]], TypeError, "token ids of equal length"),
        (["a"], TypeError, "token ids of equal length"),
        (Data(), ValueError, r"'input_ids', got \[\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(tokens, error, message):
    with pytest.raises(error, match=message):
        TextToGraph()(tokens)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "'window' must be at least 1, got 0"),
        ({"window": "3"}, TypeError, "'window' must be an int, got str"),
        ({"context_length": -1}, ValueError, "'context_length' must not be negative, got -1"),
        ({"context_length": 1.5}, TypeError, "'context_length' must be an int or None, got float"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        TextToGraph(**options)
