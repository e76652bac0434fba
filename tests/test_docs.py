"""Every page: its commands, options, files, names and links exist, and its Python runs as it stands."""

import ast
import re
from pathlib import Path

import numpy as np
import pages
import pytest
import soundfile
import torch
from transformers import AutoModelForPreTraining, Wav2Vec2Processor

from sjepa_hf import SJepaForCTC, SJepaForPreTraining
from sjepa_hf.feature_extraction import feature_extractor
from training.finetuning.text import build_tokenizer


PAGES = pages.pages()
ROOT = pages.ROOT
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Commands name recipes from the root of the repository."""
    monkeypatch.chdir(ROOT)


@every_page
def test_commands_are_understood_by_what_they_call(page):
    assert pages.wrong_commands(pages.commands(page.read_text())) == []


@every_page
def test_options_in_prose_belong_to_a_command(page):
    assert pages.wrong_options(page.read_text()) == []


@every_page
def test_names_and_files_exist(page):
    text = page.read_text()
    assert pages.wrong_names(text) + pages.wrong_files(text, page.parent) == []


@every_page
def test_links_lead_somewhere_and_tables_are_tables(page):
    text = page.read_text()
    assert pages.wrong_links(text, page.parent) + pages.unclosed_tables(text) == []


def test_the_pages_hold_what_is_checked():
    """The checks above would pass on empty pages."""
    texts = [page.read_text() for page in PAGES]
    assert len(PAGES) >= 9
    assert sum(len(pages.commands(text)) for text in texts) >= 50
    assert sum(len(pages.inline(text)) for text in texts) >= 200
    linked = {
        target for text in texts for target in ("docs/pretraining.md", "docs/sharing.md") if f"({target}" in text
    }
    assert len(linked) == 2


def commented_files() -> list[Path]:
    """Files whose comments or docstrings say how they are called."""
    found = [ROOT / "model_cards/space/app.py", *(ROOT / "training").glob("*.py"), *(ROOT / "sjepa_hf").glob("*.py")]
    found += [*(ROOT / "benchmarks").glob("**/*.py"), *(ROOT / "examples").glob("**/*.py")]
    return found + [*(ROOT / "training/launch").iterdir(), *(ROOT / "training/recipes").iterdir()]


def said_in(file: Path) -> str:
    """The docstring of a module, the comments of another file."""
    text = file.read_text()
    if file.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    return "\n".join(line for line in text.splitlines() if line.startswith("#") and not line.startswith("#SBATCH"))


def test_commands_in_docstrings_recipes_and_launch_files_are_understood():
    found = {}
    for file in commented_files():
        for command in pages.commands_of_comments(said_in(file)):
            if wrong := pages.wrong_with(command):
                found[str(file.relative_to(ROOT))] = wrong
    assert found == {}


@pytest.fixture
def checkpoints(page, make_config, tmp_path) -> dict[str, str]:
    """The page's names of checkpoints, and small ones in their place; of one layer where they are exported."""
    settings = dict(log_mel_cmn=True, mixture_features="mfcc", mixture_feature_size=39)
    layers = 1 if page.name == "sharing.md" else 3
    pretraining = make_config("log_mel", num_hidden_layers=layers, **settings)
    SJepaForPreTraining(pretraining).save_pretrained(tmp_path / "pretrained")
    feature_extractor().save_pretrained(tmp_path / "pretrained")
    tokenizer = build_tokenizer(["ABC"])
    SJepaForCTC(make_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "asr")
    Wav2Vec2Processor(feature_extractor(), tokenizer).save_pretrained(tmp_path / "asr")
    pretrained, recogniser = str(tmp_path / "pretrained"), str(tmp_path / "asr")
    return {
        "demo-output/model/final": pretrained,
        "runs/mine/final": pretrained,
        "sjepa-tiny": pretrained,
        "runs/asr/final": recogniser,
    }


TEXT_GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.875
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.875
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.4
            text = "AH1"
        intervals [3]:
            xmin = 0.4
            xmax = 1.875
            text = ""
    item [2]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.875
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.875
            text = "a"
