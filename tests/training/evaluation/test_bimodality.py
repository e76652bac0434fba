import numpy as np
import pytest
from scipy.optimize import linprog
from sklearn.mixture import GaussianMixture

from training.evaluation.bimodality import dip, dip_test, two_gaussians


def dip_by_definition(values: np.ndarray) -> float:
    """Smallest distance to a function that is convex up to a mode, may jump there, and is concave from there on."""
    x, n = np.sort(values), len(values)
    best = np.inf
    for mode in range(n):
        # Unknowns: the function at each point (at the mode: from the left), at the mode from the right, distance.
        rows, bounds = [], []

        def at_most(terms, bound, rows=rows, bounds=bounds):
            row = np.zeros(n + 2)
            for place, factor in terms:
                row[place] += factor
            rows.append(row)
            bounds.append(bound)

        right = [*range(mode), n, *range(mode + 1, n)]  # where the values right of the mode stand
        for i in range(n):
            at_most([(i, 1), (n + 1, -1)], i / n)
            at_most([(right[i], -1), (n + 1, -1)], -(i + 1) / n)
            if i != mode:
                at_most([(i, -1), (n + 1, -1)], -(i + 1) / n)
        at_most([(mode, -1), (n + 1, -1)], -mode / n)
        at_most([(n, 1), (n + 1, -1)], (mode + 1) / n)
        at_most([(mode, 1), (n, -1)], 0)
        for places, sign in ((list(range(mode + 1)), 1), (right[mode:], -1)):
            points = x[: mode + 1] if sign == 1 else x[mode:]
            for i in range(len(places) - 1):
                at_most([(places[i], 1), (places[i + 1], -1)], 0)
                if i:  # slopes rise on the left, fall on the right
                    a, b = sign / (points[i] - points[i - 1]), sign / (points[i + 1] - points[i])
                    at_most([(places[i], a + b), (places[i - 1], -a), (places[i + 1], -b)], 0)
        found = linprog(np.eye(n + 2)[-1], np.array(rows), bounds, bounds=[(0, 1)] * (n + 2))
        best = min(best, found.fun)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_dip_is_the_distance_to_the_nearest_unimodal_function(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0, 1, 6), rng.normal(3 * (seed % 2), 1, 6)])
    assert dip(values) == pytest.approx(dip_by_definition(values), abs=1e-7)
    assert dip(-5 * values + 2) == pytest.approx(dip(values), abs=1e-7)


def test_dip_of_extreme_samples():
    assert dip(np.repeat([0.0, 1.0], 500)) == pytest.approx(0.25, abs=0.001)
    assert dip(np.zeros(50)) == dip(np.arange(50)) == pytest.approx(0.01), "the least that a sample can have"


SAMPLES = {
    "two modes": (lambda rng: np.append(rng.normal(0.2, 0.08, 900), rng.normal(1.0, 0.25, 1100)), True),
    "normal": (lambda rng: rng.normal(3, 1, 2000), False),
    "exponential": (lambda rng: rng.exponential(size=2000), False),
    "gamma": (lambda rng: rng.gamma(2, size=2000), False),
    "uniform": (lambda rng: rng.random(2000), False),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_dip_test_tells_two_modes_from_skew(name):
    draw, bimodal = SAMPLES[name]
    values = draw(np.random.default_rng(1))
    found = dip_test(values, sample_size=600, simulations=60)
    assert (found["p_value"] < 0.02) if bimodal else (found["p_value"] > 0.1)
    if name == "exponential":  # two Gaussians fit much better than one, although there is one mode
        bic = [GaussianMixture(k, random_state=0).fit(values[:, None]).bic(values[:, None]) for k in (1, 2)]
        assert bic[1] < bic[0] - 100


def test_two_values_are_no_sign_of_two_modes():
    """All samples of two have the same dip."""
    assert dip_test(np.array([0.0, 1.0]), simulations=20) == {"dip": 0.25, "p_value": 1.0, "sample_size": 2}


def test_two_gaussians_find_their_places():
    values = SAMPLES["two modes"][0](np.random.default_rng(1))
    found = two_gaussians(values)
    assert found["means"] == pytest.approx([0.2, 1.0], abs=0.03)
    assert found["deviations"] == pytest.approx([0.08, 0.25], abs=0.03)
    assert found["weights"] == pytest.approx([0.45, 0.55], abs=0.03)
    assert found["ashman_d"] == pytest.approx(0.8 / np.sqrt((0.08**2 + 0.25**2) / 2), abs=0.3)
    assert two_gaussians(np.random.default_rng(0).normal(size=2000))["ashman_d"] < 2


@pytest.mark.parametrize("measure", [dip, dip_test, two_gaussians])
def test_samples_without_modes_are_refused(measure):
    for values, message in {
        (): "at least two values, and there are 0",
        (1.0,): "at least two values, and there are 1",
        (1.0, np.nan, -np.inf): "2 of 3 values are NaN or infinite",
    }.items():
        with pytest.raises(ValueError, match=message):
            measure(np.array(values))
