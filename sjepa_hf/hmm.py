"""Hidden Markov model whose states are a mixture's components: posteriors given the whole clip, Baum-Welch.

Any state may follow any other. All is fp32 (float64 after `.double()`), outside autograd, and of scaled probabilities:
a frame's likelihoods are divided by the largest of them and each step of a recursion is normed. Nothing is lost by
that as long as no transition is (near) zero, which `SMOOTHING` sees to: a state is then at most `1 / min(transitions)`
times less probable before its frame is heard than after, so that one whose likelihood underflows has no posterior.
"""

from typing import NamedTuple

import torch

from .float32 import Float32Buffers, without_autocast, zero_tiny_


# Share of all transitions, and of all beginnings, that is spread evenly over states, as if it had been counted.
SMOOTHING = 1e-3


class TransitionStatistics(NamedTuple):
    """
    What an update of the transitions needs to know about a set of clips. Statistics of several micro-batches or of
    several ranks add up, as long as the model that made them did not change in between.

    Attributes:
        initial (`torch.Tensor` of shape `(num_states,)`): expected number of clips that begin in each state.
        pairs (`torch.Tensor` of shape `(num_states, num_states)`): expected number of steps from each state to each.
    """

    initial: torch.Tensor
    pairs: torch.Tensor

    def __add__(self, other: "TransitionStatistics") -> "TransitionStatistics":
        return TransitionStatistics(*(a + b for a, b in zip(self, other, strict=True)))


class ClipPosteriors(NamedTuple):
    """
    What forward-backward knows of a batch of clips.

    Attributes:
        posteriors (`torch.Tensor` of shape `(batch_size, sequence_length, num_states)`):
            Probability of each state at each frame given its whole clip: rows that sum to 1, zero in padding.
        log_likelihoods (`torch.Tensor` of shape `(batch_size,)`): of each clip, in nats; 0 for one without frames.
        statistics (`TransitionStatistics`, *optional*): the expected counts, if asked for.
        scores (`torch.Tensor` of shape `(batch_size, sequence_length, num_states)`, *optional*):
            Logarithms of the posteriors up to one constant per frame, none of them infinite, if asked for.
    """

    posteriors: torch.Tensor
    log_likelihoods: torch.Tensor
    statistics: TransitionStatistics | None
    scores: torch.Tensor | None


