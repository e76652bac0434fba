"""Analyze a checkpoint: entropy, an utterance in time, effective rank, hidden frames.

    python -m training.analyze runs/mine/final --data test/ --output analysis
    python -m training.analyze runs/mine/final --data aligned/ --utterance LJ001-0002.opus --only utterance \
        --transcript transcription --phones --output analysis

entropy    of the prediction at every frame of some 500 clips, in bits, without masking. Bimodal if Hartigan's dip
           refutes a single mode (p < 0.05) and two Gaussians part cleanly (Ashman's D > 2).
utterance  one clip in time: spectrogram, phones, most likely cluster, three largest posteriors, entropy.
rank       effective rank of every layer over 2,000 random frames, beside the same encoder with fresh weights.
hidden     (with --phones) what the prediction knows of the phone at hidden frames, by distance to the nearest visible
           one: mutual information as a share of the phones' entropy, from posteriors as they are (soft) and from their
           largest component alone (hard), and the KL from the targets of phase 1. Flat: the context is not read.
           Frames are hidden as in the checkpoint's training.

Writes `analysis.json`, `entropy.png`, `utterance.png` and `rank.png`. Layers are numbered as in `hidden_states`: 0
is what enters the first Transformer layer.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from tqdm.auto import tqdm
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.cluster_pictures import draw_clusters, order_clusters
from sjepa_hf.command import command
from sjepa_hf.contents import RECORD, read_json
from sjepa_hf.frames import SAMPLING_RATE, WINDOW, frame_centres
from sjepa_hf.measures import effective_rank, entropy_bits
from sjepa_hf.opening import file_of, open_config, open_feature_extractor, open_pretraining
from sjepa_hf.saving import files_written_aside
from sjepa_hf.scores import UNTRAINED, json_text
from training.common.command_line import parse_dataclasses
from training.common.device import default_device
from training.common.figures import caption, draw_entropy, save
from training.common.progress import Heartbeat
from training.common.ranges import check_ranges
from training.data.labelled import LabelledClips, open_labelled
from training.data.masking import SpanMask
from training.data.waveforms import BadAudio, read_audio
from training.evaluation.alignment import read_alignment
from training.evaluation.bimodality import dip_test, two_gaussians
from training.evaluation.encoders import open_encoder
from training.evaluation.layer_features_of_clips import Rows, features_at, features_of_layers, readable_clips
from training.evaluation.phone_information import number_phones
from training.evaluation.phones_at_hidden_frames import hidden_frame_table, knowledge_at_hidden_frames
from training.pretraining.other_pretraining import load_other


ANALYSES = ("entropy", "utterance", "rank", "hidden")
MARKS = (0.5, 1.0, 2.0)  # bits

Predictor = Callable[[np.ndarray], np.ndarray]
"""Samples `(num_samples,)` at 16 kHz -> posteriors `(num_frames, num_components)` in float32, without masking."""


@dataclass
class AnalysisArguments:
    """What is analysed, on which clips."""

    data: list[str] = field(
        metadata={"help": "Sources: folders of audio, JSONL manifests, Parquet, Hub data sets. Best held-out ones."}
    )
    output: str = field(default="analysis", metadata={"help": "Where analysis.json and the pictures go."})
    only: list[str] | None = field(
        default=None,
        metadata={"help": "Some of entropy, utterance, rank, hidden; without it, all that the data allow."},
    )
    utterance: str | None = field(
        default=None,
        metadata={
            "help": "Number of a clip of the data, the end of its file name, or another audio file. Default: the "
            "first clip that can be read."
        },
    )
    transcript: str | None = field(default=None, metadata={"help": "Column of the data with transcripts."})
    phones: bool = field(default=False, metadata={"help": "The data has columns phones and phone_ends."})
    mask_prob: float | None = field(
        default=None,
        metadata={"help": "Share of frames that are hidden, for hidden. Default: that of training, else 0.65."},
    )
    mask_span: int | None = field(
        default=None, metadata={"help": "Frames per hidden span. Default: that of training, else 10."}
    )
    max_clips: int = field(default=500, metadata={"help": "Clips, drawn at random, for entropy, rank and hidden."})
    rank_frames: int = field(default=2000, metadata={"help": "Random frames over which ranks are measured."})
    audio_column: str | None = field(default=None, metadata={"help": "Column with the audio in Parquet and Hub data."})
    seed: int = field(default=0, metadata={"help": "Seed of clips, frames and untrained weights."})

    def __post_init__(self):
        unknown = [name for name in self.only or () if name not in ANALYSES]
        if unknown:
            raise ValueError(f"`only` has '{unknown[0]}': choose among {', '.join(ANALYSES)}.")
        if "hidden" in (self.only or ()) and not self.phones:
            raise ValueError(
                "`only` has 'hidden', which needs phones in time: give data with the columns phones and phone_ends,"
                " and --phones."
            )
        check_ranges(
            self, at_least_1="max_clips rank_frames mask_span", positive="mask_prob", share="mask_prob", seed="seed"
        )


class Utterance(NamedTuple):
    """One clip to look at: samples `(num_samples,)`, and what is written on it (empty where nothing is)."""

    name: str
    samples: np.ndarray
    transcript: str = ""
    phones: tuple[str, ...] = ()
    phone_ends: np.ndarray | None = None


def open_head(checkpoint: str, device: str) -> SJepaForPreTraining:
    """
    The model of pretraining, on a device and without dropout.

    Raises:
        ValueError: if the checkpoint cannot be opened or holds no pretraining head.
    """
    config = open_config(checkpoint)
    model = open_pretraining(checkpoint) if config.model_type == "sjepa" else load_other(checkpoint, config)
    if model is None:
        raise ValueError(
            f"{checkpoint} holds no S-JEPA pretraining head, which entropy and utterance need: give a checkpoint of"
            " pretraining, or measure ranks alone with --only rank."
        )
    return model.eval().to(device)


def predictor_of(model: SJepaForPreTraining, checkpoint: str) -> tuple[Predictor, np.ndarray]:
    """
    The cluster head's posteriors over an unmasked clip, and the clusters' order, that of
    [`~sjepa_hf.cluster_pictures.order_clusters`].

    Raises:
        ValueError: if the checkpoint's feature extractor cannot be opened, or does not take waveforms at 16 kHz.
    """
    extractor = open_feature_extractor(checkpoint)

    @torch.inference_mode()
    def predict(samples: np.ndarray) -> np.ndarray:
        inputs = extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_values
        return model(inputs.to(model.device)).logits[0].float().softmax(-1).cpu().numpy()

    return predict, order_clusters(model.mixture.means)


def bits(posteriors: np.ndarray) -> np.ndarray:
    """Entropy in bits of posteriors `(num_frames, num_components)`: `(num_frames,)`."""
    return entropy_bits(torch.from_numpy(posteriors)).numpy()


def mask_of_training(checkpoint: str, prob: float | None, span: int | None) -> SpanMask:
    """
    How frames are hidden: as asked, or else as the checkpoint's training.json says, or else as published.

    Raises:
        ValueError: if what is not asked for cannot be looked up, or is no mask.
    """
    trained = {}
    if prob is None or span is None:
        record = file_of(checkpoint, RECORD)
        trained = read_json(record).get("settings", {}) if record else {}
    published = SpanMask()
    return SpanMask(
        trained.get("mask_prob", published.prob) if prob is None else prob,
        trained.get("mask_span", published.span) if span is None else span,
    )


def analyze_entropy(predict: Predictor, clips: LabelledClips, seed: int, path: Path) -> dict:
    """Figures of the predictor's entropy over all frames of the clips, and their histogram into `path`."""
    found, num_components = [], 0
    for clip in tqdm(range(len(clips)), desc="entropy", leave=False, disable=None):
        posteriors = predict(clips[clip]["input_values"])
        num_components = posteriors.shape[1]
        found.append(bits(posteriors))
    entropy = np.concatenate(found)
    draw_entropy(entropy, num_components, path)
    test, fit = dip_test(entropy, seed=seed), two_gaussians(entropy, seed=seed)
    return {
        "clips": len(clips),
        "frames": len(entropy),
        "components": num_components,
        "mean_bits": float(entropy.mean()),
        "quartiles_bits": np.quantile(entropy, (0.25, 0.5, 0.75)).tolist(),
        "largest_bits": float(entropy.max()),
        "share_above": {f"{mark:g}": float((entropy > mark).mean()) for mark in MARKS},
        "bimodal": test["p_value"] < 0.05 and fit["ashman_d"] > 2,  # more than one mode, and well apart
        "dip_test": test,
        "two_gaussians": fit,
    }


