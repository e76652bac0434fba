"""Run an exported recogniser or classifier on clips: python run_onnx.py model.onnx clip.wav [clip.wav ...]

A line for each clip: its text, or the class that is most likely and its probability.
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile


MIN_SAMPLES = 400  # of one frame


def read(path: str, rate: int) -> np.ndarray:
    """The samples of a clip, mono. Raises ValueError with what is wrong with it."""
    try:
        samples, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except Exception as error:  # what a broken file raises is up to its format
        raise ValueError(f"cannot be read as audio: {error}") from None
    if own_rate != rate:
        raise ValueError(f"has {own_rate} samples a second, the model wants {rate}")
    if not samples.size:
        raise ValueError("holds no sound")
    if not np.isfinite(samples).all():
        raise ValueError("holds samples that are not finite")
    return samples.mean(axis=1)


if len(sys.argv) < 3:
    sys.exit("usage: python run_onnx.py model.onnx clip.wav [clip.wav ...]")
try:
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
except Exception as error:  # onnxruntime's have nothing else in common
    sys.exit(f"error: {sys.argv[1]} cannot be opened: {' '.join(str(error).split())}")
metadata = session.get_modelmeta().custom_metadata_map
task = json.loads(metadata.get("task", "null"))
if task not in ("ctc", "classification"):
    sys.exit(
        f"error: {sys.argv[1]} is no exported recogniser or classifier: python -m sjepa_hf.export_onnx --task ctc or"
        " --task classification writes one."
    )
labels = json.loads(metadata["labels"])  # the text of each output
clips = []
for path in sys.argv[2:]:
    try:
        clips.append(read(path, int(metadata["sampling_rate"])))
    except ValueError as error:
        sys.exit(f"error: {path} {error}.")
input_values = np.zeros((len(clips), max(MIN_SAMPLES, *map(len, clips))), np.float32)
attention_mask = np.zeros(input_values.shape, np.int64)  # 1 for real samples
for row, clip in enumerate(clips):
    input_values[row, : len(clip)], attention_mask[row, : len(clip)] = clip, 1
logits, frames = session.run(None, {"input_values": input_values, "attention_mask": attention_mask})
for best, scores, count in zip(logits.argmax(-1), logits, frames):
    if task == "classification":
        print(f"{labels[best]} {1 / np.exp(scores - scores[best]).sum():.3f}")
        continue
    print("".join(labels[k] for i, k in enumerate(best[:count]) if i == 0 or k != best[i - 1]))
