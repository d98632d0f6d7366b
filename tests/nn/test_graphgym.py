import torch
from torch_geometric.data import Data
from torch_geometric.graphgym.models.layer import LayerConfig
from torch_geometric.graphgym.register import layer_dict

import groot_graph.nn.graphgym  # noqa: F401
from groot_graph.nn import TreeSSMConv


def test_is_found_by_name_and_is_the_layer():
    torch.manual_seed(0)
    layer = layer_dict["treessmconv"](LayerConfig(dim_in=4, dim_out=8, has_bias=True), state_size=3)
    torch.manual_seed(0)
    conv = TreeSSMConv(4, 8, bias=True, state_size=3)
    data = Data(x=torch.randn(3, 4), edge_index=torch.tensor([[0, 1], [1, 2]]))
    wanted = conv(data.x, data.edge_index)
    assert layer(data).x.equal(wanted)
