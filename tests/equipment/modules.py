"""What the tests of layers do to a module."""

import pickle

import torch
from torch.nn import Module


def perturbed(module: Module) -> Module:
    """Moves the parameters off their initial ones and zeros, which hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def pickled(module: Module) -> Module:
    return pickle.loads(pickle.dumps(module))