"""


@every_page
def test_python_runs_as_it_stands(page, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if page.parent == ROOT:  # with the weights and the clip that come with the clone
        monkeypatch.chdir(ROOT)
        names = {}
        for block in pages.blocks(page.read_text(), "python"):
            exec(compile(block, str(page), "exec"), names)
        assert names["outputs"].last_hidden_state.shape == (1, 256, 256)
        return
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    soundfile.write("clip.wav", 0.1 * noise.standard_normal(30000), 16000)
    Path("clip.TextGrid").write_text(TEXT_GRID)
    for word in ("no", "yes") if page.name == "finetuning.md" else ():
        Path("words", word).mkdir(parents=True)
        for number in range(5):
            soundfile.write(f"words/{word}/{number}.wav", 0.1 * noise.standard_normal(8000), 16000)
    monkeypatch.syspath_prepend(tmp_path)
    names = {}
    for block in pages.blocks(page.read_text(), "python"):
        if file := re.match(r"# (\w+\.py)\n", block):
            Path(file[1]).write_text(block)
            continue
        for name, path in checkpoints.items():
            block = block.replace(f'"{name}"', f'"{path}"')
        exec(compile(block, str(page), "exec"), names)
    if page.name == "finetuning.md":
        assert isinstance(names["result"]["text"], str)
        assert len(names["held_out"]) == 2 and set(names["classifier"].classes_) == {"no", "yes"}
    if page.name == "units.md":
        assert (names["phones"], names["phone_ends"]) == ("sil AH1 sil", "0.25 0.4 1.875")
        check_live_features(names)
    if page.name == "clients.md":
        opened = names["Emotion"].from_pretrained("emotion")
        assert Path("emotion/emotion_head.py").is_file() and opened(torch.zeros(1, 8000)).shape == (1, 2)
        noise = torch.randn(1, 8000)
        wanted, found = (names[name].eval()(noise).last_hidden_state for name in ("model", "copy"))
        assert torch.equal(found, wanted)
    if page.name == "sharing.md":
        assert AutoModelForPreTraining.from_pretrained("runs/half").dtype == torch.float32
        program, noise = torch.export.load("encoder.pt2").module(), torch.randn(3, 7000)
        found = program(input_values=noise, attention_mask=torch.ones(3, 7000, dtype=torch.long))
        torch.testing.assert_close(found.last_hidden_state, names["encoder"].eval()(noise).last_hidden_state)


def check_live_features(names: dict):
    """Every frame once and in order, whatever the pieces; as in one pass where nothing is forgotten or given early."""
    live_features, audio = names["live_features"], torch.randn(30000).numpy()
    whole = names["encoder"](torch.from_numpy(audio)[None]).last_hidden_state[0]
    for size in (200, 1600, 9000):
        pieces = np.split(audio, range(size, len(audio), size))
        late = torch.cat(list(live_features(pieces, left=1000, right=1000)))
        assert torch.equal(late, whole)
        parts = list(live_features(pieces, left=20, right=5, every=10))
        assert len(parts) > 3 or size == 9000
        assert torch.cat(parts).shape == whole.shape
    read = []

    def frames(input_values):
        """Numbers of frames, written into the samples, as features."""
        found = input_values[:, : (input_values.shape[1] - 400) // 320 * 320 + 1 : 320]
        read.append(found.shape[1])
        return type("Output", (), {"last_hidden_state": found[:, :, None]})

    names["encoder"] = frames
    numbers = (np.arange(160000) // 320).astype(np.float32)
    pieces = np.split(numbers, range(1600, len(numbers), 1600))
    found = torch.cat(list(live_features(pieces, left=20, right=5, every=10)))
    assert found.flatten().tolist() == list(range(499)) and max(read) < 20 + 5 + 10 + 5


BAD = {
    "a module that is none": "`python -m training.pretraining_run --config x`",
    "an option that is none": "```bash\npython -m training.probe runs/mine/final --data speech/ --phone true\n```",
    "an option in the second line": "```bash\npython -m training.superb --task ks \\\n  --models a\n```",
    "a choice that is none": "| a | `python -m training.superb --task kws --model runs/mine/final` |",
    "a required option left out": "`python -m training.probe runs/mine/final`",
    "a recipe that is none": "`python -m training.pretrain --config training/recipes/large.yaml --train_data a/`",
    "a subcommand that is none": "`python -m training.decoding build-lm --text a.txt --output lm.arpa`",
    "an option of another subcommand": "`python -m training.decoding decode --model a --data b --order 4`",
    "a package that is no command": "`python -m training.common.naming`",
    "a launched file that is none": "`accelerate launch training/pretraining.py --train_data a/`",
    "an option behind a launcher": "`accelerate launch -m training.pretrain --train_data a/ --batchseconds 3`",
    "an option of the launcher": "`accelerate launch --eight_gpus training/pretrain.py --train_data a/`",
    "settings of a launcher": "`accelerate launch --config_file training/launch/two.yaml training/pretrain.py ...`",
    "an option behind sbatch": "`OUTPUT_DIR=a sbatch --nodes 4 training/launch/slurm.sh --train_datas a/`",
    "a script that is none": "`sbatch --nodes 4 training/launch/pbs.sh --train_data a/`",
    "an option of a script": "`python model_cards/space/app.py --checkpoints a`",
    "a file that is none": "`python examples/transcribe.py asr.onnx`",
    "a target of make": "```bash\nmake env && make demos\n```",
    "a target in a comment": "```python\na = 1  # what `make demos` leaves\n```",
    "a variable of make": "`make demo SPEACH=DIR`",
    "an extra": '```bash\npip install ".[onx]"\n```',
    "a command of the Hub": "`hf log-in`",
    "an option of the Hub": "`hf upload a/b c . --typ space`",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_wrong_command_is_found(text):
    assert len(pages.wrong_commands(pages.commands(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "`python -m training.pretrain --config training/recipes/tiny.yaml --train_data my_audio/ --dry_run true`",
        "`python -m training.decoding`",
        "`accelerate launch -m training.pretrain --config training/recipes/base.yaml ...`",
        "`hf upload a/b model_cards/space . --type space --exclude x`",
        "`make demo SPEECH=DIR`",
    ],
)
def test_a_right_command_passes(text):
    assert len(pages.commands(text)) == 1
    assert pages.wrong_commands(pages.commands(text)) == []


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (pages.wrong_options, "Give it `--dryrun` first."),
        (pages.wrong_options, "| `--eval_dat dev/` | x |"),
        (pages.wrong_names, "Set `bucket_bufer_size`."),
        (pages.wrong_names, "See `training.probes`."),
        (pages.wrong_names, "See `sjepa_hf.resampling.resampled`."),
        (pages.wrong_names, "```yaml\nphase3_steps: 10\n```"),
        (lambda text: pages.wrong_files(text, ROOT), "It stands in `training/data/loaders.py`."),
        (lambda text: pages.wrong_files(text, ROOT), "```\ntargets/x   training/targets/maskings.py\n```"),
        (lambda text: pages.wrong_files(text, ROOT), "`training/recipe/`"),
        (lambda text: pages.wrong_files(text, ROOT), "It writes `metrix.jsonl`."),
        (lambda text: pages.wrong_links(text, ROOT), "[a](docs/pretrain.md)"),
        (lambda text: pages.wrong_links(text, ROOT), "[a](docs/pretraining.md#no-such-heading)"),
        (lambda text: pages.wrong_links(text, ROOT), "# A heading\n\n[a](#another-heading)"),
        (lambda text: pages.wrong_links(text, ROOT), "![a](docs/loss.png)"),
        (pages.unclosed_tables, "| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |\n"),
    ],
)
def test_what_does_not_exist_is_found(check, text):
    assert len(check(text)) == 1


@pytest.mark.parametrize(
    "change",
    [
        ("docs/sharing.md#how-do-i-look-and-listen", "docs/sharing.md#look-and-listen"),
        ("--train_data my_audio/", "--training_data my_audio/"),
        ("training/recipes/tiny.yaml", "training/recipes/medium.yaml"),
        ("docs/measured.md", "docs/measurements.md"),
        ("make demo", "make demonstration"),
    ],
)
def test_a_fault_in_the_readme_itself_is_found(change, tmp_path):
    text = (ROOT / "README.md").read_text()
    assert change[0] in text
    broken = text.replace(*change)
    checks = pages.wrong_commands(pages.commands(broken)) + pages.wrong_links(broken, ROOT)
    assert checks + pages.wrong_files(broken, ROOT)


def test_python_that_does_not_run_is_skipped_with_a_reason_only():
    text = "<!-- not run: it needs the Hub -->\n```python\na\n```\n\n<!-- not run: -->\n```python\nb\n```\n"
    assert pages.blocks(text, "python") == ["b\n"]
