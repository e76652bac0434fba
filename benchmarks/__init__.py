"""
Measurements of this project, every file a command: `python -m benchmarks.NAME --help` says how it measures, and
docs/measured.md what was found.

Speed:
    step.py                  a pretraining step: throughput, parts, memory, utilisation; a plain step and HuBERT's
    encode.py                features of clips, or of an hour in one call, beside HuBERT and WavLM
    traffic.py               its bytes, FLOP and operations by part, and HuBERT's, counted without a GPU
    loader.py                the pretraining loader beside bare decoding
    manifest.py              opening and reading a manifest of ten million rows
    mixture.py               one update of the mixture beside its plain forms
    onnx.py                  an export to ONNX: size, agreement, accuracy, speed

On a GPU that is simulated:
    simulated_gpu.py         any command: does all lie on one device, and where is it waited for?

Exactness and faults:
    kill_and_resume.py       a run killed at random moments and resumed: the same weights, bit for bit?
    splits.py                one batch split over steps or processes: how far weights drift apart
    two_machines.sh          a launch over two machines, tried on one (needs root)
    fuzz_audio.py            damaged audio files and manifests: samples or a sentence?
    fuzz_checkpoints.py      damaged checkpoints: passed over or refused in a sentence?
    fuzz_configurations.py   hostile settings: taken or refused in a sentence?
    fuzz_options.py          random settings: refused, or run to the end, and the same when stopped and resumed?

Transformers' own tests, from a checkout of it:
    transformers_tests.py    those of its models, over ours

SUPERB in S3PRL's own code, in an environment that has it:
    s3prl/table.py           figures of S3PRL's runner and of training.superb on the same small data
    s3prl/heads.py           the arithmetic of heads and scores, with copied weights

The study (study/README.md), on speech that is no part of this repository:
    study/speech_manifest.py the manifest of what is trained on, without what is scored
    study/run.py             a grid of pretrainings at equal audio, scored
    study/score.py           scores of several checkpoints beside MFCC and an untrained encoder, one table
    study/noise.py           words with noise over and around them, by a classifier of clean ones
    study/bootstrap.py       how sure one recogniser makes fewer errors than another
    study/adapting.py        a small HuBERT of one domain, gone on with on another, probes of both
    study/report.py          tables and pictures of finished grids

What commands are made of:
    transformers_suite/suite.py what those tests are given, and which are left out
    s3prl/data.py            small data for seven tasks, as S3PRL looks for them
    s3prl/toolkit.py         S3PRL's runner on one of them
    gpu/device.cpp           a CUDA device that computes on the CPU
    gpu/building.py          compiles it
    gpu/process.py           the process that has it
    gpu/torch_cuda.py        what `torch.cuda` is told of it
    gpu/waits.py             where it is waited for
    steps/candidates.py      the steps that step.py lets take turns: ours and HuBERT's
    steps/turns.py           turns at the clock, and how their times compare
    steps/naive.py           the step written plainly, the reference of ours
    steps/flops.py           floating-point operations of a step, from the configuration
    steps/operations.py      bytes and FLOP of all that is dispatched, by part of the model
    steps/cuda_rules.py      what a GPU would run where fake tensors stand in for it
    study/grid.py            what a grid's file says
    study/scores.py          how a checkpoint is scored
    study/frozen.py          the scores that training.superb makes, on many speakers
"""
