"""Measure what targets know of phones, before anything is trained on them.

    python -m training.target_information runs/mine/final --train_data my_audio/ --data aligned/ --components 500

For every way to aim training (the frame features of phase 1; each layer, plain and normalised by clip, and the mean of
all layers normalised by clip, as phase 2 would see them) a mixture is fitted to frames of `--train_data`, as training
fits it. The mixtures of frame features are looked at under whole clips too, their components being the states of a
hidden Markov model whose transitions are counted on `--train_data` ("given the clip"), then re-estimated twice by
Baum-Welch. The posteriors on the aligned clips give, in one table,

soft, hard   mutual information of component and phone as a share of the phones' entropy, from posteriors as they are
             and from their largest component alone (1: all); `hard` is what others call PNMI. In brackets what they
             would be said to know of the phones of other clips: of few frames that is much (hard, 500 components: 0.6
             of 1,000 frames, 0.06 of 50,000);
entropy      of the posteriors, in bits;
components   that are really used: 2 to the entropy of their mean posterior, in bits.

Compare at an equal number of components and on the same frames: more components, and fewer frames, always know more.
Phase 2 has something to gain once a row of the encoder lies clearly above the row that phase 1 was aimed at. The
encoder is read as it is, unmasked.
"""

import logging
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from tqdm.auto import tqdm

from sjepa_hf import DiagonalGaussianMixture, SJepaModel
from sjepa_hf.command import command
from sjepa_hf.frame_features import FRAME_FEATURES, num_features
from sjepa_hf.frames import SAMPLING_RATE
from sjepa_hf.hmm_mixture import HmmMixture
from sjepa_hf.opening import open_sjepa
from sjepa_hf.saving import write_text_aside
from sjepa_hf.scores import json_text, markdown_table
from sjepa_hf.writable import check_output_file
from training.common.command_line import parse_dataclasses
from training.common.processes import Coordinator
from training.common.progress import Heartbeat
from training.common.ranges import check_enough_frames, check_ranges
from training.common.signals import Interrupted
from training.data.batches import to_device
from training.data.labelled import LabelledClips, open_labelled
from training.evaluation.layer_features_of_clips import readable_clips
from training.evaluation.phone_information import Information, JointCounts, number_phones, of_other_clips
from training.targets.layer_choice import LayerChoice
from training.targets.sampling import FitAudio, sample_frames
from training.targets.targets import FrozenTargets, OnlineTargets, fit_mixture
from training.targets.transitions import fit_transitions


logger = logging.getLogger(__name__)

BAUM_WELCH = 2  # rounds after which targets under whole clips are measured again


@dataclass
class InformationArguments:
    """Which targets, fitted to what, measured on what."""

    train_data: list[str] = field(metadata={"help": "Sources that the mixtures are fitted to; labels are not read."})
    data: list[str] = field(metadata={"help": "Labelled sources with columns phones and phone_ends."})
    components: list[int] = field(default_factory=lambda: [500], metadata={"help": "Sizes of mixture."})
    dims: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "Whitened principal components of the encoder's features; 0: all of it as it is."},
    )
    frames: int = field(default=100_000, metadata={"help": "Frames that each mixture is fitted to."})
    em_iterations: int = field(default=20, metadata={"help": "EM iterations of a fit."})
    max_clips: int | None = field(default=None, metadata={"help": "Aligned clips, drawn at random."})
    audio_column: str | None = field(default=None, metadata={"help": "Column with the audio in Parquet and Hub data."})
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})
    seed: int = field(default=0, metadata={"help": "Seed of clips, frames and fits."})

    def __post_init__(self):
        check_ranges(
            self,
            at_least_2="components frames em_iterations",
            at_least_1="max_clips",
            not_negative="dims",
            seed="seed",
        )
        check_enough_frames(self.frames, max(self.components, default=0))
        check_enough_frames(self.frames, max(self.dims, default=0), "dims")


