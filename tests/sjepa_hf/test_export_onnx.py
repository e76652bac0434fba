"""Exported files give what PyTorch gives, alone and padded, and hold all that their user needs."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from exports import CLASS_NAMES, Export, one_layer
from transformers import HubertConfig, Wav2Vec2CTCTokenizer

from benchmarks import onnx as benchmark
from sjepa_hf import (
    SJepaConfig,
    SJepaForPreTraining,
    SJepaForSequenceClassification,
    SJepaForXVector,
    SJepaModel,
    export_onnx,
)
from sjepa_hf.frames import MIN_SAMPLES
from training.finetuning.beam_search import greedy_decode


onnx = pytest.importorskip("onnx", reason="the export needs onnx")
pytest.importorskip("onnxscript", reason="the export needs onnxscript")
pytest.importorskip("onnxruntime", reason="the export is checked in onnxruntime")

EXAMPLE = Path(__file__).parents[2] / "examples" / "run_onnx.py"
CASES = [("waveform", "features"), ("stem", "ctc"), ("log_mel", "classification")]


def test_a_file_that_gives_nan_less_or_other_lengths_does_not_agree(monkeypatch):
    class Session:
        def run(self, _, feeds):
            given = np.full((len(feeds["input_values"]), 3), value, np.float32)
            return given, feeds["attention_mask"].sum(-1) + more

    def difference() -> float:
        return export_onnx.largest_difference(lambda x, mask: (torch.zeros(len(x), 3), mask.sum(-1)), Path("x"))

    monkeypatch.setattr(export_onnx, "open_session", lambda path: Session())
    value, more = np.nan, 0
    assert np.isnan(difference()) and not difference() <= export_onnx.TOLERANCE
    value = -0.5
    assert difference() == 0.5
    more = 1
    with pytest.raises(ValueError, match="The exported file gives"):
        difference()


def run(path: Path, input_values: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    feeds = {"input_values": input_values.numpy(), "attention_mask": attention_mask.numpy()}
    output, frame_lengths = export_onnx.open_session(path).run(None, feeds)
    return torch.from_numpy(output), torch.from_numpy(frame_lengths)


def clips(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of different loudness with its attention mask; the padding is louder than any clip."""
    attention_mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    loudness = torch.where(attention_mask == 1, torch.logspace(-2, 0, len(lengths))[:, None], 10.0)
    return torch.randn(attention_mask.shape) * loudness, attention_mask


@torch.no_grad()
def in_pytorch(export: Export, input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    output = export.model(input_values, attention_mask=attention_mask)
    return output.last_hidden_state if export.task == "features" else output.logits


@pytest.fixture(params=CASES, ids="-".join)
def export(request, exports) -> Export:
    return exports(*request.param)


def test_agrees_with_pytorch_at_other_batches_and_lengths(export):
    for lengths in ([400], [5555], [16000, 9037, 450], [3000, 48000], [1200, 100]):
        batch = clips(lengths)
        wanted = in_pytorch(export, *batch)
        found, frame_lengths = run(export.path, *batch)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
        assert frame_lengths.tolist() == [export.model.config.num_frames(length) for length in lengths]
    assert wanted.std() > 0.1  # there is something to agree on


def test_a_padded_clip_gets_what_it_gets_alone(export):
    lengths = [9037, 450, 24000]
    input_values, attention_mask = clips(lengths)
    batched, frame_lengths = run(export.path, input_values, attention_mask)
    for row, length in enumerate(lengths):
        alone, _ = run(export.path, input_values[row : row + 1, :length], attention_mask[row : row + 1, :length])
        mine = batched[row] if export.task == "classification" else batched[row, : frame_lengths[row]]
        torch.testing.assert_close(mine, alone[0], atol=1e-5, rtol=0)


def test_int8_stays_close(export):
    assert export.int8.stat().st_size < export.path.stat().st_size
    batch = clips([16000, 9037, 2000])
    wanted = in_pytorch(export, *batch)
    found, frame_lengths = run(export.int8, *batch)
    if export.task != "classification":
        real = torch.arange(wanted.shape[1]) < frame_lengths[:, None]
        wanted, found = wanted[real], found[real]
    error = (found - wanted).square().mean().sqrt() / wanted.std()
    assert 0 < error < 0.05


def test_int8_leaves_the_front_end_alone(exports):
    graph = onnx.load(exports("stem", "ctc").int8).graph
    kinds = [node.op_type for node in graph.node]
    assert "MatMulInteger" not in kinds[: kinds.index("LayerNormalization")]
    assert kinds.count("MatMulInteger") == 4 + 2 + 1  # attention, feed-forward, CTC head
    weights = [onnx.numpy_helper.to_array(i) for i in graph.initializer if i.data_type == onnx.TensorProto.INT8]
    assert max(abs(values.astype(int)).max() for values in weights if values.ndim == 2) == 64, "7 bits of 8"


def test_the_file_says_what_its_user_needs(exports):
    def metadata(export: Export) -> dict:
        found = export_onnx.open_session(export.path).get_modelmeta().custom_metadata_map
        return {name: json.loads(value) for name, value in found.items()}

    assert metadata(exports("waveform", "features")) == {"task": "features", "sampling_rate": 16000}
    classification = metadata(exports("log_mel", "classification"))
    assert classification == {"task": "classification", "sampling_rate": 16000, "labels": CLASS_NAMES}
    ctc = metadata(exports("stem", "ctc"))
    assert (ctc["task"], ctc["labels"]) == ("ctc", ["", "", "", "\ufffd", " ", "A", "B", "C", "É"])


def test_the_file_names_no_path_of_the_machine_that_wrote_it(export):
    for path in (export.path, export.int8):
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()
        assert not any(node.metadata_props for node in onnx.load(path).graph.node)


def test_inputs_and_outputs_have_free_sizes(exports):
    graph = onnx.load(exports("stem", "ctc").path).graph
    sizes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert sizes["input_values"] == sizes["attention_mask"] == ["batch", "samples"]
    assert sizes["frame_lengths"] == ["batch"]
    assert sizes["logits"][0] == "batch" and "samples" in sizes["logits"][1] and sizes["logits"][2] == 9


def test_features_of_a_fine_tuned_checkpoint(exports):
    """Its encoder is found below the head."""
    ctc = exports("stem", "ctc")
    model, task = export_onnx.open_checkpoint(ctc.checkpoint, "features")
    assert task == "features" and type(model) is SJepaModel
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, ctc.model.sjepa.state_dict()[name])


