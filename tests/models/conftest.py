import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from groot_graph.models import convert_grootv_checkpoint
from tests.fill import fill

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def published_weights():
    """A checkpoint of GrootV-T as published, its values drawn from the names; and converted."""
    shapes = json.loads((DATA / "grootv_t.json").read_text())
    empty = {
        name: torch.zeros(shape, dtype=torch.long if name.endswith("tracked") else torch.float)
        for name, shape in shapes.items()
    }
    published = fill(empty)
    return SimpleNamespace(published=published, converted=convert_grootv_checkpoint(published))


@pytest.fixture(scope="session")
def parity_data():
    with np.load(DATA / "grootv_t_0.npz") as data:
        return dict(data)
