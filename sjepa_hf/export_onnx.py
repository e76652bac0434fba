"""Write a checkpoint as an ONNX file, and check that it gives what PyTorch gives.

    python -m sjepa_hf.export_onnx runs/asr/final asr.onnx
    python -m sjepa_hf.export_onnx runs/asr/final asr.onnx --int8              # asr.int8.onnx beside it
    python -m sjepa_hf.export_onnx runs/mine/final features.onnx --task features

Inputs of the file: `input_values`, float32 `(batch, samples)`, mono at 16 kHz, right-padded, and `attention_mask`,
int64 of the same shape, 1 for real samples (Transformers' feature extractor gives int32). Batch and length are free
(400 samples or more); a padded clip gets what it gets alone. Outputs:

    task            output                                          and
    features        last_hidden_state (batch, frames, hidden_size)  frame_lengths (batch), int64: real frames of a clip
    ctc             logits (batch, frames, vocabulary)              frame_lengths
    classification  logits (batch, classes)                         frame_lengths

The file's metadata are JSON: `task`, `sampling_rate`, and with ctc and classification `labels`, the text of each
output (with ctc "" for the blank and " " between words): `examples/run_onnx.py` needs nothing else. In an int8
file the clips of a batch share the scales: there, what a clip gets depends a little on the others.

A file is kept if it agrees with PyTorch to 1e-4 on padded batches of noise. With the log-mel front end a few clips of
speech differ by more (up to 5e-4 in CTC logits, median 1e-5), as fp32 PyTorch does from float64: a band 100 dB below
the loudest of its frame drowns in rounding.

Needs the packages onnx, onnxscript and onnxruntime.
"""

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import Wav2Vec2CTCTokenizer

from .command import CommandParser, command
from .frames import MIN_SAMPLES, SAMPLING_RATE, real_samples
from .modeling_sjepa import SJepaModel, SJepaPreTrainedModel
from .modeling_sjepa_heads import SJepaForCTC, SJepaForSequenceClassification
from .opening import MissingWeights, open_pretrained, open_sjepa, open_sjepa_config
from .saving import files_written_aside
from .scores import json_text
from .transcripts import UNKNOWN_SIGN, silent_labels
from .writable import check_output_file


if TYPE_CHECKING:
    import onnx


logger = logging.getLogger(__name__)

TASKS = {"features": SJepaModel, "ctc": SJepaForCTC, "classification": SJepaForSequenceClassification}
# What a checkpoint is exported as when nobody says, by the class that it was saved as.
TASK_OF_CLASS = {model.__name__: task for task, model in TASKS.items()} | {"SJepaForPreTraining": "features"}
TOLERANCE = 1e-4  # largest difference to PyTorch with which a file is kept
# Lengths in samples of the clips of each batch on which it is measured: a single frame, one clip alone, padded ones,
# one of them shorter than a frame, and a long one.
CHECKED_BATCHES = ((MIN_SAMPLES,), (719,), (16000,), (16000, 9037, 450), (200, 12345), (320000, 51234))


