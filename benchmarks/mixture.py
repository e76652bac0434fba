"""Cost of one mixture step (posterior + update) against the plain forms, all in one run.

    python -m benchmarks.mixture [--frames 2000] [--features 768] [--components 500] [--threads 2]

Three ways over the same frames: this package; the difference-tensor form (`[N, K, D]`, in chunks of 500 frames); and
the four bare matrix products that any implementation needs. The ratios are what counts, not the milliseconds.
"""

import math
import statistics
import time

import torch

from sjepa_hf import DiagonalGaussianMixture
from sjepa_hf.command import CommandParser, command


def difference_tensor_step(features, weights, means, variances, decay=0.999):
    """Posterior and parameter update written down as the formulas stand."""
    posteriors = []
    for chunk in features.split(500):
        mahalanobis = ((chunk[:, None] - means).square() / variances).sum(-1)
        joint = weights.log() - 0.5 * (means.shape[1] * math.log(2 * math.pi) + variances.log().sum(1) + mahalanobis)
        posteriors.append(joint.softmax(-1))
    posterior = torch.cat(posteriors)
    counts = posterior.sum(0).clamp_min(1e-8)
    batch_means = posterior.T @ features / counts[:, None]
    squares = torch.zeros_like(means)
    for chunk, q in zip(features.split(500), posterior.split(500)):
        squares += (q[:, :, None] * (chunk[:, None] - batch_means).square()).sum(0)
    batch_variances = (squares / counts[:, None]).clamp_min(1e-6)
    means.lerp_(batch_means, 1 - decay)
    variances.lerp_(batch_variances, 1 - decay)
    return posterior


def timed(function, repeats: int) -> list[float]:
    function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


@command
@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--components", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    frames, dims, components = arguments.frames, arguments.features, arguments.components
    features = torch.randn(frames, dims)
    mixture = DiagonalGaussianMixture(components, dims)
    plain = [buffer.clone() for buffer in (mixture.weights, mixture.means, mixture.variances)]
    posterior = mixture.posterior(features)
    matrix = torch.randn(components, dims)

    def ours():
        _, sums = mixture.clip_expectation(features[None])
        mixture.apply_statistics(sums)

    def bare_products():
        features @ matrix.T
        features @ matrix.T
        posterior.T @ features
        posterior.T @ features

    rows = {
        "this package": timed(ours, arguments.repeats),
        "four bare products": timed(bare_products, arguments.repeats),
    }
    rows["difference tensor"] = timed(lambda: difference_tensor_step(features, *plain), 1)
    print(f"N={frames} D={dims} K={components}, {arguments.threads} threads, median (min) of {arguments.repeats}")
    reference = statistics.median(rows["this package"])
    for name, seconds in rows.items():
        median = statistics.median(seconds)
        print(
            f"{name:20s} {1e3 * median:10.1f} ms ({1e3 * min(seconds):.1f})   {median / reference:8.2f} x this package"
        )


if __name__ == "__main__":
    main()
