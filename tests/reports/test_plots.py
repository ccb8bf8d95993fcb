"""Drawings of what a user has named."""

import xml.etree.ElementTree

import numpy as np
import pytest

from mmjax.reports import ablation_plots
from mmjax.reports.ablation_plots import Point
from mmjax.reports.plots import Line, confusion_svg, lines_svg
from mmjax.reports.profile_plots import flame, flame_svg

NAMES = ("$\\frac$", "5 $ and 6 $", "\\$")


def paths(svg):
    """The letters that a drawing uses."""
    tree = xml.etree.ElementTree.fromstring(svg)
    return sum(element.tag.endswith("}use") for element in tree.iter())


@pytest.mark.parametrize("name", NAMES)
def test_names_are_drawn_as_they_are_written(name):
    """A dollar sign is a letter, not the beginning of a formula."""
    plain = "".join("x" if letter != " " else " " for letter in name)
    drawn, expected = (paths(confusion_svg(np.eye(2, dtype=int), ("one", each))) for each in (name, plain))
    assert drawn == expected
    drawn, expected = (paths(flame_svg(flame([((each,), 1.0), (("f",), 1.0)]))) for each in (name, plain))
    assert drawn == expected
    line = [Line("one", np.arange(3.0), np.arange(3.0))]
    drawn, expected = (paths(lines_svg(line, ylabel=each, limits=(0.0, 1.0))) for each in (name, plain))
    assert drawn == expected
    points = [Point("one", 1.0, 0.5, 0.4, 0.6), Point("two", 2.0, 0.6, 0.5, 0.7)]
    axes = {"xlabel": "cost", "unit": "", "higher_is_better": True}
    drawn, expected = (paths(ablation_plots.scatter_svg(points, ylabel=each, **axes)) for each in (name, plain))
    assert drawn == expected
