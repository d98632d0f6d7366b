"""Clusterings compared, whatever numbers their clusters have."""

import numpy as np


def assert_same_clusters(labels, expected):
    labels, expected = np.asarray(labels), np.asarray(expected)
    pairs = {*zip(labels.tolist(), expected.tolist(), strict=True)}
    assert len(pairs) == len(set(labels.tolist())) == len(set(expected.tolist()))