@torch.no_grad()
def forward_backward(
    log_likelihoods: torch.Tensor,
    initial: torch.Tensor,
    transitions: torch.Tensor,
    lengths: torch.Tensor | None = None,
    count: bool = False,
    scores: bool = False,
) -> ClipPosteriors:
    """
    Posterior of the states of a hidden Markov model at every frame, given all frames of its clip.

    Args:
        log_likelihoods (`torch.Tensor` of shape `(batch_size, sequence_length, num_states)`):
            `log p(x_t | state)` in nats; padding may hold anything, NaN too.
        initial (`torch.Tensor` of shape `(num_states,)`): probability of each state at a clip's first frame.
        transitions (`torch.Tensor` of shape `(num_states, num_states)`):
            Probability of the state of the column after that of the row; none of them zero. A clip that zeros make
            impossible gets NaN.
        lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): real frames; without it, all are real.
        count (`bool`, *optional*, defaults to `False`): whether to form the expected counts too.
        scores (`bool`, *optional*, defaults to `False`): whether to form the logarithms too.

    Returns:
        [`ClipPosteriors`] in the dtype of `transitions`. What stands beside a clip changes it by rounding alone.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    _check(log_likelihoods, initial, transitions, lengths)
    with without_autocast(transitions.device):
        return _forward_backward(log_likelihoods.to(transitions.dtype), initial, transitions, lengths, count, scores)


def _forward_backward(
    log_likelihoods: torch.Tensor,
    initial: torch.Tensor,
    transitions: torch.Tensor,
    lengths: torch.Tensor | None,
    count: bool,
    scores: bool,
) -> ClipPosteriors:
    # With `g_t = p(x_t | state) p(x_t+1 ... | state)`, the backward recursion in reversed time is the forward one with
    # the transitions transposed: both run side by side, as one batched product a step.
    batch_size, num_frames, num_states = log_likelihoods.shape
    real, mirrored = _times(batch_size, num_frames, lengths, log_likelihoods.device)
    likelihoods, largest = _scaled_likelihoods(log_likelihoods.transpose(0, 1), real[..., None])  # [T, B, K], [T, B]
    both_ways = torch.stack([likelihoods, _in_time(likelihoods, mirrored)], dim=1)  # [T, 2, B, K]
    matrices = torch.stack([transitions, transitions.T])
    priors = torch.empty_like(both_ways)  # what is known of a frame's state from the frames before it (after it)
    totals = both_ways.new_empty(num_frames, 2, batch_size, 1)
    state = None
    for prior, likelihood, total in zip(priors.unbind(0), both_ways.unbind(0), totals.unbind(0), strict=True):
        if state is None:
            prior[0], prior[1] = initial, 1.0
        else:
            torch.bmm(state, matrices, out=prior)
        joint = likelihood.mul_(prior)
        torch.sum(joint, -1, keepdim=True, out=total)
        state = joint.div_(total)
    states = both_ways  # in whose memory they were made, to spare more of it

    before, after = priors[:, 0], priors[:, 1]  # of a frame, [T, B, K]; the second in reversed time
    logarithms = None
    if scores:
        logarithms = log_likelihoods.transpose(0, 1) + before.log() + _in_time(after, mirrored).log()
        logarithms = logarithms.masked_fill_(~real[..., None], 0.0).transpose(0, 1).contiguous()
    evidence = (largest + totals[:, 0, :, 0].log()).masked_fill_(~real, 0.0).sum(0)  # [B]
    forward, backward = states[:, 0], _in_time(states[:, 1], mirrored)  # normed p(state | x_1..t), g_t: [T, B, K]
    backward.masked_fill_(~real[..., None], 0.0)
    products = before.mul_(backward)  # in the memory of `before`, which is not read again
    scale = products.sum(-1, keepdim=True).masked_fill_(~real[..., None], 1.0)
    posteriors = zero_tiny_(products.div_(scale))
    statistics = None
    if count:
        earlier, later = forward[:-1].flatten(0, 1), backward.div_(scale)[1:].flatten(0, 1)
        # `later` is zero in padding; `earlier` holds no padding where `later` does not.
        first = posteriors[0].sum(0) if num_frames else torch.zeros_like(initial)
        statistics = TransitionStatistics(first, transitions * (earlier.T @ later))
    return ClipPosteriors(posteriors.transpose(0, 1).contiguous(), evidence, statistics, logarithms)


def _times(batch_size: int, num_frames: int, lengths: torch.Tensor | None, device: torch.device):
    """Which frames are real, `(T, B)`, and where each stands in its reversed clip `(T, B)`."""
    time = torch.arange(num_frames, device=device)[:, None]
    if lengths is None:
        lengths = torch.full((batch_size,), num_frames, device=device)
    lengths = lengths.to(device)
    real = time < lengths
    return real, torch.where(real, lengths - 1 - time, time)


def _in_time(frames: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Frames `(T, B, K)` in the order of `index`, `(T, B)`."""
    return frames[index, torch.arange(frames.shape[1], device=frames.device)]


