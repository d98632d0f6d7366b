r"""Layers that grow trees over graphs and pass states along them."""

from groot_graph.nn.grid_tree_ssm import GridTreeSSM
from groot_graph.nn.tree_gnn import TreeGNN
from groot_graph.nn.tree_ssm import TreeSSM
from groot_graph.nn.tree_ssm_conv import TreeSSMConv
from groot_graph.nn.tree_topology import TreeTopology

__all__ = ["GridTreeSSM", "TreeGNN", "TreeSSM", "TreeSSMConv", "TreeTopology"]
