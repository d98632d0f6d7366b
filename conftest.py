from importlib.util import find_spec

# Their doctests need what they wrap.
collect_ignore = [
    f"groot_graph/models/{module}.py"
    for module, package in (
        ("grootl/model", "transformers"),
        ("grootv/transformers", "transformers"),
        ("grootl/lm_eval", "lm_eval"),
        ("grootv/timm", "timm"),
    )
    if find_spec(package) is None
]
