"""A page to look and listen: what an S-JEPA checkpoint hears in speech that is recorded or uploaded.

    python model_cards/space/app.py                                # the weights of model_cards/tiny
    python model_cards/space/app.py --checkpoint runs/mine/final --asr runs/asr/final --examples clips/
    python model_cards/space/app.py --units units                  # what else sounds like a unit, in a whole corpus
    python model_cards/space/app.py --host 0.0.0.0 --port 8080

Without --checkpoint, the environment variable SJEPA_CHECKPOINT names it (SJEPA_ASR the one for transcripts,
SJEPA_EXAMPLES the folder of clips to try).
"""

import base64
import html
import io
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is sent anywhere

try:
    import gradio as gr
    import soundfile
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}: in the clone, `pip install --editable ".[page]"` installs them all.') from None
import transformers
from example_clips import find_examples
from listening import (
    MAX_SECONDS,
    Clip,
    Heard,
    Listener,
    read_clip,
    similarity,
)
from pictures import Picture, draw_clip, draw_ranks, draw_similarity
from segments import AROUND, Segment, joined, other_segments

from sjepa_hf.command import CommandParser, command
from sjepa_hf.contents import shown
from sjepa_hf.frames import SAMPLING_RATE
from sjepa_hf.units import UnitRun


if TYPE_CHECKING:  # it needs the whole package, which a Space does not have
    from unit_corpus import UnitCorpus


HERE = Path(__file__).parent
LARGEST_FILE = "2gb"
ZOOMS = {"whole": 1, "2 x": 2, "4 x": 4, "8 x": 8}  # how wide a clip is drawn
SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched
HOW_TO_READ = f"""
- **Log-mel spectrogram**: energy by time and pitch, on the mel scale, 70 dB from black to bright.
- **Units**: pretraining teaches the model to name, at each frame of 20 ms, the cluster of a Gaussian mixture that the
  sound belongs to. The strip is its first choice, with nothing masked. Clusters are coloured by the first principal
  component of their means: where colours are alike, so are the sounds. Steady sounds make wide bars. The pointer shows
  from when to when a unit lasts; a click plays where else it stands.
- **Three largest posteriors**: how much of its belief the model puts on its first three choices.
- **Entropy**: how undecided it is. 0 bits: one cluster alone; 1 bit: two equally likely ones; it tends to fall inside
  steady sounds and to rise at transitions and in pauses.
- **Effective rank**: how many directions the frames of this clip really use in each layer. Near 1, the layer has
  collapsed; short clips have few directions to use.
- **Frame similarity**: cosine between each frame of clip A (downwards) and each of clip B (to the right), after their
  common mean is taken off. Where both say the same, a bright line runs from the upper left to the lower right.

Where bars are too narrow for their numbers, draw the clip wider and scroll.

Files of any rate and channel count serve (WAV, FLAC, OGG, Opus, MP3); of long ones the first {MAX_SECONDS} s.
"""


def describe(listener: Listener) -> str:
    """The line under the title: which checkpoint, how large, and what it can show."""
    config, millions = listener.config, sum(p.numel() for p in listener.encoder.parameters()) / 1e6
    parts = [f"`{listener.name}`", f"encoder of {millions:.1f}M parameters, {config.num_hidden_layers} layers"]
    if listener.cluster_head is not None:
        parts.append(f"{config.num_mixture_components} clusters")
    if listener.recogniser is not None:
        parts.append("transcripts" if listener.asr_name == listener.name else f"transcripts by `{listener.asr_name}`")
    return " · ".join(parts)


def notice(sentence: str) -> str:
    return f'<p class="notice" role="alert">{html.escape(sentence)}</p>'


def hint(sentence: str) -> str:
    return f'<p class="hint">{html.escape(sentence)}</p>'


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def player(samples: np.ndarray, axis: str | None = "x") -> str:
    """Samples of a clip, whose time runs along `axis` of the picture; without an axis a sound that plays at once."""
    file = io.BytesIO()
    soundfile.write(file, samples.clip(-1, 1), SAMPLING_RATE, format="WAV", subtype="PCM_16")
    source, seconds = data_uri(file.getvalue(), "audio/wav"), len(samples) / SAMPLING_RATE
    how = "autoplay" if axis is None else f'data-axis="{axis}"'
    return f'<audio controls {how} data-seconds="{seconds}" src="{source}"></audio>'


