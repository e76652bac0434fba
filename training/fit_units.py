"""Fit clusters to layers of any encoder, HuBERT for one, to make units of them.

    python -m training.fit_units facebook/hubert-base-ls960 --data my_audio/ --layers 6 --output hubert-l6
    python -m training.units hubert-l6 --data my_audio/ --output units

The folder names the encoder, its revision and a hash of its weights, the layers and the number of clusters; another
encoder is refused when it is opened. Clips are drawn at random until there are `--frames` frames.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import transformers

from sjepa_hf.command import command
from sjepa_hf.fitted_units import FittedUnits
from sjepa_hf.saving import visible_in
from sjepa_hf.writable import check_output_directory
from training.common.command_line import parse_dataclasses
from training.common.device import default_device
from training.common.progress import Heartbeat
from training.common.ranges import check_enough_frames, check_ranges
from training.data.bad_audio import BadAudioMonitor
from training.data.order import ClipIndex
from training.data.permutation import Permutation
from training.data.sources import open_source
from training.data.waveforms import BadAudio


logger = logging.getLogger(__name__)


@dataclass
class FitArguments:
    """Which clusters, fitted to what."""

    data: list[str] = field(metadata={"help": "Sources, as in pretraining; not streamed."})
    layers: list[int] = field(metadata={"help": "Layers whose mean is clustered, numbered as in hidden_states."})
    output: str = field(metadata={"help": "The folder to write; it must not be there."})
    components: int = field(default=500, metadata={"help": "Clusters."})
    method: Literal["kmeans", "mixture"] = field(default="kmeans", metadata={"help": "k-means, or Gaussians by EM."})
    frames: int = field(default=200_000, metadata={"help": "Frames to fit to."})
    revision: str | None = field(default=None, metadata={"help": "Of an encoder on the Hub."})
    audio_column: str | None = field(default=None, metadata={"help": "Column with the audio in Parquet and Hub data."})
    max_seconds: float = field(default=30.0, metadata={"help": "Longer clips are cropped to this."})
    seed: int = field(default=0, metadata={"help": "Seed of clips and clusters."})

    def __post_init__(self):
        check_ranges(self, at_least_2="components frames", a_frame="max_seconds", seed="seed")
        check_enough_frames(self.frames, self.components)


def waveforms(arguments: FitArguments) -> Iterator[np.ndarray]:
    """
    The clips of all sources in random order, `(num_samples,)` each, without those that cannot be used.

    Raises:
        ValueError: if a source cannot be opened.
        BadAudioError: if too many clips cannot be used, or none can.
    """
    sources = [open_source(spec, audio_column=arguments.audio_column) for spec in arguments.data]
    index, monitor = ClipIndex(sources, None, arguments.seed), BadAudioMonitor()
    order = Permutation(index.size, arguments.seed)
    for place in range(index.size):  # not all at once: lists can be long
        number = int(order(np.array([place]))[0])
        clip = index.get(number)
        try:
            samples = clip.read(max_seconds=arguments.max_seconds, rng=[arguments.seed, number])
        except BadAudio as error:
            monitor.update(0, [(clip.name, error.reason)])
            monitor.check()
            continue
        monitor.update(1, [])
        yield samples
    monitor.check(end_of_data=True, whole=True)


@command
def main(argv: list[str] | None = None) -> None:
    transformers.logging.set_verbosity_error()
    arguments, rest = parse_dataclasses(
        (FitArguments,),
        argv,
        "Clusters over layers of any encoder.",
        checkpoint=dict(help="What AutoModel opens: a directory or Hub name."),
    )
    there = Path(arguments.output)
    is_empty_folder = there.is_dir() and not any(visible_in(there))
    if os.path.lexists(there) and not is_empty_folder:
        raise ValueError(f"{arguments.output} is there already: name a folder that is not there.")
    check_output_directory(there, "output")
    with Heartbeat("reading frames and fitting"):
        units = FittedUnits.fit(
            rest.checkpoint,
            waveforms(arguments),
            arguments.layers,
            arguments.components,
            arguments.method,
            arguments.frames,
            arguments.seed,
            default_device(),
            **({"revision": arguments.revision} if arguments.revision else {}),
        )
    units.save_pretrained(arguments.output)
    print(f"{arguments.output}: {arguments.components} clusters of {units.description['frames']:,} frames")


if __name__ == "__main__":
    main()