def batch_of(samples: np.ndarray, seed: int) -> dict:
    """One clip as a batch."""
    return {
        "input_values": torch.from_numpy(samples)[None],
        "attention_mask": None,
        "lengths": torch.tensor([len(samples)]),
        "seconds": len(samples) / SAMPLING_RATE,
        "seed": seed,
    }


def random_batches(clips: LabelledClips, seed: int):
    """The clips in random order, one a batch; those that cannot be used are left out."""
    for index in np.random.default_rng(seed).permutation(len(clips)).tolist():
        example = clips[index]
        if example is not None:
            yield batch_of(example["input_values"], seed=seed + index)


def fit_audio(clips: LabelledClips, arguments: InformationArguments) -> FitAudio:
    """The clips, as what mixtures are fitted to."""
    return FitAudio(lambda: random_batches(clips, arguments.seed), Coordinator(Accelerator()))


class Candidate(NamedTuple):
    """One kind of target: its name and what makes it (a frame feature, or layers of the encoder)."""

    name: str
    frame_features: str | None = None
    layers: tuple[int, ...] = ()
    instance_norm: bool = False
    dims: int = 0


def candidates(num_layers: int, dims: list[int]) -> list[Candidate]:
    """Everything that is compared at one number of components."""
    found = [Candidate(name, frame_features=name) for name in FRAME_FEATURES]
    for size in dims:
        ending = f", {size} dims" if size else ""
        for layer in range(1, num_layers + 1):
            for normed in (False, True):
                name = f"layer {layer}{', by clip' if normed else ''}{ending}"
                found.append(Candidate(name, layers=(layer,), instance_norm=normed, dims=size))
        everything = tuple(range(1, num_layers + 1))
        found.append(Candidate(f"mean of layers, by clip{ending}", layers=everything, instance_norm=True, dims=size))
    return found


def fitted_targets(
    candidate: Candidate, encoder: SJepaModel, components: int, clips: LabelledClips, arguments: InformationArguments
) -> FrozenTargets | OnlineTargets:
    """Targets of one kind, their mixture fitted to random frames of the clips."""
    audio, seed = fit_audio(clips, arguments), arguments.seed
    fit = {"num_iterations": arguments.em_iterations}
    accelerator = audio.coordinator.accelerator
    device = accelerator.device
    if candidate.frame_features is not None:
        mixture = DiagonalGaussianMixture(components, num_features(candidate.frame_features)).to(device)
        targets = FrozenTargets(mixture, candidate.frame_features)
        sample = sample_frames(targets.features, audio, arguments.frames, seed, stop_when_full=True)
        fit_mixture(mixture, sample, seed, audio.coordinator, **fit)
        return targets
    targets = OnlineTargets(
        encoder,
        DiagonalGaussianMixture(components, candidate.dims or encoder.config.hidden_size).to(device),
        LayerChoice(candidate.layers[0]),
        accelerator,
        layers=candidate.layers,
        instance_norm=candidate.instance_norm,
        num_components=candidate.dims or None,
    )
    targets.seed(audio, arguments.frames, seed, **fit)
    return targets


def under_whole_clips(targets: FrozenTargets, clips: LabelledClips, arguments: InformationArguments):
    """
    What to call the targets once their mixture has been given transitions: these counted, and after `BAUM_WELCH`
    rounds more.
    """
    plain = targets.mixture
    mixture = HmmMixture(plain.num_components, plain.num_features).to(plain.means.device)
    mixture.load_state_dict(plain.state_dict(), strict=False)
    mixture.transitions.make_independent(mixture.weights)
    targets.mixture = mixture
    for passes, name in ((1, "given the clip"), (BAUM_WELCH, f"given the clip, {BAUM_WELCH} rounds")):
        fit_transitions(mixture, targets.features, fit_audio(clips, arguments), arguments.frames, passes)
        yield name