def open_checkpoint(checkpoint: str | Path, task: str | None = None) -> tuple[SJepaPreTrainedModel, str]:
    """
    The model of a checkpoint in fp32 with the head of `task` (by default that with which it was saved), and the task.

    Raises:
        ValueError: if there is no such task, no S-JEPA checkpoint, or it lacks the head.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"`task` is {task}; it must be one of {', '.join(TASKS)}.")
    way_out = f"Optimum exports others, with `optimum-cli export onnx --model {checkpoint} DIRECTORY`"
    saved = (open_sjepa_config(checkpoint, way_out).architectures or ["?"])[0]
    if task is None:
        task = TASK_OF_CLASS.get(saved)
        if task is None:
            raise ValueError(
                f"{checkpoint} was saved as {saved}: choose what to export with `task`: {', '.join(TASKS)}."
            )
    try:
        model = open_sjepa(TASKS[task], checkpoint, attn_implementation="eager")
    except MissingWeights as error:
        raise ValueError(
            f"{checkpoint} was saved as {saved} and lacks weights that `task` {task} needs"
            f" ({', '.join(error.names[:4])}): fine-tune it first, or export with `task` features."
        ) from None
    return model.eval(), task


def metadata(model: SJepaPreTrainedModel, task: str, checkpoint: str | Path) -> dict[str, str]:
    """
    What a user of the file has to know besides its inputs and outputs, each value as JSON.

    Raises:
        ValueError: if a CTC checkpoint has no tokenizer.
    """
    properties = {"task": task, "sampling_rate": SAMPLING_RATE}
    if task == "ctc":
        properties["labels"] = ctc_labels(checkpoint, model.config.vocab_size)
    elif task == "classification":
        properties["labels"] = [model.config.id2label[i] for i in range(model.config.num_labels)]
    return {name: json_text(value) for name, value in properties.items()}


def ctc_labels(checkpoint: str | Path, vocab_size: int) -> list[str]:
    """The text of each output of a CTC head: "" for the blank and `<s>`, " " between words, U+FFFD for `<unk>`."""
    try:
        tokenizer = open_pretrained(Wav2Vec2CTCTokenizer, checkpoint)
    except ValueError as error:
        raise ValueError(f"{checkpoint} has no Wav2Vec2CTCTokenizer (vocab.json) with its CTC head: {error}") from None
    written = {tokenizer.pad_token: "", tokenizer.word_delimiter_token: " ", tokenizer.unk_token: UNKNOWN_SIGN}
    tokens, silent = tokenizer.convert_ids_to_tokens(list(range(vocab_size))), silent_labels(tokenizer)
    return ["" if label in silent else written.get(token, token) for label, token in enumerate(tokens)]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and log lines below errors: the exporter's are about its own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Exported(nn.Module):
    """What the file computes: the task's output and the number of real frames of each clip."""

    def __init__(self, model: SJepaPreTrainedModel, task: str):
        super().__init__()
        self.model = model
        self.output_name = "last_hidden_state" if task == "features" else "logits"
        self.eval().requires_grad_(False)

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(input_values, attention_mask=attention_mask)
        frame_lengths = self.model._get_feat_extract_output_lengths(real_samples(attention_mask))
        return output[self.output_name], frame_lengths


def build(exported: Exported, properties: dict[str, str]) -> "onnx.ModelProto":
    """The ONNX model, with `properties` as its metadata. Folds the weight norm of `exported` into its weights."""
    import onnx

    conv = exported.model.base_model.encoder.pos_conv_embed.conv
    nn.utils.parametrize.remove_parametrizations(conv, "weight")
    # Lengths below two frames are not traced, since a size of one is taken for a constant; the file takes them all
    # the same, as `largest_difference` sees.
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples", min=720)}
    example = torch.zeros(2, SAMPLING_RATE), torch.ones(2, SAMPLING_RATE, dtype=torch.long)
    with quiet():
        program = torch.onnx.export(
            exported,
            example,
            input_names=["input_values", "attention_mask"],
            output_names=[exported.output_name, "frame_lengths"],
            dynamic_shapes={"input_values": shape, "attention_mask": shape},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = program.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph):
        del part.metadata_props[:]  # where each operator was written: paths of this machine
    onnx.helper.set_model_props(model, properties)
    return model


def largest_difference(exported: Exported, path: Path) -> float:
    """
    Largest absolute difference between a file and PyTorch, over all values of `CHECKED_BATCHES` of noise that swells
    and falls and has silence in it; what lies in the padding is loud.

    Raises:
        ValueError: if shapes or frame lengths differ.
    """
    session = open_session(path)
    generator = torch.Generator().manual_seed(0)
    largest = torch.zeros(())
    for lengths in map(torch.tensor, CHECKED_BATCHES):
        time = torch.arange(int(lengths.max()))
        attention_mask = (time < lengths[:, None]).long()  # [B, S]
        loudness = (0.3 * (time / 2500).sin()).clamp(min=0)
        noise = torch.randn(attention_mask.shape, generator=generator)
        input_values = noise * torch.where(attention_mask == 1, loudness, 10.0)
        wanted, wanted_lengths = exported(input_values, attention_mask)
        feeds = {"input_values": input_values.numpy(), "attention_mask": attention_mask.numpy()}
        found, frame_lengths = map(torch.from_numpy, session.run(None, feeds))
        if found.shape != wanted.shape or not torch.equal(frame_lengths, wanted_lengths):
            raise ValueError(
                f"The exported file gives {tuple(found.shape)} for clips of {lengths.tolist()} samples, but PyTorch"
                f" {tuple(wanted.shape)}."
            )
        largest = torch.maximum(largest, (found - wanted).abs().max())  # NaN stays NaN
    return float(largest)


