"""Transcribe clips with an exported CTC model: python transcribe_onnx.py asr.onnx clip.wav [clip.wav ...]"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile


if len(sys.argv) < 3:
    sys.exit("usage: python transcribe_onnx.py asr.onnx clip.wav [clip.wav ...]")
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
labels = json.loads(metadata["labels"])  # the text of each output
clips = []
for path in sys.argv[2:]:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate != int(metadata["sampling_rate"]):
        sys.exit(f"error: {path} has {rate} samples a second, the model wants {metadata['sampling_rate']}.")
    clips.append(samples.mean(axis=1))
input_values = np.zeros((len(clips), max(400, *map(len, clips))), np.float32)
attention_mask = np.zeros(input_values.shape, np.int64)  # 1 for real samples
for row, clip in enumerate(clips):
    input_values[row, : len(clip)], attention_mask[row, : len(clip)] = clip, 1
logits, frames = session.run(None, {"input_values": input_values, "attention_mask": attention_mask})
for best, count in zip(logits.argmax(-1), frames):
    print("".join(labels[k] for i, k in enumerate(best[:count]) if i == 0 or k != best[i - 1]))