def measure(
    targets: FrozenTargets | OnlineTargets,
    clips: LabelledClips,
    phones: list[torch.Tensor],
    num_phones: int,
) -> Information:
    """Information of the targets on aligned clips, whose frames' phones are given as integers `(num_frames,)`."""
    counts = JointCounts(num_phones, targets.mixture.num_components)
    device = targets.mixture.means.device
    for index, (expected, others) in enumerate(zip(phones, of_other_clips(phones))):
        batch = to_device(batch_of(clips[index]["input_values"], seed=0), device)
        counts.add(expected, others, targets.posteriors(batch)[0, : len(expected)])
    return counts.result()


def run(checkpoint: str, arguments: InformationArguments, heartbeat: Heartbeat) -> list[dict]:
    """
    Figures of every kind of target, one dict a row of the table.

    Raises:
        ValueError: if the checkpoint or a source cannot be opened, or alignments are broken.
        BadAudioError: if too much audio cannot be used.
    """
    encoder = open_sjepa(SJepaModel, checkpoint).eval().to(Accelerator().device)
    most, size = max(arguments.dims, default=0), encoder.config.hidden_size
    if most > size:
        raise ValueError(f"`dims` has {most}, but the encoder's features have {size} dimensions.")
    unlabelled = open_labelled(arguments.train_data, (), audio_column=arguments.audio_column)
    aligned = open_labelled(arguments.data, ("phones", "phone_ends"), audio_column=arguments.audio_column)
    aligned, frame_counts = readable_clips(aligned, arguments.max_clips, arguments.seed)
    known, phones = number_phones(aligned, frame_counts)
    logger.info(
        "Mixtures are fitted to %d frames of %d clips (%.2f h) and measured on %d frames of %d aligned clips with %d"
        " phones.",
        arguments.frames,
        len(unlabelled),
        unlabelled.hours,
        sum(map(len, phones)),
        len(aligned),
        len(known),
    )
    rows = []
    for components in arguments.components:
        bar = tqdm(candidates(encoder.config.num_hidden_layers, arguments.dims), leave=False, disable=None)
        for candidate in bar:
            heartbeat.doing = f"{components} components, {candidate.name}"
            bar.set_description(heartbeat.doing)
            try:
                targets = fitted_targets(candidate, encoder, components, unlabelled, arguments)
            except Interrupted as stop:  # what ends a run of training in order is an error here
                raise stop.__cause__ from None
            names = [candidate.name]
            if candidate.frame_features is not None:
                clipwise = under_whole_clips(targets, unlabelled, arguments)
                names = chain(names, (f"{candidate.name}, {ending}" for ending in clipwise))
            for name in names:
                information = measure(targets, aligned, phones, len(known))
                rows.append({"targets": name, "components": components, **information._asdict()})
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = []
    for row in rows:
        shares = [f"{row[name]:.3f} ({row[f'{name}_chance']:.3f})" for name in ("soft", "hard")]
        figures = [f"{row['entropy_bits']:.2f}", f"{row['components_used']:.0f}"]
        lines.append([row["targets"], str(row["components"]), *shares, *figures])
    return markdown_table(["targets", "K", "soft", "hard", "entropy, bits", "components used"], lines)


@command
def main(argv: list[str] | None = None) -> None:
    transformers.logging.set_verbosity_error()
    arguments, rest = parse_dataclasses(
        (InformationArguments,),
        argv,
        "What targets know of phones, before anything is trained on them.",
        checkpoint=dict(help="An S-JEPA checkpoint: a directory or Hub name."),
    )
    if arguments.output:
        check_output_file(arguments.output, "output")
    with Heartbeat("opening the data") as heartbeat:
        rows = run(rest.checkpoint, arguments, heartbeat)
    if arguments.output:
        text = json_text({"checkpoint": rest.checkpoint, "rows": rows}, 1) + "\n"
        write_text_aside(arguments.output, text)
    print(table(rows))


if __name__ == "__main__":
    main()
