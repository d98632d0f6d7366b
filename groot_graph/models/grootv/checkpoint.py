r"""Reads trained GrootV weights: those of the published code, and our own."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path

import torch
from torch import Tensor
from torch.serialization import safe_globals

from groot_graph.checks import check_bool
from groot_graph.models.grootv.network import GrootV

# The published names and ours; what stands in \1 and \2 are numbers of stages and blocks.
_BLOCK, _OUR_BLOCK = r"levels\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."
_SSM, _OUR_SSM = _BLOCK + r"TreeSSM\.", _OUR_BLOCK + "mixer."
_NAMES = {
    r"patch_embed\.(conv[12])\.": r"stem.\1.",
    r"patch_embed\.(norm[12])\.1\.": r"stem.\1.",
    _BLOCK + r"(norm[12])\.0\.": _OUR_BLOCK + r"\3.",
    _BLOCK + r"mlp\.(fc[12])\.": _OUR_BLOCK + r"mlp.\3.",
    _SSM + r"x_proj_weight$": _OUR_SSM + "ssm.x_proj.weight",
    _SSM + r"dt_projs_(weight|bias)$": _OUR_SSM + r"ssm.dt_proj.\3",
    _SSM + r"A_logs$": _OUR_SSM + "ssm.A_log",
    _SSM + r"Ds$": _OUR_SSM + "ssm.D",
    _SSM + r"h_norm\.": _OUR_SSM + "ssm.state_norm.",
    _SSM + r"conv2d\.": _OUR_SSM + "conv.",
    _SSM + r"(in_proj|out_proj|out_norm)\.": _OUR_SSM + r"\3.",
    r"levels\.(\d+)\.norm\.0\.": r"stages.\1.norm.",
    r"levels\.(\d+)\.downsample\.conv\.": r"stages.\1.downsample.conv.",
    r"levels\.(\d+)\.downsample\.norm\.1\.": r"stages.\1.downsample.norm.",
    r"conv_head\.0\.": "head_conv.",
    r"conv_head\.1\.0\.": "head_norm.",
    r"head\.(weight|bias)$": r"head.\1",
}
# Under these keys training scripts store weights and their exponential moving average.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "network", "params")
_EMA_WRAPPERS = ("model_ema", "state_dict_ema", "ema")
# What torch.compile, FSDP and checkpointing put before a name, at any depth,
_INNER_PREFIX = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# and what data parallel training, averaging, transformers, Lightning and detectors put before every
# name.
_OUTER_PREFIXES = ("module.", "grootv.", "model.", "net.", "network.", "backbone.", "encoder.")
# How many steps torch.optim.swa_utils.AveragedModel has averaged, which stands beside its weights.
_COUNTER = "n_averaged"
# The published code stores its settings beside its weights; they are read as a plain dictionary.
_SETTINGS = (OrderedDict, "yacs.config.CfgNode")


def convert_grootv_checkpoint(state_dict: dict, ema: bool = False) -> dict[str, Tensor]:
    r"""Gives the weights of a published GrootV checkpoint the names of :class:`GrootV`.

    Args:
        state_dict (dict): Name to tensor, as the published code stores them, possibly inside
            :obj:`{"model": ...}` and with the prefixes of :func:`torch.compile`, of data parallel
            training, of :class:`torch.optim.swa_utils.AveragedModel` or of transformers. Our own
            names stay.
        ema (bool, optional): If set to :obj:`True`, takes the exponential moving average of the
            weights (:obj:`"model_ema"`) and not the weights themselves; a checkpoint that holds
            only the average gives the average in any case. (default: :obj:`False`)

    Returns:
        dict: Name to tensor, for :meth:`torch.nn.Module.load_state_dict`.

    Raises:
        TypeError: If `state_dict` is not a dictionary of tensors.
        ValueError: If a name is unknown, or there is no average.

    Example:
        >>> import torch
        >>> from groot_graph.models import convert_grootv_checkpoint
        >>> convert_grootv_checkpoint({"model": {"levels.0.norm.0.bias": torch.zeros(1)}})
        {'stages.0.norm.bias': tensor([0.])}
    """
    check_bool("ema", ema)
    weights = _without_prefixes(_unwrap(state_dict, ema))
    converted = {}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"'state_dict' must hold a tensor under every name, got {type(value).__name__} "
                f"under '{name}'"
            )
        converted[_our_name(name)] = value.squeeze(0) if _has_group(name) else value
    return converted


def load_grootv(
    path: str | PathLike,
    num_classes: int | None = None,
    ema: bool = False,
    model: GrootV | None = None,
    **kwargs,
) -> GrootV:
    r"""Reads trained weights into a :class:`GrootV` of the size that they have.

    Args:
        path (str or PathLike): A :obj:`.safetensors` file, or a :obj:`.pth` file, of which only
            tensors and plain values are read: no pickled code runs. With the published names or
            ours, and the prefixes that :func:`convert_grootv_checkpoint` takes off.
        num_classes (int, optional): The number of classes. Where the checkpoint has another number,
            its last layer is left out and a new one starts from random weights.
            (default: the number of the checkpoint)
        ema (bool, optional): Takes the exponential moving average of the weights, see
            :func:`convert_grootv_checkpoint`. (default: :obj:`False`)
        model (GrootV, optional): The network to fill, whose sizes the checkpoint has to have, in
            place of a new one. (default: :obj:`None`)
        **kwargs (optional): Further arguments of :class:`GrootV`, such as :obj:`drop_path_rate`.
            What is not given is found in the shapes of the weights.

    Returns:
        GrootV: The network, on the CPU where it is new.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If an argument has the wrong type.
        ValueError: If the file is damaged, holds anything but weights of GrootV, or holds those of
            another size than `model`. `model` is left as it was.

    Example:
        >>> import tempfile, torch
        >>> from groot_graph.models import GrootV, load_grootv
        >>> model = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(model.state_dict(), f"{folder}/weights.pth")
        ...     model = load_grootv(f"{folder}/weights.pth", num_classes=2)
        >>> model.head
        Linear(in_features=96, out_features=2, bias=True)
    """
    if model is not None and not isinstance(model, GrootV):
        raise TypeError(f"'model' must be a GrootV, got {type(model).__name__}")
    if model is not None and (num_classes is not None or kwargs):
        raise ValueError("'model' brings its own sizes: leave out the other arguments of GrootV")
    try:
        weights = convert_grootv_checkpoint(_read(Path(path)), ema)
    except TypeError as error:
        raise ValueError(f"'path': {fspath(path)} holds no weights of GrootV: {error}") from error
    sizes = _sizes(weights, path)
    if model is None:
        classes = sizes["num_classes"] if num_classes is None else num_classes
        if classes != sizes["num_classes"]:
            weights = {n: value for n, value in weights.items() if not n.startswith("head.")}
        model = GrootV(**{**sizes, "num_classes": classes, **kwargs})
        weights = {**_fresh_head(model, weights), **weights}
    _check_fits(model, weights, path)
    model.load_state_dict(weights)
    return model


def _fresh_head(model: GrootV, weights: dict) -> dict:
    r"""The last layer of a new model, for weights that have none."""
    if any(name.startswith("head.") for name in weights):
        return {}
    return {f"head.{name}": value for name, value in model.head.state_dict().items()}


def _read(path: Path) -> dict:
    if path.is_dir():
        raise ValueError(f"'path' must be a file of weights, got the folder {path}")
    if not path.is_file():
        raise FileNotFoundError(
            f"no such file: {path}. No weights ship with groot_graph; the authors offer theirs at "
            "https://github.com/EasonXiao-888/GrootVL, 'Model Zoo'"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file, safe_globals([_SETTINGS]):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"'path' must be a file of weights alone, and {path} holds more or is damaged, so "
                f"it was not read: its pickled code could do anything. Where you trust its source, "
                f"open it there and save its state dict alone. ({_first_line(error)})"
            ) from error
        except Exception as error:  # Damaged bytes raise errors of any type.
            raise ValueError(
                f"'path' must be a readable checkpoint, got {path} ({_first_line(error)})"
            ) from error


def _read_safetensors(path: Path) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("reading .safetensors needs safetensors: pip install safetensors") from (
            error
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"'path' must be a readable checkpoint, got {path} ({error})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unwrap(state_dict: dict, ema: bool) -> dict:
    if not isinstance(state_dict, dict):
        raise TypeError(f"'state_dict' must be a dict, got {type(state_dict).__name__}")
    average, weights = (
        next((state_dict[key] for key in keys if isinstance(state_dict.get(key), dict)), None)
        for keys in (_EMA_WRAPPERS, _WRAPPERS)
    )
    stored = state_dict if weights is None else weights
    if average is None and _COUNTER in stored:
        average = stored
    if average is None and ema:
        raise ValueError(
            f"'ema' must be False where a checkpoint holds no average under one of "
            f"{_EMA_WRAPPERS}, got the keys {_some(state_dict)}"
        )
    if average is not None and (ema or weights is None):
        return average
    return stored


def _without_prefixes(weights: dict) -> dict:
    for name in weights:
        if not isinstance(name, str):
            raise TypeError(f"'state_dict' must have names as keys, got {name!r}")
    weights = {
        _INNER_PREFIX.sub("", name): value
        for name, value in weights.items()
        if name.rpartition(".")[2] != _COUNTER
    }
    while prefix := _common_prefix(weights):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _common_prefix(weights: dict) -> str:
    for prefix in _OUTER_PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            return prefix
    return ""


def _our_name(name: str) -> str:
    for pattern, ours in _NAMES.items():
        if re.match(pattern, name):
            return re.sub("^" + pattern, ours, name)
    if re.match(r"(stem|stages|head_conv|head_norm)\.", name):
        return name
    raise ValueError(f"'state_dict' must hold weights of GrootV alone, got the name '{name}'")


def _has_group(name: str) -> bool:
    r"""Whether the published tensor has a leading dimension of one, left from several scans."""
    return name.endswith((".x_proj_weight", ".dt_projs_weight", ".dt_projs_bias"))


def _sizes(weights: dict[str, Tensor], path: str | PathLike) -> dict:
    r"""The arguments of :class:`GrootV` that show in the shapes of its weights."""
    depths = [0, 0, 0, 0]
    for name in weights:
        if found := re.match(r"stages\.([0-3])\.blocks\.(\d+)\.", name):
            stage, block = map(int, found.groups())
            depths[stage] = max(depths[stage], block + 1)
    try:
        channels = weights["stem.norm2.weight"].size(0)
        in_channels = weights["stem.conv1.weight"].size(1)
        hidden_channels, last_channels = weights["stages.3.blocks.0.mlp.fc1.weight"].shape
        num_features = weights["head_conv.weight"].size(0)
    except KeyError as error:
        raise ValueError(
            f"'path' must hold all weights of a GrootV, and {fspath(path)} lacks {error}"
        ) from error
    head = weights.get("head.weight")
    return {
        "channels": channels,
        "depths": tuple(depths),
        "num_classes": 0 if head is None else head.size(0),
        "in_channels": in_channels,
        "mlp_ratio": hidden_channels / last_channels,
        "head_scale": num_features / last_channels,
        "edge_steps": "stages.0.blocks.0.mixer.ssm.sigma" in weights,
    }


def _check_fits(model: GrootV, weights: dict[str, Tensor], path: str | PathLike) -> None:
    wanted = model.state_dict()
    found = _sizes(weights, path)
    problems = [
        f"{name} {found[name]} instead of {value}"
        for name, value in _sizes(wanted, path).items()
        if found[name] != value
    ]
    problems += [f"no '{name}'" for name in wanted if name not in weights]
    problems += [f"a needless '{name}'" for name in weights if name not in wanted]
    problems += [
        f"'{name}' of shape {list(weights[name].shape)} instead of {list(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        raise ValueError(
            f"'path' must hold weights of the size of the model, got {fspath(path)} with "
            f"{_some(problems, ', ')}"
        )


def _some(items: Iterable, separator: str = " ") -> str:
    items = list(map(str, items))
    more = f"{separator}and {len(items) - 3} more" if len(items) > 3 else ""
    return separator.join(items[:3]) + more
