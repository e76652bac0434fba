"""Clusters of any encoder by the command, and units by them."""

import json

import pyarrow.parquet as pq
import pytest

from training import fit_units, units


def test_fitted_clusters_make_units(corpus_folder, clustered, tmp_path):
    fit = [clustered, "--data", str(corpus_folder), "--layers", "1", "3", "--components", "6", "--frames", "500"]
    fit_units.main([*fit, "--output", str(tmp_path / "fitted")])
    described = json.loads((tmp_path / "fitted" / "units.json").read_text())
    assert (described["layers"], described["num_components"], described["method"]) == ([1, 3], 6, "kmeans")
    out = ["--data", str(corpus_folder), "--output", str(tmp_path / "out"), "--max_bad_fraction", "1"]
    with pytest.raises(SystemExit, match="`clusters` is 'mixture', but those of .*fitted were fitted: leave it out"):
        units.main([str(tmp_path / "fitted"), *out, "--clusters", "mixture"])
    units.main([str(tmp_path / "fitted"), *out])
    found = pq.read_table(tmp_path / "out" / "units-00000.parquet").column("units").to_pylist()
    assert len(found) == 11 and {unit for clip in found for unit in clip} == set(range(6))
    with pytest.raises(SystemExit, match="is there already"):
        fit_units.main([*fit, "--output", str(tmp_path / "fitted")])
