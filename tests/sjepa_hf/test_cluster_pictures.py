"""Clusters are coloured by likeness, alike on the page and in the analyses."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from sjepa_hf.cluster_pictures import draw_clusters, order_clusters


def test_clusters_are_ordered_along_their_main_direction():
    places = torch.tensor([3.0, -1.0, 10.0, 0.0])
    means = places[:, None] * torch.tensor([[2.0, -1.0, 0.5]]) + 40
    assert order_clusters(means) == pytest.approx(np.array([2, 0, 3, 1]) / 3)
    assert order_clusters(-means) == pytest.approx(np.array([1, 3, 0, 2]) / 3), "the heaviest feature counts upwards"
    assert order_clusters(means[:1]).tolist() == [0]


@pytest.mark.parametrize(("inches", "numbers"), [(0.5, []), (2, ["7", "7"]), (5, ["7", "12", "3", "7"])])
def test_a_strip_has_a_bar_for_each_run_and_numbers_where_they_fit(inches, numbers):
    panel = Figure().add_subplot()
    places = np.linspace(0, 1, 20)
    draw_clusters(panel, np.repeat([7, 12, 3, 7], [4, 2, 1, 2]), places, inches)
    (bars,) = [child for child in panel.collections if child.get_array() is not None]
    assert bars.get_array().ravel().tolist() == places[[7, 12, 3, 7]].tolist()
    edges = np.asarray(bars.get_coordinates())[0, :, 0].tolist()
    assert edges == pytest.approx([0.0025, 0.0825, 0.1225, 0.1425, 0.1825])
    assert [text.get_text() for text in panel.texts] == numbers