def unit_buttons(picture: Picture, runs: Sequence[UnitRun], seconds: float) -> str:
    """A button over each unit of the strip, which tells its times."""
    if picture.units is None:
        return ""
    (left, _, width, _), (top, height) = picture.box, picture.units
    buttons = "".join(
        f'<button class="unit" data-unit="{run.unit}" data-start="{run.start:.4f}" title="unit {run.unit}:'
        f' {times(run.start, run.duration)}" style="left: {100 * run.start / seconds:.3f}%;'
        f' width: {100 * run.duration / seconds:.3f}%"></button>'
        for run in runs
    )
    place = f"left: {100 * left:.3f}%; width: {100 * width:.3f}%; top: {100 * top:.3f}%; height: {100 * height:.3f}%"
    return f'<div class="units" style="{place}">{buttons}</div>'


def times(start: float, seconds: float) -> str:
    return f"{start:.2f} to {start + seconds:.2f} s"


def sheet(picture: Picture, axes: str, description: str, above: str = "") -> str:
    """A picture with a line for each axis that time runs along, and what lies above it."""
    lines = "".join(f'<div class="line line-{axis}" hidden></div>' for axis in axes)
    size = f"min-width: {75 * picture.inches:.0f}px; max-width: {110 * picture.inches:.0f}px"
    box = " ".join(f"{share:.5f}" for share in picture.box)
    image = f'<img src="{data_uri(picture.webp, "image/webp")}" alt="{html.escape(description)}">'
    return f'<div class="scroll"><div class="sheet" style="{size}" data-box="{box}">{image}{lines}{above}</div></div>'


def title(path: str, clip: Clip, letter: str = "") -> str:
    """Name and length of a clip."""
    length = f"the first {MAX_SECONDS} s of a longer file" if clip.is_cut else f"{clip.seconds:.2f} s"
    name = html.escape(Path(path).name)
    return f'<h3>{letter}{name}</h3><p class="aside">{length}, as the model hears it: mono, 16 kHz</p>'


def show_clip(listener: Listener, path: str | None, zoom: int = 1) -> str:
    """
    The page's answer to one clip, as HTML: pictures, its time drawn `zoom` times as wide as they need to be seen at
    once, or a sentence that says what is wrong with the file.
    """
    if path is None:
        return hint("Record or upload some speech, a sentence or two, or try a clip from above.")
    try:
        clip = read_clip(path)
    except ValueError as error:
        return notice(str(error))
    heard = listener.hear(clip.samples)
    ranks = heard.ranks
    num_frames, num_features = heard.layers[0].shape
    rank_picture = draw_ranks(ranks, min(num_frames - 1, num_features))
    notes = []
    if clip.is_cut:
        notes.append(notice(f"This file is longer than {MAX_SECONDS} s: its first {MAX_SECONDS} s are shown."))
    if heard.posteriors is None:
        notes.append(
            notice("Clusters, posteriors and entropy are absent: this checkpoint has no cluster head of pretraining.")
        )
    transcript = ""
    if heard.words is not None:
        text = html.escape(" ".join(word.text for word in heard.words)) or "<i>no words recognised</i>"
        transcript = f'<p class="transcript">{text}</p>'
    picture = draw_clip(clip, heard, listener.cluster_places, zoom, listener.clusters)
    buttons = unit_buttons(picture, heard.runs, clip.seconds)
    rank_image = f'<img src="{data_uri(rank_picture.webp, "image/webp")}" alt="Effective rank of each layer">'
    return (
        f'{"".join(notes)}<div class="listen">{title(path, clip)}{transcript}{player(clip.samples)}'
        f"{sheet(picture, 'x', 'What the model hears, over seconds', buttons)}"
        f'<div class="below">{rank_image}<ul>{"".join(f"<li>{fact}</li>" for fact in facts(clip, heard, ranks))}</ul>'
        "</div></div>"
    )


def facts(clip: Clip, heard: Heard, ranks: list[float]) -> list[str]:
    """What one sees, in sentences."""
    found = [f"{len(heard.layers[0])} frames of 25 ms, one every 20 ms."]
    if heard.posteriors is not None:
        clusters, bits = heard.posteriors.argmax(1), heard.entropy
        changes = (np.diff(clusters) != 0).sum() / clip.seconds
        found += [
            f"{len(np.unique(clusters))} of {heard.posteriors.shape[1]} clusters are the most likely one somewhere;"
            f" the choice changes {changes:.0f} times a second.",
            f"Mean entropy {bits.mean():.2f} bits: as undecided as between {2 ** bits.mean():.1f} equal choices."
            f" In {(bits < 1).mean():.0%} of the frames it is below 1 bit.",
        ]
    highest = int(np.argmax(ranks))
    where = "at the input of the Transformer" if highest == 0 else f"in layer {highest}"
    found.append(f"Most directions are in use {where} ({ranks[highest]:.0f}), in the top layer {ranks[-1]:.0f}.")
    return found