def analyze_rank(checkpoint: str, clips: LabelledClips, frame_counts: np.ndarray, count: int, seed: int, path: Path):
    """Effective rank of each layer over `count` random frames, trained and untrained, and their picture."""
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(frame_counts.sum())[:count])
    starts = np.cumsum(frame_counts) - frame_counts
    owners = np.searchsorted(starts, drawn, side="right") - 1
    rows = {"frames": Rows(owners, drawn - starts[owners])}
    ranks = {}
    for kind, name in (("trained", checkpoint), ("untrained", UNTRAINED + checkpoint)):
        encoder = open_encoder(name, default_device(), untrained_seed=seed)
        layers = features_at(features_of_layers(encoder), clips, rows, f"rank, {kind}")["frames"]
        ranks[kind] = [effective_rank(torch.from_numpy(features)).item() for features in layers]
    draw_ranks(ranks, layers.shape[2], len(drawn), path)
    return {"frames": len(drawn), "features": layers.shape[2], **ranks}


def find_utterance(clips: LabelledClips, wanted: str | None) -> Utterance:
    """
    The clip with that number, or whose file name ends so, or else that audio file; `None` is the first readable clip.

    Raises:
        ValueError: if there is none, or its audio cannot be read.
    """
    if wanted is None:
        index = next((i for i in range(len(clips)) if clips[i] is not None), None)
        if index is None:
            raise ValueError("No clip of the data can be read; the log names them.")
    else:
        index = int(wanted) if wanted.isdigit() else None
    if index is None:
        index = next((i for i in range(len(clips)) if clips.clip(i).name.endswith(wanted)), None)
        if index is None and Path(wanted).is_file():
            return Utterance(Path(wanted).name, samples_of(wanted, lambda: read_audio(wanted)))
    if index is None or index >= len(clips):
        raise ValueError(
            f"`utterance` is '{wanted}': neither a number below {len(clips)}, nor the end of a file name in the data,"
            " nor an audio file."
        )
    clip = clips.clip(index)
    phones, ends = read_alignment(clips, index) if "phones" in clips.labels else ((), None)
    transcript = next((text[index] for name, text in clips.labels.items() if name not in ("phones", "phone_ends")), "")
    return Utterance(Path(clip.name).name, samples_of(clip.name, clip.read), transcript, tuple(phones), ends)