def open_session(path: Path, threads: int | None = None):
    """`onnxruntime.InferenceSession` on the CPU, with as many threads as PyTorch has if not given."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between runs the cores are PyTorch's
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def quantize(path: Path, output: Path) -> None:
    """
    Write a copy of which the linear maps are int8: weights with a scale for each output, activations with one for each
    batch as it comes.

    The front end and its projection stay fp32: quiet frequency bands would drown in the rounding error of loud ones,
    and real frames in that of what lies in the padding. So do convolutions, which are slow in integers on a CPU.
    Weights take 7 of the 8 bits, since the sums of full ones overflow on CPUs without VNNI.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = list(onnx.load(path).graph.node)
    first_norm = next(i for i, node in enumerate(nodes) if node.op_type == "LayerNormalization")  # the projection's
    try:
        with quiet():
            quantize_dynamic(
                path,
                output,
                op_types_to_quantize=["MatMul"],
                nodes_to_exclude=[node.name for node in nodes[:first_norm]],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
            )
    except DecodeError as error:  # of a copy that onnxruntime writes, and does not see torn
        raise OSError(errno.EIO, "cannot be written: is the disk full?", str(output)) from error


def export_onnx(
    checkpoint: str | Path, output: str | Path, task: str | None = None, int8: bool = False
) -> dict[Path, float]:
    """
    Write a checkpoint as ONNX; the files appear once they are whole and checked.

    Args:
        checkpoint: directory, or name on the Hub.
        output: file to write, ending in .onnx.
        task: `"features"`, `"ctc"` or `"classification"`; by default what the checkpoint was saved as.
        int8: also write OUTPUT.int8.onnx, with dynamic quantisation.

    Returns:
        `dict` of the files that were written and the largest absolute difference of each to PyTorch.

    Raises:
        ValueError: where the checkpoint cannot be exported as that, or the file differs by more than 1e-4.
        OSError: where it cannot be written.
    """
    output = Path(output)
    if output.suffix != ".onnx":
        raise ValueError(f"`output` {output} must be the name of a file that ends in .onnx.")
    small = output.with_suffix(".int8.onnx")
    for path in (output, small) if int8 else (output,):
        check_output_file(path, "output")
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"The export needs more packages ({error}): pip install onnx onnxscript onnxruntime"
        ) from None
    model, task = open_checkpoint(checkpoint, task)
    properties = metadata(model, task, checkpoint)
    exported = Exported(model, task)
    differences = {}
    with files_written_aside(output.parent) as aside:
        logger.info("Exporting %s for `task` %s: tracing and translating take a minute or so.", checkpoint, task)
        onnx.save(build(exported, properties), aside / output.name)
        logger.info("Comparing the file with PyTorch on %d batches.", len(CHECKED_BATCHES))
        differences[output] = largest_difference(exported, aside / output.name)
        if not differences[output] <= TOLERANCE:
            raise ValueError(
                f"The exported file differs from PyTorch by {differences[output]:.1e}, more than {TOLERANCE:g}:"
                " nothing was written."
            )
        if int8:
            logger.info("Quantising the linear layers to int8, and comparing again.")
            quantize(aside / output.name, aside / small.name)
            differences[small] = largest_difference(exported, aside / small.name)
    return differences


@command
def main(argv: list[str] | None = None) -> None:
    """Export what the command line asks for."""
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", help="directory of a checkpoint, or its name on the Hub")
    parser.add_argument("output", metavar="OUT.onnx", help="file to write")
    parser.add_argument("--task", help=f"{', '.join(TASKS)} (default: what the checkpoint was saved as)")
    parser.add_argument("--int8", action="store_true", help="also write OUT.int8.onnx, with dynamic quantisation")
    arguments = parser.parse_args(argv)
    differences = export_onnx(arguments.checkpoint, arguments.output, arguments.task, arguments.int8)
    for path, difference in differences.items():
        size = path.stat().st_size / 1e6
        print(f"wrote {path}: {size:.1f} MB, largest difference to PyTorch {difference:.1e}")


if __name__ == "__main__":
    main()