@pytest.mark.parametrize(
    "front_end, cls, masked",
    [
        ("waveform", SJepaModel, True),
        ("waveform", SJepaForSequenceClassification, False),
        ("stem", SJepaForPreTraining, False),
        ("stem", SJepaForXVector, True),
    ],
)
def test_torch_export_runs_at_other_sizes(front_end, cls, masked):
    """
    Also without a mask, and whole programs of the heads that have no files above. OpenVINO counts a frame too many
    where a quotient of integers is compared, and knows no maximum of sizes: programs have neither, but for the maximum
    of that of speakers, which counts the frames of its time-delay layers.
    """
    model = cls(one_layer(front_end, tdnn_dim=[32] * 5)).eval()
    shortest = 7000 if cls is SJepaForXVector else 720  # its time-delay layers look far around
    inputs, either = 2 if masked else 1, torch.export.Dim.AUTO
    shape = {0: either, 1: either}
    example = clips([16000, 9037])[:inputs]
    exported = torch.export.export(model, example, dynamic_shapes=(shape,) * inputs, strict=False)
    called = {getattr(node.target, "__name__", "") for node in exported.graph.nodes}
    assert called.isdisjoint({"floor_divide.default", "div.Tensor_mode"})
    assert cls is SJepaForXVector or "sym_max" not in called
    program = exported.module()
    for lengths in ([shortest], [8000], [31000, shortest, 17000]):
        batch = clips(lengths)[:inputs]
        name = "last_hidden_state" if cls is SJepaModel else "logits"
        wanted, found = (call(*batch)[name] for call in (model, program))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


# The example


def test_example_imports_little():
    imported = set()
    for node in ast.walk(ast.parse(EXAMPLE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "soundfile"}


def test_example_transcribes(exports, tmp_path, speech_if_any):
    ctc = exports("stem", "ctc")
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(ctc.checkpoint)
    paths, wanted = [], []
    for number, length in enumerate((16000, 30000)):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], 0.1 * np.random.default_rng(number).standard_normal(length), 16000)
        samples = torch.from_numpy(soundfile.read(paths[-1], dtype="float32")[0])
        wanted.append(greedy_decode(in_pytorch(ctc, samples[None], None)[0].numpy(), tokenizer))
    done = run_example(ctc.path, *paths)
    assert done.returncode == 0, done.stderr
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == wanted
    assert len(set(wanted)) == 2 and all(len(text) > 3 for text in wanted)

    paths = sorted((speech_if_any / "arabic_speech_commands" / "test").glob("*.opus"))[:3] if speech_if_any else []
    for path in paths:  # whose pre-skip is dropped
        soundfile.write(tmp_path / f"{path.stem}.wav", *soundfile.read(path), subtype="FLOAT")
    texts = [run_example(ctc.path, *named).stdout for named in (paths, [tmp_path / f"{p.stem}.wav" for p in paths])]
    assert texts[0] == texts[1]

    soundfile.write(tmp_path / "music.wav", np.zeros(44100), 44100)
    done = run_example(ctc.path, tmp_path / "music.wav")
    assert done.returncode == 1 and "music.wav has 44100 samples a second" in done.stderr