def show_unit(listener: Listener, corpus: "UnitCorpus | None", path: str | None, unit: int, start: float) -> str:
    """
    Where else a unit stands, as HTML that plays at once: in `corpus`, or in the clip of `path` itself, in which it was
    clicked at `start` seconds.
    """
    if corpus is None:
        try:
            clip = read_clip(path)
        except ValueError as error:
            return notice(str(error))
        runs = listener.hear(clip.samples).runs
        segments = other_segments(Path(path).name, clip.samples, runs, unit, start)
        where = f"{sum(run.unit == unit for run in runs)} segments in this clip"
        most = "the longest others"
    else:
        segments, (runs, clips) = corpus.segments(unit), corpus.count(unit)
        where = f"{runs:,} segments in {clips:,} of the {corpus.num_clips:,} clips of {html.escape(corpus.name)}"
        most = "the longest, one of a clip,"
        if runs and not segments:
            return notice(f"Unit {unit} has {runs:,} segments there, but their audio is gone or cannot be read.")
    if not segments:
        return hint(f"Unit {unit} stands nowhere else here.")
    samples, begun = joined(segments)
    items = "".join(listed(segment, first) for segment, first in zip(segments, begun))
    return (
        f'<div class="listen"><h3>Unit {unit}</h3><p class="aside">{where}. Played: {most} with'
        f" {1000 * AROUND:.0f} ms before and after.</p>{player(samples, None)}<ul>{items}</ul></div>"
    )


def listed(segment: Segment, begun: float) -> str:
    """A segment with a button that plays it, `begun` being where it lies in the sound of all."""
    seconds = len(segment.samples) / SAMPLING_RATE
    name = html.escape(shown(Path(segment.name).name, 60))
    return (
        f'<li><button class="segment" data-start="{begun:.4f}" data-seconds="{seconds:.4f}">play</button>'
        f" {name}, {times(segment.start, segment.seconds)}</li>"
    )


def show_pair(listener: Listener, first: str | None, second: str | None, layer: int) -> str:
    """The page's answer to two clips, as HTML: their similarity matrix, or a sentence."""
    if first is None or second is None:
        return hint("Record or upload two clips: two people saying the same, say, or one word said twice.")
    clips = []
    for name, path in (("A", first), ("B", second)):
        try:
            clips.append(read_clip(path))
        except ValueError as error:
            return notice(f"Clip {name}: {error}")
    matrix = similarity(*(listener.features(clip.samples)[layer] for clip in clips))
    picture = draw_similarity(*clips, matrix, layer)
    players = "".join(
        f"<div>{title(path, clip, f'{name}: ')}{player(clip.samples, axis)}</div>"
        for name, path, clip, axis in zip("AB", (first, second), clips, "yx")
    )
    return (
        f'<div class="listen"><div class="players">{players}</div>'
        f"{sheet(picture, 'xy', 'Similarity of each frame of clip A to each of clip B')}"
        '<p class="aside">Click into the matrix to hear half a second of A, then of B. A diagonal line marks a stretch'
        " that both have in common; a square, a sound that both hold.</p></div>"
    )


def clip_input(name: str, elem_id: str, examples: Sequence[Path]) -> gr.State:
    """
    A place to drop a file, which has `elem_id`, a microphone and clips to try; the state holds the path of the latest.
    """
    path = gr.State(None)
    with gr.Row(equal_height=True):
        file = gr.File(label=f"Upload {name}", height=140, min_width=280, elem_id=elem_id)
        settings = {"sources": ["microphone"], "type": "filepath", "editable": False, "buttons": [], "min_width": 280}
        microphone = gr.Audio(label=f"Record {name}", **settings)
    # The place to drop files stays free for the next one.
    file.upload(lambda uploaded: (uploaded, None), file, [path, file], show_progress="hidden")
    microphone.stop_recording(lambda recorded: recorded, microphone, path, show_progress="hidden")
    with gr.Row(elem_classes="examples"):
        for example in examples:
            button = gr.Button(f"Try {shown(example.name, 32)}", size="sm", min_width=60, scale=0)
            button.click(lambda found=str(example): found, None, path, show_progress="hidden")
    return path


