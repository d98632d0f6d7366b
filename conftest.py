from importlib.util import find_spec

import pytest

# Their doctests need what they wrap.
collect_ignore = [
    f"groot_graph/models/{path}"
    for path, package in (
        ("grootl", "transformers"),
        ("grootv/transformers.py", "transformers"),
        ("grootl/lm_eval.py", "lm_eval"),
        ("grootv/timm.py", "timm"),
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


def pytest_collection_modifyitems(config, items):
    if config.getoption("full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    items[:] = [item for item in items if not item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