def test_example_names_what_it_cannot_read(exports, tmp_path):
    ctc = exports("stem", "ctc")
    noise = 0.1 * np.random.default_rng(0).standard_normal(30000)
    soundfile.write(tmp_path / "whole.flac", noise, 16000)
    content = bytearray((tmp_path / "whole.flac").read_bytes())
    content[21], content[22:26] = content[21] & 0xF0, bytes(4)  # the number of samples: not known
    (tmp_path / "piped.wav").write_bytes(content)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "none.wav", noise[:0], 16000)
    soundfile.write(tmp_path / "nan.wav", noise * np.nan, 16000, subtype="FLOAT")
    for name, sentence in {
        "text": "cannot be read as audio",
        "empty": "cannot be read as audio",
        "absent": "cannot be read as audio",
        "piped": "cannot be read as audio",
        "none": "holds no sound",
        "nan": "are not finite",
    }.items():
        done = run_example(ctc.path, tmp_path / f"{name}.wav")
        assert (
            done.returncode == 1
            and done.stderr.startswith(f"error: {tmp_path / name}.wav ")
            and sentence in done.stderr
        )
        assert len(done.stderr.splitlines()) == 1


def test_example_says_what_it_cannot_run(exports, tmp_path):
    text, features = tmp_path / "text.onnx", exports("waveform", "features").path
    text.write_text("no model")
    for model, said in (
        (features, "is no exported recogniser or classifier: python -m sjepa_hf.export_onnx --task ctc or"),
        *((path, "cannot be opened: ") for path in (text, tmp_path / "absent.onnx")),
    ):
        done = run_example(model, tmp_path / "clip.wav")
        assert done.returncode == 1 and done.stderr.startswith(f"error: {model} {said}"), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_example_classifies(exports, tmp_path):
    classifier = exports("log_mel", "classification")
    samples = 0.1 * np.random.default_rng(0).standard_normal(16000).astype("float32")
    soundfile.write(tmp_path / "clip.wav", samples, 16000, subtype="FLOAT")
    done = run_example(classifier.path, tmp_path / "clip.wav")
    logits = in_pytorch(classifier, torch.from_numpy(samples)[None], None)[0]
    best = int(logits.argmax())
    assert done.stdout == f"{CLASS_NAMES[best]} {logits.softmax(-1)[best]:.3f}\n", done.stderr


def test_example_pads_to_a_frame():
    assert f"\nMIN_SAMPLES = {MIN_SAMPLES} " in EXAMPLE.read_text()


def run_example(model: Path, *paths: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, EXAMPLE, model, *paths]
    return subprocess.run(command, cwd=model.parent, env=environment, capture_output=True, text=True)


# Errors: one sentence, and nothing half-written


def test_a_head_that_was_never_trained_is_not_exported(tmp_path, capsys):
    SJepaForPreTraining(one_layer("log_mel")).save_pretrained(tmp_path / "pretrained")
    assert export_onnx.open_checkpoint(tmp_path / "pretrained")[1] == "features", "what there is to export"
    with pytest.raises(SystemExit) as caught:
        export_onnx.main([str(tmp_path / "pretrained"), str(tmp_path / "out" / "asr.onnx"), "--task", "ctc"])
    assert "saved as SJepaForPreTraining and lacks weights that `task` ctc needs (lm_head" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_cannot_be_exported(exports, tmp_path):
    ctc = exports("stem", "ctc").checkpoint
    SJepaForXVector(one_layer("log_mel")).save_pretrained(tmp_path / "xvector")
    HubertConfig().save_pretrained(tmp_path / "hubert")
    SJepaConfig(architectures=["SJepaForCTC"]).save_pretrained(tmp_path / "empty")
    for checkpoint, output, task, message in (
        (ctc, "asr.onnx", "pretraining", "`task` is pretraining; it must be one of features, ctc, classification"),
        (tmp_path / "nowhere", "asr.onnx", None, "nowhere cannot be opened"),
        (tmp_path / "hubert", "asr.onnx", None, "is of type hubert, .* `optimum-cli export onnx --model .*hubert "),
        (tmp_path / "xvector", "asr.onnx", None, "was saved as SJepaForXVector: choose what to export with `task`"),
        (tmp_path / "empty", "asr.onnx", None, ".*empty cannot be opened: .* no file named model.safetensors"),
        (ctc, "asr.pt", None, "must be the name of a file that ends in .onnx"),
    ):
        with pytest.raises(ValueError, match=message):
            export_onnx.export_onnx(checkpoint, tmp_path / "out" / output, task)
    assert not (tmp_path / "out").exists()


