"""Heads of SUPERB on a frozen encoder: a learned average of its layers, and a light network on top.

All heads take a list of features, one tensor per clip, and have `loss(features, targets)` and `predict(features)`.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from sjepa_hf.frames import FRAMES_PER_SECOND, length_mask
from training.evaluation.superb.tasks import HEAD_UNITS


class LayerSum(nn.Module):
    """
    Average of the layers, weighted by a softmax; all weigh the same at first.

    Args:
        num_layers: layers to average.
        statistics: mean and standard deviation, each `(num_layers, hidden_size)`, with which features are normed
            before; for MFCC, whose dimensions differ by orders of magnitude. SUPERB takes an encoder's as they are.
    """

    def __init__(self, num_layers: int, statistics: tuple[Tensor, Tensor] | None = None):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_layers))
        self.normed = statistics is not None
        if statistics is not None:
            self.register_buffer("mean", statistics[0])
            self.register_buffer("std", statistics[1])

    @property
    def weights(self) -> Tensor:
        return self.scores.softmax(-1)

    def forward(self, layers: Tensor) -> Tensor:
        """`(num_layers, ..., hidden_size)` -> `(..., hidden_size)`."""
        layers = layers.to(self.scores.device, torch.float32)
        if self.normed:
            shape = (len(self.scores), *(1,) * (layers.dim() - 2), -1)
            layers = (layers - self.mean.view(shape)) / self.std.view(shape)
        return torch.tensordot(self.weights, layers, dims=1)


class PooledHead(nn.Module):
    """
    Projection to 256, mean over the frames, one linear classifier for each label column.

    It reads each layer's mean `(num_layers, hidden_size)` in place of its frames: layer sum and projection are linear
    (the layers' weights add up to one), so that the mean may come first and the logits are the same.
    """

    def __init__(self, layer_sum: LayerSum, hidden_size: int, num_classes: list[int]):
        super().__init__()
        self.layer_sum = layer_sum
        self.num_classes = num_classes
        self.projector = nn.Linear(hidden_size, 256)
        self.classifier = nn.Linear(256, sum(num_classes))

    def logits(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Means `(num_layers, hidden_size)` of each clip -> logits `(batch_size, num_classes)` of each column."""
        pooled = self.layer_sum(torch.stack(features, dim=1))  # [B, H]
        return self.classifier(self.projector(pooled)).split(self.num_classes, dim=-1)

    def loss(self, features: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Sum over the columns of the cross-entropy; `targets` are class numbers `(num_columns,)` of each clip."""
        logits = self.logits(features)
        targets = torch.stack(targets).to(logits[0].device)
        return sum(nn.functional.cross_entropy(*pair) for pair in zip(logits, targets.unbind(-1)))

    @torch.no_grad()
    def predict(self, features: list[Tensor]) -> list[list[int]]:
        """The likeliest class of each column, for each clip."""
        return torch.stack([logits.argmax(-1) for logits in self.logits(features)], dim=-1).tolist()


class CtcHead(nn.Module):
    """
    Projection, in the recurrent head two bidirectional LSTM layers, linear, CTC; token 0 is the blank.

    Args:
        recurrent: projection to 1024 and LSTM layers of `units`, else projection to 256 and nothing between.
        augment: warp and mask the weighted sum in training (`spec_augment`).
        units: of the LSTM layers in each direction, and of the projection before them.
        stacked_frames: so many neighbouring frames are one to the head. More than one are projected to 256 and through
            a ReLU: from frames of 20 ms one at a time, a linear head reads hardly any phone off a small encoder.
    """

    def __init__(
        self,
        layer_sum: LayerSum,
        hidden_size: int,
        vocab_size: int,
        recurrent: bool,
        augment: bool = False,
        units: int = HEAD_UNITS["recurrent_ctc"],
        stacked_frames: int = 1,
    ):
        super().__init__()
        self.layer_sum = layer_sum
        self.augment = augment
        self.stacked_frames = stacked_frames
        self.projector = nn.Linear(hidden_size * stacked_frames, units if recurrent else 256)
        if stacked_frames > 1:
            self.projector = nn.Sequential(self.projector, nn.ReLU())
        self.rnn = None
        if recurrent:
            self.rnn = nn.LSTM(units, units, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
            self.dropout = nn.Dropout(0.2)  # behind the last layer, where nn.LSTM has none
        self.classifier = nn.Linear(2 * units if recurrent else 256, vocab_size)

    def logits(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """
        Hidden states `(num_layers, num_frames, hidden_size)` of each clip -> logits
        `(batch_size, num_frames, vocab_size)`, and the numbers of real frames `(batch_size,)` on the CPU; both of
        stacked frames, the last filled up with zeros.
        """
        frames = [self._stacked(self.layer_sum(states)) for states in features]
        lengths = torch.tensor([len(clip) for clip in frames])
        if self.training and self.augment:
            frames = [spec_augment(clip) for clip in frames]
        frames = self.projector(pad_sequence(frames, batch_first=True))
        if self.rnn is not None:
            packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
            frames = self.dropout(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])
        return self.classifier(frames), lengths

    def _stacked(self, frames: Tensor) -> Tensor:
        """`(num_frames, hidden_size)` -> `(num_frames / n, n * hidden_size)`, rounded up, for n `stacked_frames`."""
        missing = -len(frames) % self.stacked_frames
        return nn.functional.pad(frames, (0, 0, 0, missing)).reshape(-1, self.stacked_frames * frames.shape[-1])

    def loss(self, features: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Mean over the clips of the CTC loss per token; `targets` are token numbers `(num_tokens,)` of each clip."""
        logits, lengths = self.logits(features)
        return nn.functional.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            pad_sequence(targets, batch_first=True).to(logits.device),
            lengths,
            torch.tensor([len(target) for target in targets]),
            zero_infinity=True,
        )

    @torch.no_grad()
    def predict(self, features: list[Tensor]) -> list[list[int]]:
        """Greedy: the likeliest token of each frame, repeats and blanks left out."""
        logits, lengths = self.logits(features)
        best = logits.argmax(-1).cpu()
        found = [tokens[:length].unique_consecutive() for tokens, length in zip(best, lengths)]
        return [tokens[tokens != 0].tolist() for tokens in found]


class XVectorHead(nn.Module):
    """
    x-vectors: projection, five layers over 15 frames in all, mean and standard deviation over the frames, two linear
    layers; trained as a classifier of speakers whose cosine must lead by a margin (AM-softmax).

    Args:
        num_speakers: of the training clips.
        units: of all hidden layers but the fifth, which has about three times as many.
    """

    CONTEXT = 14  # frames that the layers take off a clip
    LONGEST = round(8 * FRAMES_PER_SECOND)  # frames of a clip that are trained on at once
    MARGIN, SCALE = 0.4, 30.0

    def __init__(self, layer_sum: LayerSum, hidden_size: int, num_speakers: int, units: int = HEAD_UNITS["xvector"]):
        super().__init__()
        self.layer_sum = layer_sum
        self.projector = nn.Linear(hidden_size, units)
        wide = round(units * 1500 / 512)
        sizes = ((units, 5, 1), (units, 3, 2), (units, 3, 3), (units, 1, 1), (wide, 1, 1))  # width, kernel, dilation
        layers = [
            part
            for width, kernel, dilation in sizes
            for part in (nn.Conv1d(units, width, kernel, dilation=dilation), nn.ReLU())
        ]
        self.frame_layers = nn.Sequential(*layers)
        self.embedding = nn.Linear(2 * wide, units)
        self.last = nn.Linear(units, units)
        self.speakers = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_speakers, units)))

    def embeddings(self, features: list[Tensor]) -> Tensor:
        """Hidden states `(num_layers, num_frames, hidden_size)` of each clip -> `(batch_size, units)`."""
        frames = [self.layer_sum(states) for states in features]
        lengths = torch.tensor([max(len(clip) - self.CONTEXT, 2) for clip in frames])  # 2: to have a deviation
        frames = pad_sequence(frames, batch_first=True)
        missing = max(0, self.CONTEXT + 2 - frames.shape[1])
        frames = self.projector(nn.functional.pad(frames, (0, 0, 0, missing))).transpose(1, 2)  # [B, U, T]
        frames = self.frame_layers(frames)  # [B, W, T - 14]
        real = length_mask(lengths, frames.shape[-1])[:, None].to(frames.device)
        lengths = lengths[:, None].to(frames.device)
        mean = (frames * real).sum(-1) / lengths
        squares = ((frames - mean[..., None]).square() * real).sum(-1) / (lengths - 1)
        return self.embedding(torch.cat([mean, squares.clamp_min(1e-10).sqrt()], dim=-1)).relu()

    def loss(self, features: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Mean over the clips, at most 8 s of each drawn at random; `targets` are speaker numbers `(1,)`."""
        starts = [int(torch.randint(max(1, x.shape[1] - self.LONGEST + 1), ())) for x in features]
        vectors = self.last(self.embeddings([x[:, n : n + self.LONGEST] for x, n in zip(features, starts)])).relu()
        targets = torch.cat(targets).to(vectors.device)
        cosines = nn.functional.normalize(vectors, dim=-1) @ nn.functional.normalize(self.speakers, dim=-1).T
        margins = self.MARGIN * nn.functional.one_hot(targets, cosines.shape[1])
        return nn.functional.cross_entropy(self.SCALE * (cosines - margins), targets)

    @torch.no_grad()
    def predict(self, features: list[Tensor]) -> list[Tensor]:
        """The first linear layer's values as an embedding with a norm of 1 of each whole clip, `(units,)`."""
        return list(nn.functional.normalize(self.embeddings(features), dim=-1).cpu())


class DiarizationHead(nn.Module):
    """
    Who of two speaks: one LSTM layer that reads forwards, and a linear layer with an output for each speaker.

    The loss does not care which output is whose: of both orders, the one that costs less counts.
    """

    def __init__(self, layer_sum: LayerSum, hidden_size: int, units: int = HEAD_UNITS["diarization"]):
        super().__init__()
        self.layer_sum = layer_sum
        self.rnn = nn.LSTM(hidden_size, units, batch_first=True)
        self.classifier = nn.Linear(units, 2)

    def logits(self, features: list[Tensor]) -> Tensor:
        """Hidden states `(num_layers, num_frames, hidden_size)` of each clip -> `(batch_size, longest, 2)`."""
        return self.classifier(self.rnn(pad_sequence([self.layer_sum(x) for x in features], batch_first=True))[0])

    def loss(self, features: list[Tensor], targets: list[Tensor]) -> Tensor:
        """Mean over the real frames of the cross-entropy; `targets` are 0 or 1, `(num_frames, 2)` of each clip."""
        logits = self.logits(features)
        targets = [at_length(x, clip.shape[1]) for x, clip in zip(targets, features)]
        real = pad_sequence([torch.ones(len(x)) for x in targets], batch_first=True).to(logits.device)
        targets = pad_sequence(targets, batch_first=True).to(logits.device)
        costs = [
            (nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").mean(-1) * real).sum(-1)
            for x in (targets, targets.flip(-1))
        ]
        return torch.minimum(*costs).sum() / real.sum()

    @torch.no_grad()
    def predict(self, features: list[Tensor]) -> list[Tensor]:
        """Logits `(num_frames, 2)` of each clip."""
        return [x[: clip.shape[1]].cpu() for x, clip in zip(self.logits(features), features)]


def at_length(activity: Tensor, length: int) -> Tensor:
    """Who speaks when, `(num_frames, 2)`, in as many frames as features have that come at another rate."""
    return activity[(torch.arange(length) + 0.5).mul(len(activity) / length).long()]


def spec_augment(frames: Tensor) -> Tensor:
    """
    SpecAugment (arXiv 1904.08779) of a clip's features `(num_frames, hidden_size)`, as s3prl's asr and snips have it:
    time warped by at most 5 frames, two spans of frames below 40 and four spans of dimensions set to zero. Those are
    below 50 of 768 dimensions, and in proportion where there are fewer or more. The warp is linear, not bicubic.
    """
    length, size = frames.shape
    if length > 10:
        centre = int(torch.randint(5, length - 5, ()))
        moved = int(torch.randint(centre - 4, centre + 6, ()).clamp(1, length - 1))
        pieces = zip(frames.split([centre, length - centre]), (moved, length - moved))
        frames = torch.cat(
            [nn.functional.interpolate(x.T[None], n, mode="linear", align_corners=False)[0].T for x, n in pieces]
        )
    hidden = torch.zeros(length, size, dtype=torch.bool)
    for rows, number, width in ((hidden, 2, 40), (hidden.T, 4, max(2, round(50 * size / 768)))):
        for _ in range(number):
            span = int(torch.randint(width, ()))
            start = int(torch.randint(max(1, len(rows) - span), ()))
            rows[start : start + span] = True
    return frames.masked_fill(hidden.to(frames.device), 0.0)
