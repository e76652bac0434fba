"""
Measurements of this project, every file a command: `python -m benchmarks` lists them, and each tells of itself with
`--help`. What they found stands in docs/measured.md.

Speed:
    step.py                 a pretraining step: throughput, parts, memory, utilisation; beside a plain one and HuBERT's
    loader.py               the pretraining loader beside bare decoding
    manifest.py             opening and reading a manifest of ten million rows
    mixture.py              one update of the mixture beside its plain forms
    onnx.py                 an export to ONNX: size, agreement, accuracy, speed

Exactness and faults:
    kill_and_resume.py      kill a run at random moments, resume it, compare the weights bit for bit
    splits.py               one batch split over steps or processes: how far weights drift apart
    fuzz_audio.py           damaged audio files and manifests
    fuzz_checkpoints.py     damaged checkpoints
    fuzz_configurations.py  hostile settings

Folders:
    steps/                  what step.py lets take turns, and how operations are counted; no commands
    study/                  grids of pretrainings at equal audio, their results and the report of them
"""