def test_a_ctc_checkpoint_without_tokenizer(exports, tmp_path):
    exports("stem", "ctc").model.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="has no Wav2Vec2CTCTokenizer"):
        export_onnx.export_onnx(tmp_path / "checkpoint", tmp_path / "asr.onnx")


def test_an_unwritable_output_is_told_before_anything_is_opened(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "a.int8.onnx").mkdir()
    for name, sentence in (
        ("file/asr.onnx", "file/asr.onnx cannot be written: .*Not a directory"),
        ("a.int8.onnx", "a.int8.onnx is a directory: name a file"),
        ("a.onnx", "a.int8.onnx is a directory: name a file"),
    ):
        with pytest.raises(SystemExit, match=f"error: `output` .*{sentence}"):
            export_onnx.main(["nowhere", str(tmp_path / name), "--int8"])


def test_a_file_that_differs_is_not_kept(exports, tmp_path, monkeypatch):
    """Neither is it when it can be written but not quantised; what lay there stays."""
    ctc = exports("stem", "ctc")
    output = tmp_path / "asr.onnx"
    output.write_text("older")
    broken = onnx.load(ctc.path)
    weights = next(i for i in broken.graph.initializer if i.dims[-1:] == [9] and len(i.dims) == 2)  # the CTC head's
    weights.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(weights), weights.name))
    monkeypatch.setattr(export_onnx, "build", lambda *_: broken)
    with pytest.raises(ValueError, match="differs from PyTorch by .*: nothing was written"):
        export_onnx.export_onnx(ctc.checkpoint, output)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="differs from PyTorch by nan"):
        patch.setattr(export_onnx, "largest_difference", lambda *_: float("nan"))
        export_onnx.export_onnx(ctc.checkpoint, output)

    monkeypatch.setattr(export_onnx, "build", lambda *_: onnx.load(ctc.path))
    monkeypatch.setattr(export_onnx, "quantize", lambda path, small: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_onnx.export_onnx(ctc.checkpoint, output, int8=True)
    assert [path.name for path in tmp_path.iterdir()] == ["asr.onnx"] and output.read_text() == "older"


def test_a_missing_package_is_named(exports, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match="onnxscript.*pip install onnx onnxscript onnxruntime"):
        export_onnx.export_onnx(exports("stem", "ctc").checkpoint, tmp_path / "asr.onnx")


def test_command_line(exports, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    ctc = exports("stem", "ctc")
    monkeypatch.setattr(export_onnx, "build", lambda *_: onnx.load(ctc.path))
    export_onnx.main([str(ctc.checkpoint), str(tmp_path / "asr.onnx"), "--int8"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"wrote {tmp_path / 'asr.onnx'}: ") and "largest difference to PyTorch" in first
    assert second.startswith(f"wrote {tmp_path / 'asr.int8.onnx'}: ")
    assert {path.name for path in tmp_path.iterdir()} == {"asr.onnx", "asr.int8.onnx"}
    stages = [record.getMessage().split()[0] for record in caplog.records if record.name == export_onnx.__name__]
    assert stages[-3:] == ["Exporting", "Comparing", "Quantising"], "each stage is named before it begins"


def test_benchmark(exports, tmp_path, monkeypatch, capsys):
    ctc = exports("stem", "ctc")
    monkeypatch.setattr(export_onnx, "build", lambda *_: onnx.load(ctc.path))
    rows = ["file_name,transcription"]
    for number in range(3):
        noise = 0.1 * np.random.default_rng(number).standard_normal(8000 + 1000 * number)
        soundfile.write(tmp_path / f"{number}.wav", noise, 16000)
        rows.append(f"{number}.wav,a b c a b")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    options = ["--threads", "1", "--batch_sizes", "1", "2", "--repeats", "1"]
    benchmark.main([str(ctc.checkpoint), "--data", str(tmp_path), *options])
    lines = capsys.readouterr().out.splitlines()
    scored = [line for line in lines if "cer" in line]
    assert [line.split("  ")[0] for line in scored] == ["PyTorch", "ONNX fp32", "ONNX int8"]
    cer = [float(line.split()[-1]) for line in scored]
    assert cer[0] == cer[1] > 0
    timed = [line.split() for line in lines if line.startswith("      1")]
    assert [line[1] for line in timed] == ["1"] * 3 + ["2"] * 3

    with pytest.raises(SystemExit, match="error: .*nowhere"):
        benchmark.main([str(ctc.checkpoint), "--data", str(tmp_path / "nowhere")])
