"""Pickled models load in a process that has imported nothing of this library."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groot_graph import root_forest
from groot_graph.models import GrootV
from groot_graph.nn import TreeSSM, TreeSSMConv, TreeTopology

REPOSITORY = Path(__file__).resolve().parents[2]
LOAD_AND_CALL = """
import pickle, sys
assert not any(name.startswith("groot_graph") for name in sys.modules)
with open(sys.argv[1], "rb") as file:
    model, arguments = pickle.load(file)
with open(sys.argv[2], "wb") as file:
    pickle.dump(model(*arguments), file)
"""
edge_index = torch.tensor([[0, 1, 2, 0, 4], [1, 2, 3, 3, 2]])


def untrained_grootv():
    return GrootV(channels=16, depths=[1, 1, 1, 1], num_classes=3).eval()


def untrained_grootl():
    transformers = pytest.importorskip("transformers", minversion="5.5")
    from groot_graph.models import GrootLForCausalLM

    sizes = {"vocab_size": 20, "hidden_size": 8, "state_size": 2, "num_hidden_layers": 2}
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
    return GrootLForCausalLM.from_mamba(mamba).eval()


@pytest.mark.full
@pytest.mark.parametrize(
    ("make", "make_arguments"),
    [
        (lambda: TreeSSMConv(6, 5, state_size=2), lambda: (torch.randn(5, 6), edge_index)),
        (
            lambda: TreeSSM(6),
            lambda: (torch.randn(5, 6), root_forest(edge_index[:, [0, 1, 2, 4]])),
        ),
        (lambda: TreeTopology("euclidean"), lambda: (torch.randn(5, 6), edge_index)),
        (untrained_grootv, lambda: (torch.randn(1, 3, 32, 32),)),
        (untrained_grootl, lambda: (torch.randint(1, 20, (2, 9)),)),
    ],
    ids=["TreeSSMConv", "TreeSSM", "TreeTopology", "GrootV", "GrootL"],
)
def test_a_new_process_computes_the_same(tmp_path, make, make_arguments):
    torch.manual_seed(0)
    model, arguments = make(), make_arguments()
    sent, returned = tmp_path / "sent", tmp_path / "returned"
    sent.write_bytes(pickle.dumps((model, arguments)))
    finished = subprocess.run(
        [sys.executable, "-c", LOAD_AND_CALL, sent, returned],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    found, expected = pickle.loads(returned.read_bytes()), model(*arguments)
    if hasattr(expected, "logits"):
        found, expected = found.logits, expected.logits
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected)
    else:
        assert found.order.equal(expected.order) and found.parent.equal(expected.parent)
