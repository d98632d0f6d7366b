"""Inputs to PyG graphs: images, superpixels, text, points, and the spanning forest of any graph."""

from groot_graph.transforms.image_to_graph import ImageToGraph
from groot_graph.transforms.points_to_graph import PointsToGraph
from groot_graph.transforms.superpixels_to_graph import SuperpixelsToGraph
from groot_graph.transforms.text_to_graph import TextToGraph
from groot_graph.transforms.to_spanning_forest import ToSpanningForest

__all__ = [
    "ImageToGraph",
    "SuperpixelsToGraph",
    "TextToGraph",
    "PointsToGraph",
    "ToSpanningForest",
]
