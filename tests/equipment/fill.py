"""Fill a model with reproducible weights: every parameter from its own name, so that no weight
file is needed.

    model.load_state_dict(fill(model.state_dict()))

Names are those of the published checkpoints (for GrootV: official_checkpoints/grootv_t.json;
for text: Hugging Face's MambaForCausalLM; lm_head.weight is tied to backbone.embeddings.weight).
"""

import hashlib

import numpy as np
import torch


def _scaled(name, noise):
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(noise)
    if name.endswith("running_mean"):
        return 0.1 * noise
    if name.endswith("A_logs"):
        return 0.3 * noise
    if name.endswith("A_log"):
        return np.log(np.arange(1, noise.shape[1] + 1))[None] + 0.1 * noise
    if name.endswith((".Ds", ".D")):
        return 1 + 0.1 * noise
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * noise
    if name.endswith("dt_projs_bias"):
        return -3 + 0.5 * noise
    if name.endswith("dt_proj.bias"):
        return -2 + 0.5 * noise
    if noise.ndim == 1:
        return 0.1 * noise
    if "embeddings" in name or "lm_head" in name:
        return 0.5 * noise
    return noise / np.sqrt(np.prod(noise.shape[1:]))


def fill(state_dict):
    """state_dict with each tensor replaced, but for shape and dtype; 'num_batches_tracked' is 0."""
    filled = {}
    for name, old in state_dict.items():
        if name.endswith("num_batches_tracked"):
            filled[name] = torch.zeros_like(old)
            continue
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        noise = np.random.RandomState(seed).standard_normal(tuple(old.shape))
        filled[name] = torch.tensor(_scaled(name, noise), dtype=old.dtype)
    if "lm_head.weight" in filled and "backbone.embeddings.weight" in filled:
        filled["lm_head.weight"] = filled["backbone.embeddings.weight"]
    return filled
