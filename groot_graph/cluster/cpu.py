r"""Kernels: trees merged edge by edge, and pairs of points that are near across components."""

import numpy as np

from groot_graph.ops.cpu.compiled import compiled

# Pairs of nodes that wait at once: at most two more for every level of the two trees.
STACK_SIZE = 512


@compiled
def _find(above, node):
    while above[node] != node:
        above[node] = above[above[node]]
        node = above[node]
    return node


@compiled
def merge_in_sequence(source, target, weight, above, number, matrix):
    r"""Joins two clusters at every edge of a spanning tree, and writes SciPy's linkage matrix.

    `above` and `number` are the nodes in sequence; `number` is that of the cluster of a root.
    """
    num_nodes = len(above)
    for step in range(len(weight)):
        a, b = _find(above, source[step]), _find(above, target[step])
        low, high = min(number[a], number[b]), max(number[a], number[b])
        size = 0.0
        for cluster in (low, high):
            size += 1 if cluster < num_nodes else matrix[cluster - num_nodes, 3]
        matrix[step, 0], matrix[step, 1] = low, high
        matrix[step, 2], matrix[step, 3] = weight[step], size
        above[a] = b
        number[b] = num_nodes + step


@compiled
def find_certain(source, target, weight, above, radius, is_certain):
    r"""Marks the edges of a forest, the lightest first, that no unknown edge can replace.

    An unknown edge of a point is no shorter than its radius. `above` is the points in sequence, and
    `radius` becomes the least one of the tree at its root.
    """
    for edge in range(len(weight)):
        a, b = _find(above, source[edge]), _find(above, target[edge])
        is_certain[edge] = max(radius[a], radius[b]) >= weight[edge]
        above[a] = b
        radius[b] = min(radius[a], radius[b])


@compiled
def least_of_nodes(values, first, last, is_leaf, least):
    r"""The least value of the points of every node."""
    for node in range(len(first) - 1, -1, -1):
        if is_leaf[node]:
            least[node] = values[first[node] : last[node]].min()
        else:
            least[node] = min(least[2 * node + 1], least[2 * node + 2])


@compiled
def components_of_nodes(component, first, last, is_leaf, node_component):
    r"""The component of all points of a node, or -1 where they are of several."""
    for node in range(len(first) - 1, -1, -1):
        if is_leaf[node]:
            found = component[first[node]]
            for point in range(first[node] + 1, last[node]):
                if component[point] != found:
                    found = -1
                    break
        else:
            left, right = node_component[2 * node + 1], node_component[2 * node + 2]
            found = left if left == right else -1
        node_component[node] = found


@compiled
def _gap(low, high, a, b):
    r"""The distance of the boxes of two nodes."""
    total = 0.0
    for axis in range(low.shape[1]):
        step = max(low[a, axis] - high[b, axis], low[b, axis] - high[a, axis], 0.0)
        total += step * step
    return np.sqrt(total)


@compiled
def _reach(node, node_component, component, first, last, bound):
    r"""The weight above which no edge of the node's points is the lightest of its component."""
    if node_component[node] >= 0:
        return bound[node_component[node]]
    reach = 0.0
    for point in range(first[node], last[node]):
        reach = max(reach, bound[component[point]])
    return reach


@compiled
def _search_leaves(a, b, pos, core, radius, component, first, last, bound, nearest, partner):
    for i in range(first[a], last[a]):
        own = component[i]
        if radius[i] > bound[own]:
            continue
        for j in range(first[b], last[b]):
            if component[j] == own or radius[j] > bound[own]:
                continue
            total = 0.0
            for axis in range(pos.shape[1]):
                step = pos[i, axis] - pos[j, axis]
                total += step * step
            weight = max(np.sqrt(total), core[i], core[j])
            if weight < nearest[i] or (weight == nearest[i] and j < partner[i]):
                nearest[i], partner[i] = weight, j
                # Threads overwrite each other's bounds, each of which holds.
                bound[own] = min(bound[own], weight)


@compiled
def search_pairs(
    first_unit, last_unit, units, pos, core, radius, first, last, is_leaf, low, high,
    least_radius, component, node_component, bound, nearest, partner,
):  # fmt: skip
    r"""Finds the nearest point of another component for the points of some nodes, as far as that
    can be nearer than what the point's component has, `bound`.
    """
    stack_a = np.empty(STACK_SIZE, np.int64)
    stack_b = np.empty(STACK_SIZE, np.int64)
    stack_gap = np.empty(STACK_SIZE)
    for unit in range(first_unit, last_unit):
        stack_a[0], stack_b[0], stack_gap[0] = units[unit], 0, 0.0
        size = 1
        while size > 0:
            size -= 1
            a, b = stack_a[size], stack_b[size]
            own = node_component[a]
            if own >= 0 and node_component[b] == own:
                continue
            reach = _reach(a, node_component, component, first, last, bound)
            if max(stack_gap[size], least_radius[a], least_radius[b]) > reach:
                continue
            if is_leaf[a] and is_leaf[b]:
                _search_leaves(
                    a, b, pos, core, radius, component, first, last, bound, nearest, partner
                )
                continue
            # A lower number is a larger node.
            splits_b = is_leaf[a] or (b <= a and not is_leaf[b])
            near, far = (2 * b + 1, 2 * b + 2) if splits_b else (2 * a + 1, 2 * a + 2)
            near_gap = _gap(low, high, a, near) if splits_b else _gap(low, high, near, b)
            far_gap = _gap(low, high, a, far) if splits_b else _gap(low, high, far, b)
            if far_gap < near_gap:
                near, far, near_gap, far_gap = far, near, far_gap, near_gap
            for node, gap in ((far, far_gap), (near, near_gap)):
                stack_a[size] = a if splits_b else node
                stack_b[size] = node if splits_b else b
                stack_gap[size] = gap
                size += 1


@compiled
def lightest_of_components(component, nearest, partner, weight, source, target):
    r"""The lightest edge that leaves each component, of those found, where it is lighter than the
    one it has. Equal ones: that of the lowest points.
    """
    for point in range(len(component)):
        own, other = component[point], partner[point]
        if other < 0 or nearest[point] > weight[own]:
            continue
        low, high = min(point, other), max(point, other)
        is_lower = low < source[own] or (low == source[own] and high < target[own])
        if nearest[point] < weight[own] or (source[own] >= 0 and is_lower):
            weight[own], source[own], target[own] = nearest[point], low, high
