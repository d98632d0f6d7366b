from collections import defaultdict
from importlib.util import find_spec
from math import ceil
from zlib import crc32

import pytest

# Their doctests need what they wrap.
collect_ignore = [
    f"groot_graph/{path}"
    for path, package in (
        ("cluster", "sklearn"),
        ("cluster/hdbscan.py", "fast_hdbscan"),
        ("models/grootl", "transformers"),
        ("models/grootv/transformers.py", "transformers"),
        ("models/grootl/lm_eval.py", "lm_eval"),
        ("models/grootv/timm.py", "timm"),
    )
    if find_spec(package) is None
]


def pytest_addoption(parser):
    parser.addoption(
        "--full",
        action="store_true",
        help="run the tests marked 'full' too, and more examples of each hypothesis test",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """pytest-xdist shares a run of all tests out to the cores; named files run in one process, as
    that starts sooner.
    """
    is_whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    is_worker = hasattr(config, "workerinput")
    if not is_whole or is_worker or not config.pluginmanager.hasplugin("xdist"):
        return
    if config.option.numprocesses is None:
        config.option.numprocesses = "logical"
        # What the tests of a file share is compiled once.
        config.option.dist = "loadfile"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    _mark_all_but_a_sample(items)
    if config.getoption("full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    items[:] = [item for item in items if not item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)


def _mark_all_but_a_sample(items):
    """Marks 'full' what 'sampled' leaves out: the same cases each time, some of every backend."""
    tables = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("full"):
            tables[item.parent, item.originalname, item.callspec.params.get("backend")].append(item)
    for table in tables.values():
        (one_of,) = table[0].get_closest_marker("sampled").args
        table.sort(key=lambda item: crc32(item.name.encode()))
        for item in table[ceil(len(table) / one_of) :]:
            item.add_marker(pytest.mark.full)
