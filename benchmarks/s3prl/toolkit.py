"""S3PRL's own runner on one experiment, in the Python that has S3PRL (table.py calls it).

    /path/to/s3prl/bin/python -m benchmarks.s3prl.toolkit emotion --config config.yaml --checkpoint CHECKPOINT \\
        --split test --state dev-best.ckpt --seeds 0 1 --output folder

It trains and evaluates, a seed after the other. Each clip is encoded once, since the encoder is frozen. What stands in
for what: torchaudio's reading is soundfile's; its sox effects are the gain of
-3 dB alone, so that asv keeps its silences; the data set of phones, which S3PRL's package leaves out, is written here;
the 1,251 outputs of sid are those of the data's speakers; diarization is scored from S3PRL's predictions as
`training.superb` scores its own, since the toolkit leaves that to another program.
"""

import importlib
import json
import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence

from sjepa_hf.command import CommandParser, command


HUBCONF = Path(__file__).parents[2] / "examples" / "s3prl"


def stand_in(name: str, **attributes) -> types.ModuleType:
    """A module of that name in the place of one that is missing; what it is not given does nothing."""

    def nothing(attribute: str):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return lambda *args, **kwargs: None

    module = types.ModuleType(name)
    module.__dict__.update({"__spec__": ModuleSpec(name, None), "__path__": [], "__getattr__": nothing, **attributes})
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)
    return module


def load(path: str) -> tuple[torch.Tensor, int]:
    """torchaudio.load: samples `(1, num_samples)`."""
    samples, rate = soundfile.read(path, dtype="float32")
    return torch.from_numpy(samples)[None], rate


def apply_effects_file(path: str, effects: list[list[str]]) -> tuple[torch.Tensor, int]:
    samples, rate = load(path)
    for name, *values in effects:
        if name == "gain":
            samples = samples * 10 ** (float(values[0]) / 20)
    return samples, rate


def without_torchaudio() -> None:
    """S3PRL wants a torchaudio of 2022."""
    stand_in("torchaudio", load=load, __version__="0")
    stand_in("torchaudio.sox_effects", apply_effects_file=apply_effects_file)
    stand_in("torchaudio.transforms", Resample=lambda old, new: lambda samples: samples)
    for name in ("functional", "compliance", "compliance.kaldi"):
        stand_in(f"torchaudio.{name}")


class Phones:
    """Phones of a manifest, clips sorted by length into buckets: the data set that S3PRL's package leaves out."""

    def __init__(self, manifest: str, tokenizer, bucket_size: int, **settings):
        rows = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
        rows.sort(key=lambda row: soundfile.info(row["audio_filepath"]).frames, reverse=True)
        pairs = [(row["audio_filepath"], tokenizer.encode(row["phones"])) for row in rows]
        self.buckets = [pairs[n : n + bucket_size] for n in range(0, len(pairs), bucket_size)]

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, index: int) -> list:
        return self.buckets[index]


def adapt(downstream: str, config: dict, output: Path) -> None:
    """What keeps S3PRL's code of a task from running here."""
    base = f"s3prl.downstream.{downstream}"
    if downstream == "voxceleb1":
        module = importlib.import_module(f"{base}.dataset")
        module.CACHE_PATH = str(output / "cache")
        speakers = {path.name for path in Path(config["datarc"]["file_path"]).glob("*/wav/*")}
        first = module.SpeakerClassifiDataset.__init__

        def init(self, *args, **kwargs):
            first(self, *args, **kwargs)
            self.speaker_num = len(speakers)

        module.SpeakerClassifiDataset.__init__ = init
    elif downstream == "sv_voxceleb1":
        module = importlib.import_module(f"{base}.dataset")
        module.__file__ = str(output / "dataset.py")  # where it keeps the lengths of clips
        module.SpeakerVerifi_train.__init__.__defaults__ = (None, 1)  # in one process
        torch.Tensor.cuda = lambda self: self
    elif downstream == "ctc":
        stand_in(f"{base}.corpus")
        stand_in(f"{base}.corpus.libriphone", LibriPhoneDataset=Phones)
        module = importlib.import_module(f"{base}.expert")
        opened = module.load_dataset
        module.load_dataset = lambda split, tokenizer, corpus: opened(split, tokenizer, dict(corpus))


def diarization_error(output: Path, config: dict) -> float:
    """The error rate of S3PRL's predictions on the test set, as `training.superb` counts it."""
    import h5py

    from training.data.labelled import open_labelled
    from training.evaluation.superb.diarization import ActivityLabels, Mixtures

    folder = Path(config["loaderrc"]["test_dir"])
    mixtures = Mixtures(open_labelled([str(folder.with_suffix(".jsonl"))], ["speaker"]), "speaker", "test")
    found = {}
    for i in range(len(mixtures)):
        with h5py.File(output / "scoring" / "predictions" / f"rec{i:04}.h5") as file:
            found[i] = torch.from_numpy(np.array(file["T_hat"])).logit()
    return ActivityLabels({"test": mixtures}).error_rate(found, "test")


def encoding_once(expert: type) -> type:
    """The upstream, which remembers the layers of every waveform."""
    memory: dict[int, list[torch.Tensor]] = {}

    class Remembering(expert):
        def forward(self, wavs: list[torch.Tensor]) -> dict:
            keys = [hash(wav.numpy().tobytes()) for wav in wavs]
            for key, wav in zip(keys, wavs):
                if key not in memory:
                    with torch.no_grad():
                        memory[key] = [layer[0] for layer in super().forward([wav])["hidden_states"]]
            layers = [pad_sequence(layer, batch_first=True) for layer in zip(*(memory[key] for key in keys))]
            return {"hidden_states": layers, "last_hidden_state": layers[-1]}

    return Remembering


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("downstream", help="S3PRL's name of the task")
    parser.add_argument("--config", type=Path, required=True, help="settings of the run, YAML")
    parser.add_argument("--checkpoint", required=True, help="the encoder")
    parser.add_argument("--split", default="test", help="what is evaluated")
    parser.add_argument("--state", default="dev-best.ckpt", help="the saved step that is evaluated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, required=True, help="where S3PRL writes")
    arguments = parser.parse_args(argv)
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    without_torchaudio()
    sys.path.append(str(HUBCONF))
    import hubconf
    import s3prl.hub
    import yaml
    from s3prl import run_downstream

    s3prl.hub.sjepa_custom = encoding_once(hubconf.UpstreamExpert)
    config = yaml.safe_load(arguments.config.read_text())["downstream_expert"]
    adapt(arguments.downstream, config, arguments.output)
    for seed in arguments.seeds:
        output = arguments.output / f"seed-{seed}"
        common = ["run_downstream", "-p", str(output), "--device", "cpu"]
        encoder = ["-u", "sjepa_custom", "-k", arguments.checkpoint, "-d", arguments.downstream]
        sys.argv = [*common, *encoder, "-m", "train", "-c", str(arguments.config), "--seed", str(seed)]
        run_downstream.main()
        sys.argv = [*common, "-m", "evaluate", "-t", arguments.split, "-e", str(output / arguments.state)]
        run_downstream.main()
        if arguments.downstream == "diarization":
            print(f"der: {diarization_error(output, config)}")


if __name__ == "__main__":
    main()