def samples_of(name: str, read: Callable[[], np.ndarray]) -> np.ndarray:
    """What `read` reads. Raises a ValueError with the clip's name if it cannot."""
    try:
        return read()
    except BadAudio as error:
        raise ValueError(f"`utterance` {name} cannot be read: {error.reason}.") from None


def analyze_utterance(predict: Predictor, places: np.ndarray, utterance: Utterance, path: Path) -> dict:
    """Clusters, posteriors and entropy of one clip in time, drawn into `path`."""
    posteriors = predict(utterance.samples)
    draw_utterance(utterance, posteriors, places, path)
    clusters = posteriors.argmax(1)
    return {
        "name": utterance.name,
        "seconds": len(utterance.samples) / SAMPLING_RATE,
        "transcript": utterance.transcript,
        "clusters": clusters.tolist(),
        "changes_per_second": float((np.diff(clusters) != 0).sum() * SAMPLING_RATE / len(utterance.samples)),
        "mean_bits": float(bits(posteriors).mean()),
    }


def draw_ranks(ranks: dict[str, list[float]], num_features: int, num_frames: int, path: Path) -> None:
    """Effective rank of each layer, trained and untrained."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (name, values), style, colour in zip(ranks.items(), ("o-", "o--"), ("C0", "0.5")):
        axes.plot(values, style, color=colour, ms=4, label=name)
    axes.set(
        xlabel="layer (0: Transformer input)",
        ylabel=f"effective rank (at most {min(num_features, num_frames - 1)})",
        title=f"Effective rank over {num_frames:,} frames",
    )
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    save(figure, path)


def draw_utterance(utterance: Utterance, posteriors: np.ndarray, places: np.ndarray, path: Path) -> None:
    """
    Spectrogram, phones, clusters, three largest posteriors and entropy over seconds.

    Args:
        utterance: the clip.
        posteriors: `(num_frames, num_components)`.
        places: `(num_components,)`, the clusters' order, by which they are coloured.
        path: of the PNG.
    """
    seconds = len(utterance.samples) / SAMPLING_RATE
    aligned = utterance.phone_ends is not None and len(utterance.phones) > 0
    heights = [3, 0.9, 0.6, 1.6, 1.6] if aligned else [3, 0.6, 1.6, 1.6]
    width = float(np.clip(2 + 1.7 * seconds, 9, 40))
    figure, axes = plt.subplots(
        len(heights), 1, sharex=True, figsize=(width, 8.5), layout="constrained", height_ratios=heights
    )
    panels = iter(axes)
    _draw_spectrogram(next(panels), utterance.samples)
    if aligned:
        _draw_phones(next(panels), utterance)
    strip = next(panels)
    draw_clusters(strip, posteriors.argmax(1), places, 0.85 * width / seconds)
    strip.set(ylabel="cluster")
    strip.text(1.012, 0.5, "like colours:\nlike clusters", transform=strip.transAxes, va="center", fontsize=8)
    _draw_posteriors(next(panels), posteriors)
    _draw_entropy_in_time(next(panels), bits(posteriors), np.log2(posteriors.shape[1]))
    if aligned:
        for panel in axes[2:]:
            panel.vlines(utterance.phone_ends, 0, 1, transform=panel.get_xaxis_transform(), color="0.75", lw=0.5)
    axes[-1].set(xlabel="seconds", xlim=(0, seconds))
    columns = int(13 * width)
    text = textwrap.fill(caption(utterance.transcript, 4 * columns), columns)
    name = caption(utterance.name, 80)
    figure.suptitle(f"{name}\n{text}" if text else name, fontsize=10)
    save(figure, path)


def _draw_spectrogram(panel, samples: np.ndarray) -> None:
    mel_filters = mel_filter_bank(257, 80, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE, mel_scale="htk")
    window = window_function(WINDOW, "hann")
    mel = spectrogram(samples, window, WINDOW, 160, fft_length=512, power=2.0, mel_filters=mel_filters)
    decibels = 10 * np.log10(mel.clip(1e-10))  # [80, 10 ms frames]
    top = decibels.max()
    edge = 80 / SAMPLING_RATE  # half a hop: frames are centred on multiples of it
    extent = (-edge, decibels.shape[1] * 0.01 - edge, 0, 80)
    panel.imshow(decibels, origin="lower", aspect="auto", extent=extent, vmin=top - 70, vmax=top, cmap="magma")
    kilohertz = np.array([0.5, 1, 2, 4, 8])
    bands = 80 * np.log1p(kilohertz / 0.7) / np.log1p(8 / 0.7)  # the mel scale of the bands
    panel.set(ylabel="frequency (kHz)", yticks=bands, yticklabels=[f"{k:g}" for k in kilohertz])


def _draw_phones(panel, utterance: Utterance) -> None:
    """Phones between their ends, on three lines in turn so that short ones do not touch; silences grey."""
    start, spoken = 0.0, 0
    for phone, end in zip(utterance.phones, utterance.phone_ends):
        silent = phone in ("sil", "sp", "spn", "")
        if silent:
            panel.axvspan(start, end, color="0.9", lw=0)
        else:
            height, spoken = (0.8, 0.5, 0.2)[spoken % 3], spoken + 1
            panel.text((start + end) / 2, height, caption(phone), ha="center", va="center", fontsize=7, clip_on=True)
        start = end
    panel.vlines(utterance.phone_ends, 0, 1, color="0.6", lw=0.5)
    panel.set(ylabel="phones", yticks=[], ylim=(0, 1))


def _draw_posteriors(panel, posteriors: np.ndarray) -> None:
    largest = -np.sort(-posteriors, axis=1)[:, :3]
    labels = ("largest", "second", "third")
    panel.stackplot(frame_centres(len(largest)), largest.T, labels=labels, colors=("C0", "#7fb2dc", "#cfe2f2"), lw=0)
    panel.set(ylabel="posterior\n(probability)", ylim=(0, 1))
    panel.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)


def _draw_entropy_in_time(panel, entropy: np.ndarray, most: float) -> None:
    panel.plot(frame_centres(len(entropy)), entropy, color="C3", lw=1)
    for mark in MARKS:
        panel.axhline(mark, color="0.6", ls=":", lw=0.8)
    panel.set(ylabel=f"entropy (bits,\nat most {most:.1f})", ylim=(0, max(1.05 * entropy.max(), 2.1)))


def report(results: dict) -> str:
    """The figures in sentences."""
    lines = []
    if "entropy" in results:
        found = results["entropy"]
        test, fit = found["dip_test"], found["two_gaussians"]
        shares = ", ".join(f"{100 * share:.1f} % above {mark}" for mark, share in found["share_above"].items())
        low, high = fit["means"]
        lines += [
            f"Predictor entropy, {found['frames']:,} frames of {found['clips']} clips, {found['components']} clusters:"
            f" mean {found['mean_bits']:.2f} bits, {shares}.",
            f"{'Bimodal' if found['bimodal'] else 'Not bimodal'}: dip {test['dip']:.4f} over {test['sample_size']}"
            f" frames, p = {test['p_value']:.3f} for a single mode; two Gaussians: {100 * fit['weights'][0]:.0f} % at"
            f" {low:.2f} and {100 * fit['weights'][1]:.0f} % at {high:.2f} bits, Ashman's D {fit['ashman_d']:.2f}.",
        ]
    if "utterance" in results:
        found = results["utterance"]
        lines.append(
            f"{found['name']}: {found['changes_per_second']:.1f} changes of cluster a second, mean entropy"
            f" {found['mean_bits']:.2f} bits over {found['seconds']:.1f} s."
        )
    if "rank" in results:
        found = results["rank"]
        most = min(found["features"], found["frames"] - 1)
        for kind in ("trained", "untrained"):
            ranks = " ".join(f"{rank:.1f}" for rank in found[kind])
            lines.append(f"Effective rank by layer, {kind}: {ranks} (of {most}).")
    if "hidden" in results:
        share, span = results["mask_prob"], results["mask_span"]
        lines.append(f"Phones at hidden frames, {100 * share:.0f} % hidden in spans of {span}:")
        lines.append(hidden_frame_table(results["hidden"]))
    return "\n".join(lines)


def run(checkpoint: str, arguments: AnalysisArguments, directory: Path, heartbeat: Heartbeat) -> dict:
    """
    The analyses asked for; their pictures go into `directory`, their figures come back.

    Raises:
        ValueError: if something that an analysis needs is not there.
    """
    chosen = arguments.only or [name for name in ANALYSES if name != "hidden" or arguments.phones]
    results = {"checkpoint": checkpoint, "data": list(arguments.data), "seed": arguments.seed}
    model = predict = places = None
    if chosen != ["rank"]:
        model = open_head(checkpoint, default_device())
        predict, places = predictor_of(model, checkpoint)
    heartbeat.doing = "opening the data"
    labels = (arguments.transcript,) if arguments.transcript else ()
    labels += ("phones", "phone_ends") if arguments.phones else ()
    clips = open_labelled(arguments.data, (), optional=labels, audio_column=arguments.audio_column)
    if "utterance" in chosen:
        utterance = find_utterance(clips, arguments.utterance)
        results["utterance"] = analyze_utterance(predict, places, utterance, directory / "utterance.png")
    if set(chosen) - {"utterance"}:
        clips, frame_counts = readable_clips(clips, arguments.max_clips, arguments.seed)
    if "entropy" in chosen:
        heartbeat.doing = "measuring the entropy of the prediction"
        results["entropy"] = analyze_entropy(predict, clips, arguments.seed, directory / "entropy.png")
    if "rank" in chosen:
        heartbeat.doing = "measuring the rank of each layer"
        results["rank"] = analyze_rank(
            checkpoint, clips, frame_counts, arguments.rank_frames, arguments.seed, directory / "rank.png"
        )
    if "hidden" in chosen:
        heartbeat.doing = "measuring what is known of hidden frames"
        mask = mask_of_training(checkpoint, arguments.mask_prob, arguments.mask_span)
        results |= {"mask_prob": mask.prob, "mask_span": mask.span}
        known, phones = number_phones(clips, frame_counts)
        results["hidden"] = knowledge_at_hidden_frames(model, clips, phones, len(known), mask, arguments.seed)
    return results


@command
def main(argv: list[str] | None = None) -> None:
    transformers.logging.set_verbosity_error()
    arguments, rest = parse_dataclasses(
        (AnalysisArguments,),
        argv,
        "The paper's three analyses of a pretraining checkpoint, and its knowledge at hidden frames.",
        checkpoint=dict(help="What AutoModelForPreTraining opens: a directory or Hub name."),
    )
    with Heartbeat("opening the model") as heartbeat, files_written_aside(arguments.output) as aside:
        results = run(rest.checkpoint, arguments, aside, heartbeat)
        (aside / "analysis.json").write_text(json_text(results, 1) + "\n", encoding="utf-8")
        written = sorted(str(Path(arguments.output) / path.name) for path in aside.iterdir())
    print(report(results))
    print(f"\nwritten: {', '.join(written)}")


if __name__ == "__main__":
    main()