def build(listener: Listener, examples: Sequence[Path] = (), corpus: "UnitCorpus | None" = None) -> gr.Blocks:
    """The page, with clips to try, and a corpus in which a unit is looked for."""

    def clicked(path: str | None, event: gr.EventData) -> str:
        return show_unit(listener, corpus, path, int(event.unit), float(event.start))

    script = (HERE / "player.js").read_text()
    layers = [("Transformer input", 0), *((str(layer), layer) for layer in range(1, listener.num_layers + 1))]
    with gr.Blocks(title="S-JEPA: look and listen", fill_width=True, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            f"# S-JEPA: look and listen\nWhat a speech encoder trained without labels hears. {describe(listener)}"
        )
        with gr.Tab("One clip"):
            clip = clip_input("speech", "file", examples)
            zoom = gr.Radio(list(ZOOMS.items()), value=1, label="Width of the pictures", elem_id="zoom")
            answer = gr.HTML(show_clip(listener, None), js_on_load=script, elem_id="one")
            unit = gr.HTML(js_on_load=script, elem_id="unit")
            gr.on([clip.change, zoom.change], lambda p, z: show_clip(listener, p, z), [clip, zoom], answer)
            answer.click(clicked, clip, unit)
            clip.change(lambda: "", None, unit, show_progress="hidden")
        with gr.Tab("Two clips"):
            with gr.Row():
                with gr.Column():
                    first = clip_input("clip A", "file-a", examples)
                with gr.Column():
                    second = clip_input("clip B", "file-b", examples)
            middle = listener.num_layers // 2
            layer = gr.Radio(layers, value=middle, label="Layer whose frames are compared", elem_id="layer")
            pair = gr.HTML(show_pair(listener, None, None, 0), js_on_load=script, elem_id="two")
            inputs = [first, second, layer]
            gr.on([i.change for i in inputs], lambda a, b, k: show_pair(listener, a, b, k), inputs, pair)
        with gr.Accordion("How to read the pictures", open=False):
            gr.Markdown(HOW_TO_READ)
    return page


def check_address(host: str, port: int) -> None:
    """Raise a ValueError for an address that this machine cannot serve at (port 0: any)."""
    if not 0 <= port <= 65535:
        raise ValueError(f"`port` must lie between 1 and 65535, got {port}.")
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        socket.create_server((host, port), family=family).close()
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise ValueError(f"The page cannot be served at {host}, port {port or 'any'}: {said}.") from None


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser("A page to look at and listen to what an S-JEPA checkpoint hears.")
    default = os.environ.get("SJEPA_CHECKPOINT", str(HERE.parent / "tiny"))
    parser.add_argument("--checkpoint", default=default, help="directory or Hub name (default: model_cards/tiny)")
    parser.add_argument(
        "--asr", default=os.environ.get("SJEPA_ASR"), help="another one with a CTC head, for transcripts beside it"
    )
    parser.add_argument(
        "--examples",
        default=os.environ.get("SJEPA_EXAMPLES"),
        help="folder of clips to try (default: one clip)",
    )
    parser.add_argument(
        "--units", help="folder of training.units, in Parquet: a click on a unit plays where it stands"
    )
    parser.add_argument("--host", help="address to serve at (default: 127.0.0.1; 0.0.0.0: every one of this machine)")
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    parser.add_argument(
        "--share", action="store_true", help="also give it an address for everybody, through Gradio's servers"
    )
    arguments = parser.parse_args(argv)
    if arguments.host or arguments.port:
        check_address(arguments.host or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), arguments.port or 0)
    transformers.logging.set_verbosity_error()
    examples = find_examples(arguments.examples)
    corpus = None
    if arguments.units is not None:
        from unit_corpus import UnitCorpus  # of the whole package, which a Space does not have

        corpus = UnitCorpus(arguments.units)
    listener = Listener(arguments.checkpoint, arguments.asr, corpus and corpus.settings)
    build(listener, examples, corpus).launch(
        server_name=arguments.host,
        server_port=arguments.port,
        share=arguments.share,
        theme=gr.themes.Soft(primary_hue="sky", secondary_hue="sky", neutral_hue="slate", **SYSTEM_FONTS),
        css_paths=HERE / "page.css",
        max_file_size=LARGEST_FILE,
        ssr_mode=False,
        footer_links=[],
    )


if __name__ == "__main__":
    main()
