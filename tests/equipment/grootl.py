"""Small Mambas and GrootLs, and texts for them."""

import torch
from transformers import MambaConfig, MambaForCausalLM

from groot_graph.models import GrootLForCausalLM
from groot_graph.models.grootl import CACHE_NAME, GrootLCache
from tests.equipment.fill import fill

MODES = ["context", "causal"]
VOCABULARY = 97


def mamba(**kwargs) -> MambaForCausalLM:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "state_size": 8,
        "num_hidden_layers": 3,
        "time_step_rank": 4,
        "eos_token_id": None,
    }
    model = MambaForCausalLM(MambaConfig(**{**sizes, **kwargs})).eval()
    model.load_state_dict(fill(model.state_dict()))
    return model


def grootl(**kwargs) -> GrootLForCausalLM:
    return GrootLForCausalLM.from_mamba(mamba(), **kwargs)


def cache_of(output) -> GrootLCache | None:
    return getattr(output, CACHE_NAME)


def tokens(*shape: int) -> torch.Tensor:
    # Not the padding token 0, which generate() takes for padding anywhere.
    return torch.randint(1, VOCABULARY, shape)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
