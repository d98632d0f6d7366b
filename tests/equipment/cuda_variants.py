"""The macros that every CUDA source is compiled with: every value of each, if not every
combination.
"""

from groot_graph.ops.cuda import launch, plan
from groot_graph.ops.minimum_spanning_forest import cuda as minimum_spanning_forest
from groot_graph.ops.root_forest import cuda as root_forest

OPERATIONS = sorted(file.stem for file in launch.source_folder().glob("*.cu"))

SCANS = [
    {
        "VALUE": value,
        "INPUT": read,
        "DIRECTION": direction,
        "IS_BACKWARD": is_backward,
        "MOST_NESTED": plan.MOST_NESTED,
    }
    for is_backward in (0, 1)
    for direction, value, read in [
        ("BOTH", "float", "float"),
        ("BOTH", "double", "double"),
        ("UP", "float", "Half"),
        ("DOWN", "float", "BFloat16"),
    ]
]

# The channels of a thread of tree_scan: as for 160, 100 and 1 channels.
CHANNELS = [
    {"LANES": 32, "PER_LANE": 5, "HAS_REST": 0},
    {"LANES": 32, "PER_LANE": 4, "HAS_REST": 1},
    {"LANES": 1, "PER_LANE": 1, "HAS_REST": 0},
]


def states(scan: dict) -> dict:
    """The states of a thread of selective_tree_scan: as for 16 states, rows of them aligned."""
    num_vectors = 1 + scan["IS_BACKWARD"]
    num_up = num_vectors if scan["DIRECTION"] == "BOTH" else scan["IS_BACKWARD"]
    size = {"double": 8, "float": 4, "Half": 2, "BFloat16": 2}[scan["INPUT"]]
    num_states = 4 if scan["VALUE"] == "double" else 8
    return {
        "STATES_AT_ONCE": num_states,
        "CHUNK_SIZE": min(16, num_states * size),
        "HAS_SUMS": 1,
        "NUM_KEPT": num_up,
        "GROUP_SIZE": 32 if scan["IS_BACKWARD"] else 1,
        "HAS_PADDING": scan["IS_BACKWARD"],
        "HAS_STEP": int(scan["DIRECTION"] != "UP"),
    }


VARIANTS = {
    "minimum_spanning_forest": [minimum_spanning_forest.MACROS],
    "root_forest": [root_forest.MACROS],
    "segments": [plan.MACROS],
    "tree_scan": [scan | channels for scan in SCANS for channels in CHANNELS],
    "selective_tree_scan": [scan | states(scan) for scan in SCANS],
}


def variants(operation: str) -> list[dict]:
    return VARIANTS.get(operation, [{}])


def named(macros: dict) -> str:
    return ",".join(f"{name}={value}" for name, value in macros.items()) or "no macros"
