"""Kernels and Numba's cache: used where it is right, and done without where it is not."""

import importlib.util
import warnings

import numpy as np
import pytest

from groot_graph.ops.cpu import compiled as module

SOURCE = """
from groot_graph.ops.cpu.compiled import compiled

@compiled
def double(x):
    return 2 * x
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A kernel in a file of its own, loaded as a new process would; its cache lies beside it."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", "")
    path = tmp_path / "kernels.py"
    path.write_text(SOURCE)

    def load():
        spec = importlib.util.spec_from_file_location("kernels", path)
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        return kernels.double

    load.files = lambda ending: sorted((tmp_path / "__pycache__").glob(f"*{ending}"))
    return load


def was_remembered(kernel) -> bool:
    assert kernel(np.float64(3)) == 6
    return bool(kernel.stats.cache_hits)


def test_a_kernel_is_remembered(load):
    assert not was_remembered(load())
    assert was_remembered(load())
    assert len(load.files(".nbi")) == len(load.files(".nbc")) == 1


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "file"])
def test_who_waits_for_the_compiler_is_told_once(load, is_terminal, monkeypatch, capsys, caplog):
    module._tell_once.cache_clear()
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: is_terminal, raising=False)
    caplog.set_level("INFO", logger="groot_graph")
    assert not was_remembered(load())
    load.files(".nbi")[0].unlink()
    assert not was_remembered(load())
    told, logged = capsys.readouterr().err, caplog.text
    assert told.count("compiles its CPU kernels") == is_terminal
    assert logged.count("compiles its CPU kernels") == (not is_terminal)


def test_nobody_is_told_of_what_is_remembered(load, caplog):
    was_remembered(load())
    module._tell_once.cache_clear()
    caplog.set_level("INFO", logger="groot_graph")
    assert was_remembered(load())
    assert not caplog.text


@pytest.mark.sampled(4)
@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "scrambled", "lost"])
def test_a_damaged_cache_is_written_anew(load, ending, damage):
    was_remembered(load())
    (file,) = load.files(ending)
    content = file.read_bytes()
    if damage == "lost":
        file.unlink()
    else:
        short = {"truncated": content[: len(content) // 2], "emptied": b""}
        file.write_bytes(short.get(damage, bytes(reversed(content))))
    assert not was_remembered(load())
    assert was_remembered(load())


def test_another_version_of_what_a_kernel_calls_is_compiled_anew(load, monkeypatch):
    was_remembered(load())
    monkeypatch.setattr(module, "_digest_of_sources", lambda: "another")
    assert not was_remembered(load())
    assert was_remembered(load())


def test_no_folder_for_a_cache(load, monkeypatch):
    def no_locator(self, function):
        raise RuntimeError("cannot cache function: no locator available for file")

    monkeypatch.setattr(module._Cache, "__init__", no_locator)
    module._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="set NUMBA_CACHE_DIR to one that can"):
        kernel = load()
    assert not was_remembered(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not was_remembered(load())


def test_a_full_disk(load, monkeypatch):
    def no_space(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", no_space)
    module._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="set NUMBA_CACHE_DIR"):
        assert not was_remembered(load())


def test_the_digest_is_of_every_file_with_a_kernel():
    folder = module.Path(module.__file__).parents[1]
    seen = {*folder.rglob("cpu.py"), *folder.rglob("cpu/*.py")}
    with_kernels = {p for p in folder.rglob("*.py") if "@compiled" in p.read_text()}
    assert with_kernels <= seen and len(with_kernels) > 5
