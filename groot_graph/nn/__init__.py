r"""Layers that grow trees over graphs and pass states along them."""

from groot_graph.nn.tree_ssm import TreeSSM
from groot_graph.nn.tree_ssm_conv import TreeSSMConv
from groot_graph.nn.tree_topology import TreeTopology

__all__ = ["TreeSSM", "TreeSSMConv", "TreeTopology"]
