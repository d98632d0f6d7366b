r"""Trains the weights of `groot_graph.models.click_segmenter`, as the networks of `regions` are.

python -m experiments.click_segmenter --data FOLDER
"""

import argparse
from pathlib import Path

import torch

from experiments.photographs import load_photographs
from experiments.regions import clicks, fit, score, tasks_of, tests_per_photograph
from experiments.training import num_parameters
from groot_graph.models import ClickSegmenter
from groot_graph.models.click_segmenter import WEIGHTS

learning_rate = 2e-3  # that of "edge steps over learned colors" in `regions`


def main(argv: list[str] | None = None) -> dict[int, float]:
    """The intersection over union on test photographs, by the number of clicks."""
    parser = argparse.ArgumentParser(prog="python -m experiments.click_segmenter")
    parser.add_argument("--data", type=Path, required=True, help="the photographs of BSDS500")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the file that is written")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    train, validation, test = (
        load_photographs(args.data, part) for part in ("train", "val", "test")
    )
    torch.manual_seed(args.seed)
    network = ClickSegmenter()
    fitted = fit(network, train, validation, args.seed, learning_rate, "click segmenter")
    args.weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), args.weights)
    found = {count: score(network, tasks_of(test, count, tests_per_photograph)) for count in clicks}
    told = ", ".join(f"{100 * iou:.1f} with {count}" for count, iou in found.items())
    print(
        f"{num_parameters(network):,} parameters, {fitted['steps_taken']} steps; intersection over "
        f"union on {len(test)} test photographs, %, by clicks inside and outside: {told}"
    )
    return found


if __name__ == "__main__":
    main()
