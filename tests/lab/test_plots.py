"""Plots: where matplotlib is missing there is a warning, and what was written before it stays."""

import sys

from ensemblehub.lab.plots import Point, accuracy_against_cost


def test_without_matplotlib_there_is_a_warning_and_no_plot(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    points = [Point("intern", 0.1, 0.5, 0.4, 0.6)]
    accuracy_against_cost(points, [tmp_path / "plot.svg"], "FLOPs", "a title")
    assert "no plot: plots need matplotlib: pip install 'ensemblehub[eval]'" in caplog.text
    assert not (tmp_path / "plot.svg").exists()