def _scaled_likelihoods(log_likelihoods: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Likelihoods beside the largest of their frame, 1 in padding, and the logarithm of that largest one."""
    largest = log_likelihoods.amax(-1, keepdim=True)
    scaled = zero_tiny_((log_likelihoods - largest).exp_())
    return torch.where(real, scaled, 1.0), largest[..., 0]


def _check(log_likelihoods, initial, transitions, lengths) -> None:
    shape, size = tuple(log_likelihoods.shape), len(initial)
    if (
        len(shape) != 3
        or shape[-1] != size
        or transitions.shape != (size, size)
        or (lengths is not None and lengths.shape != shape[:1])
    ):
        raise ValueError(
            "`log_likelihoods` must have shape (batch_size, sequence_length, num_states), `initial` (num_states,),"
            " `transitions` (num_states, num_states) and `lengths` (batch_size,), but they have"
            f" {shape}, {tuple(initial.shape)}, {tuple(transitions.shape)} and"
            f" {None if lengths is None else tuple(lengths.shape)}."
        )


class TransitionModel(Float32Buffers):
    """
    Transitions between the `num_states` components of a mixture, which make it a hidden Markov model.

    A new one knows nothing of order, nor of weights: every state follows every other equally often.

    Args:
        num_states (`int`): K.

    Buffers (persistent, fp32 also after `model.half()`):
        initial (`(K,)`): share of clips that begin in each state.
        pairs (`(K, K)`): share that a step from the state of the row to that of the column has of all steps.
    """

    initial: torch.Tensor
    pairs: torch.Tensor

    def __init__(self, num_states: int):
        super().__init__()
        self.num_states = num_states
        as_fp32 = {"dtype": torch.float32}
        self.register_buffer("initial", torch.full((num_states,), 1 / num_states, **as_fp32))
        self.register_buffer("pairs", torch.full((num_states, num_states), num_states**-2, **as_fp32))

    def extra_repr(self) -> str:
        return f"num_states={self.num_states}"

    def probabilities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Initial probabilities `(K,)` and transitions `(K, K)`, smoothed: `SMOOTHING` more is counted, spread evenly
        over all states and steps. A state that is hardly ever left has nearly uniform transitions.
        """
        initial = self.initial + SMOOTHING / self.num_states
        pairs = self.pairs + SMOOTHING / self.num_states**2
        return initial / initial.sum(), pairs / pairs.sum(1, keepdim=True)

    def expectation(
        self,
        log_likelihoods: torch.Tensor,
        lengths: torch.Tensor | None = None,
        count: bool = True,
        scores: bool = False,
    ) -> ClipPosteriors:
        """
        Posteriors of a batch under its whole clips, and the expected counts: the E-step of Baum-Welch.

        Args: see [`forward_backward`]; a mixture gives them by [`HmmMixture.log_likelihoods`].
        """
        return forward_backward(log_likelihoods, *self.probabilities(), lengths, count, scores)

    @torch.no_grad()
    def make_independent(self, weights: torch.Tensor) -> None:
        """
        Make states independent of one another: each follows any other by its weight, `(num_states,)`. Posteriors are
        then those of the mixture, and expected counts those of its posteriors at consecutive frames.
        """
        self.initial.copy_(weights)
        self.pairs.copy_(weights[:, None] * weights)

    @torch.no_grad()
    def split(self, heavy: torch.Tensor, dead: torch.Tensor) -> None:
        """
        Put each of the dead states in the place of one half of a heavy one: what follows it is what follows that one,
        and it is entered half of the times. But for `SMOOTHING`, paths through both are as probable as those through
        the heavy one were; what was known of the dead is lost.

        Args:
            heavy, dead (`torch.LongTensor` of shape `(num_splits,)`): states, each at most once.
        """
        origin, share = torch.arange(self.num_states, device=heavy.device), torch.ones_like(self.initial)
        origin[dead] = heavy
        share[heavy] = share[dead] = 0.5
        initial, pairs = self.initial[origin] * share, self.pairs[origin][:, origin] * share[:, None] * share
        self.initial.copy_(initial / initial.sum())
        self.pairs.copy_(pairs / pairs.sum())

    @torch.no_grad()
    def apply_statistics(self, statistics: TransitionStatistics, decay: float = 0.0) -> None:
        """
        The M-step of Baum-Welch, from statistics that may be summed over micro-batches and ranks.

        Args:
            statistics (`TransitionStatistics`): without any step (or clip) in them they change nothing.
            decay (`float`, *optional*, defaults to 0.0): how much of the old statistics stays.

        Raises:
            ValueError: if `decay` is not in [0, 1].
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"`decay` is {decay}; it must lie between 0 and 1.")
        for buffer, counts in zip((self.initial, self.pairs), statistics, strict=True):
            total = counts.sum()
            share = counts / total.clamp_min(torch.finfo(torch.float32).tiny)
            buffer.copy_(torch.where(total == 0, buffer, buffer.lerp(share.to(buffer.dtype), 1 - decay)))
