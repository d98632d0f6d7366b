r"""Puts :class:`~groot_graph.nn.TreeSSMConv` into the registry of PyG's GraphGym, where it is
imported.
"""

import torch
from torch_geometric.data import Data
from torch_geometric.graphgym.models.layer import LayerConfig
from torch_geometric.graphgym.register import register_layer

from groot_graph.nn.tree_ssm_conv import TreeSSMConv


@register_layer("treessmconv")
class TreeSSMLayer(torch.nn.Module):
    r"""A :class:`~groot_graph.nn.TreeSSMConv` as GraphGym makes layers,
    :obj:`gnn.layer_type: treessmconv` in a configuration.

    Args:
        layer_config (torch_geometric.graphgym.models.layer.LayerConfig): The sizes, and whether the
            projections have a bias.
        **kwargs (optional): Arguments of :class:`~groot_graph.nn.TreeSSMConv`.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> from torch_geometric.graphgym.models.layer import LayerConfig
        >>> from groot_graph.nn.graphgym import TreeSSMLayer
        >>> layer = TreeSSMLayer(LayerConfig(dim_in=4, dim_out=8))
        >>> data = Data(x=torch.randn(3, 4), edge_index=torch.tensor([[0, 1], [1, 2]]))
        >>> layer(data).x.shape
        torch.Size([3, 8])
    """

    def __init__(self, layer_config: LayerConfig, **kwargs):
        super().__init__()
        self.model = TreeSSMConv(
            layer_config.dim_in, layer_config.dim_out, bias=layer_config.has_bias, **kwargs
        )

    def forward(self, batch: Data) -> Data:
        batch.x = self.model(batch.x, batch.edge_index)
        return batch
