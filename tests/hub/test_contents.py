"""What leaves a checkpoint directory, and what never does."""

import json
import logging
import os
from pathlib import Path

import pytest
import yaml
from pushing import push

import sjepa_hf
from sjepa_hf.configuration_sjepa import MODEL_CODE
from sjepa_hf.contents import ADAPTER, PRETRAINING, contents, reduce_paths, shown
from sjepa_hf.push import push as push_from_python
from sjepa_hf.scores import THIS_MODEL, Score, write_scores


FOREIGN = """
.env .netrc .ssh/id_rsa .git/config .config.json.swp token secret.yaml id_ed25519 server.pem credentials.json
service-account.json notes.txt a.ipynb core.1 train.jsonl transcripts.jsonl clips/a.wav table.csv wandb/a.wandb
logs/run.log events.out.tfevents.1 optimizer.bin scaler.pt model.ckpt pytorch_model.bin training_args.bin
trainer_state.json training_state/optimizer.pt checkpoint-3/model.safetensors other.safetensors config.json.bak
README.md~ extra.py __pycache__/extra.pyc adapter/notes.txt .eval_results/.env
.eval_results/.a.yaml .eval_results/a.json passwords.md photo.png
""".split()
IMAGE = b"\x89PNG\r\n\x1a\n and so on"


def strew(directory: Path) -> None:
    """Foreign files and links, each with a content that is to be found nowhere else."""
    for name in FOREIGN:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a secret of ada's")
    (directory / "line\nbreak").write_bytes(b"a secret of ada's")
    (directory / os.fsdecode(b"\xff.json")).write_bytes(b"a secret of ada's")
    (directory / "passwd").symlink_to("/etc/passwd")
    (directory / "home").symlink_to(Path.home())
    (directory / "copy.json").symlink_to("config.json")


def test_nothing_foreign_is_published_and_all_of_it_is_named(hub, pretrained, tmp_path, capsys):
    assert push(pretrained, "clean") == ""
    strew(pretrained)
    assert push(pretrained, "strewn", "--dry_run") == ""
    listed = capsys.readouterr().out
    assert push(pretrained, "strewn") == ""
    assert hub.files("ada/strewn").keys() == hub.files("ada/clean").keys()
    assert not any(b"secret" in content for content in hub.files("ada/strewn").values())
    going, staying = listed.split("would stay here:")
    tops = {name.partition("/")[0] + "/" * ("/" in name) for name in FOREIGN}
    for name in (*tops, "passwd", "home", "copy.json", r"'line\nbreak'", r"'\udcff.json'"):
        assert f" {name} " in staying and f" {name}\n" not in going, name


def test_a_dry_run_sends_nothing_and_gives_sizes(hub, pretrained, capsys):
    assert push(pretrained, "ada/encoder", "--dry_run") == "" and hub.requests == []
    listed = capsys.readouterr().out
    size = (pretrained / "model.safetensors").stat().st_size
    assert f"{size:>16,}  model.safetensors\n" in listed and "would go to ada/encoder:" in listed
    assert "README.md  (made from these" in listed and "training_state/  (it is not part of a checkpoint)" in listed


def test_a_push_names_some_of_what_stays(hub, pretrained, caplog):
    strew(pretrained)
    with caplog.at_level(logging.INFO, "sjepa_hf.push"):
        push_from_python(pretrained, "encoder")
    (said,) = [record.getMessage() for record in caplog.records if "stay here" in record.getMessage()]
    count = len(contents(pretrained).left_out)
    assert said.startswith(f"{count} of {pretrained} stay here: .config.json.swp, .env, .eval_results/, .git/")
    assert said.endswith(f"and {count - 10} more (--dry_run names all)") and "\n" not in said


@pytest.mark.parametrize("name", ["README.md", "training.json", "results.json", "loss.png", "LICENSE"])
def test_no_link_is_followed_whatever_its_name(hub, pretrained, tmp_path, name):
    """Neither published nor read for the card: to a file elsewhere, to one here that would not go, and to itself."""
    secret = {"steps": 4321, "scores": [], "settings": {"key": "a secret of ada's"}}
    (tmp_path / "elsewhere").write_text(json.dumps(secret))
    (pretrained / ".env").write_text(json.dumps(secret))
    for target in (tmp_path / "elsewhere", ".env", name):
        (pretrained / name).unlink(missing_ok=True)
        (pretrained / name).symlink_to(target)
        assert push(pretrained, "encoder") == ""
        files = hub.files("ada/encoder")
        assert (name == "README.md") == (name in files)
        assert not any(b"secret" in content or b"4,321" in content for content in files.values())


def test_links_of_folders_and_of_weights(hub, pretrained, tmp_path):
    (pretrained / "training_state").rename(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (pretrained / "adapter").symlink_to(tmp_path / "adapter")
    assert "adapter" in contents(pretrained).left_out and len(contents(pretrained).files) == len(MODEL_CODE) + 3
    link = tmp_path / "latest"
    link.symlink_to(pretrained)
    assert contents(link).files.keys() == contents(pretrained).files.keys(), "the checkpoint itself may be a link"
    for name in ("model.safetensors", "frames.py"):
        (pretrained / name).rename(tmp_path / name)
        (pretrained / name).symlink_to(tmp_path / name)
        assert f"lacks {name}: it is a link" in push(pretrained, "encoder")


def test_a_checkpoint_without_any_code_is_published_with_the_packages(hub, pretrained):
    """As the checkpoints of this repository lie there: their code is that of `sjepa_hf/`, kept once."""
    before = contents(pretrained).files
    texts = {name: before[name].read_bytes() for name in MODEL_CODE}
    for name in MODEL_CODE:
        (pretrained / name).unlink()
    assert push(pretrained, "encoder") == ""
    assert {name: hub.files("ada/encoder")[name] for name in MODEL_CODE} == texts


def test_a_configuration_that_names_no_code_is_refused(pretrained):
    settings = json.loads((pretrained / "config.json").read_text())
    del settings["auto_map"]
    (pretrained / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"lacks the model's code \(auto_map in config.json\): open it with"):
        contents(pretrained)


def test_where_one_file_of_weights_lies_beside_an_index_it_goes_as_it_is_the_one_that_opens(pretrained):
    (pretrained / "model.safetensors.index.json").write_text('{"weight_map": {"a": "old.safetensors"}}')
    (pretrained / "old.safetensors").write_bytes((pretrained / "model.safetensors").read_bytes())
    found = contents(pretrained)
    assert "model.safetensors" in found.files
    assert {"model.safetensors.index.json", "old.safetensors"} <= found.left_out.keys()


def test_long_names_are_cut_in_their_middle():
    assert shown("a" * 60 + "b" * 60) == "a" * 38 + "..." + "b" * 39 and shown("a" * 80) == "a" * 80


def test_weights_alone_may_be_large(pretrained, monkeypatch):
    most = max((pretrained / name).stat().st_size for name in MODEL_CODE)
    monkeypatch.setattr("sjepa_hf.contents.LARGEST_BUT_WEIGHTS", most)
    (pretrained / "README.md").write_text("a" * (most + 1))
    found = contents(pretrained)
    assert "MB, more than such a file can have" in found.left_out["README.md"]
    assert found.files["model.safetensors"].stat().st_size > most


def test_a_pipe_is_not_waited_for(pretrained):
    os.mkfifo(pretrained / "README.md")
    assert contents(pretrained).left_out["README.md"] == "it is not a regular file"


def test_a_users_card_goes_with_the_pictures_that_it_shows(hub, pretrained):
    shown = "![a](figures/a%20b.png) <img src='./c.png'> ![x](.env.png) ![y](../up.png)"
    shown += f" ![z]({pretrained.parent / 'up.png'})"
    card = f"---\nlicense: mit\n---\nMine {shown}"
    (pretrained / "README.md").write_text(card)
    (pretrained / "figures").mkdir()
    for name in ("figures/a b.png", "c.png", "d.png", ".env.png", "../up.png"):
        (pretrained / name).write_bytes(IMAGE)
    assert push(pretrained, "encoder") == ""
    files = hub.files("ada/encoder")
    assert files["README.md"].decode() == card
    assert {name for name in files if name.endswith(".png")} == {"figures/a b.png", "c.png"}
    (pretrained / "c.png").write_text("a secret of ada's")
    assert contents(pretrained).left_out["c.png"].startswith("it is not a picture")


def test_paths_of_this_machine_do_not_go_along(hub, pretrained):
    config = json.loads((pretrained / "config.json").read_text()) | {
        "_name_or_path": "/home/ada/runs/secret-run/final",
        "id2label": {"0": "/m/09x0r", "1": "/m/05zppz"},
    }
    (pretrained / "config.json").write_text(json.dumps(config))
    row = Score(THIS_MODEL, "classification", "audio-classification", "/home/ada/a/clips", "test", "accuracy", 1.0)
    write_scores(pretrained / "results.json", [row], verdicts={"/home/ada/a/clips": 1, "/home/ada/b/clips": 2})
    assert push(pretrained, "encoder") == ""
    files = hub.files("ada/encoder")
    assert not any(b"/home/ada" in content for content in files.values())
    published = json.loads(files["config.json"])
    assert published["_name_or_path"] == "final" and published["id2label"] == config["id2label"]
    results = json.loads(files["results.json"])
    assert results["verdicts"].keys() == {"clips (1)", "clips (2)"} and results["scores"][0]["data"] == "clips"
    assert json.loads((pretrained / "config.json").read_text()) == config, "here they stay"


def test_what_is_taken_for_a_path():
    for path, name in (
        ("/home/ada/lm.arpa", "lm.arpa"),
        ("~/a/lm.arpa", "lm.arpa"),
        ("../../ada/x.yaml", "x.yaml"),
        ("../x.jsonl", "x.jsonl"),
    ):
        assert reduce_paths({"lm": [path]}) == {"lm": [name]}
    for value in ("ada/encoder", "/", "linear", ".,?!/", "/m", "2 h / 3 h", 3, None, True):
        assert reduce_paths([value]) == [value]


@pytest.mark.parametrize("name", ["README.md", "vocab.json", "training.json", "mixture.py"])
@pytest.mark.parametrize("secret", ["hf_" + "aB3" * 11, "-----BEGIN OPENSSH PRIVATE KEY-----"])
def test_a_token_in_a_file_that_goes_is_found(hub, pretrained, name, secret):
    text = json.dumps({"key": secret}) if name.endswith(".json") else f"# {secret}"
    (pretrained / name).write_text(text)
    said = push(pretrained, "encoder")
    assert f"{name} holds what looks like a token or a private key" in said and secret not in said
    assert "ada/encoder" not in hub.repos


def change_index(directory: Path, **changes) -> None:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_index_that_points_elsewhere_is_refused(pretrained, tmp_path):
    shards = tmp_path / "shards"
    sjepa_hf.SJepaForPreTraining.from_pretrained(pretrained).save_pretrained(shards, max_shard_size="100KB")
    (shards / "id_rsa").write_text("a secret of ada's")
    first = "model-00001-of-00005.safetensors"
    for name in ("../x.safetensors", "/etc/passwd", "id_rsa", "a/b.safetensors", ".x.safetensors", 3, None):
        change_index(shards, weight_map={"a": first, "b": name})
        assert "names a shard that is not a file of this directory" in push(shards, "x"), name
    change_index(shards, weight_map={"a": "absent.safetensors"})
    assert "lacks absent.safetensors." in push(shards, "x")
    change_index(shards, weight_map={"a": first})
    assert f"{first} lacks the tensor a, which model.safetensors.index.json says is there" in push(shards, "x")
    for weight_map in ({}, [], None):
        change_index(shards, weight_map=weight_map)
        assert "names no shards" in push(shards, "x")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.json", b"", "lacks config.json: it is empty."),
        ("config.json", b"{torn", "config.json is no JSON"),
        ("config.json", b"[1]", "config.json holds list where a JSON object should be"),
        ("config.json", b"[" * 100_000, "config.json is no JSON"),
        ("config.json", b'{"model_type": "x", "auto_map": {"AutoModel": "x.X"}}', "needs code that is not sjepa_hf's"),
        ("modeling_sjepa.py", b"def torn(", "modeling_sjepa.py is no Python ("),
        ("auto_classes.py", b"<!doctype html>", "auto_classes.py is no Python ("),
        ("frames.py", b"a = 1\0", "frames.py is no Python ("),
        ("model.safetensors", b"", "lacks model.safetensors: it is empty."),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is not a complete safetensors file"),
        ("preprocessor_config.json", b"\xff\xfe", "preprocessor_config.json is no JSON"),
        ("vocab.json", b"{torn", "vocab.json is no JSON"),
        *((name, b"torn", f"{name} is not a complete safetensors file") for name in (ADAPTER[1], PRETRAINING[1])),
        (
            "README.md",
            b"---\nlicense: mit\ntags: a: b\n---\n",
            "README.md: the metadata at its top is no YAML (line 3)",
        ),
        ("README.md", b"---\n- mit\n---\n", "README.md: the metadata at its top are not a card's"),
        ("README.md", b"---\nmodel-index: 3\n---\n", "README.md: the metadata at its top are not a card's"),
        ("README.md", "Modèle".encode("latin-1"), "README.md is not in UTF-8"),
    ],
)
def test_files_that_would_not_serve_anybody_are_named(pretrained, name, content, sentence):
    (pretrained / name).parent.mkdir(exist_ok=True)
    (pretrained / name).write_bytes(content)
    said = push(pretrained, "encoder")
    assert sentence in said and said.startswith("error: ") and "\n" not in said and "raised in" not in said


def test_torn_weights_are_refused(pretrained):
    weights = pretrained / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors is not a complete safetensors file" in push(pretrained, "encoder")


def test_names_that_no_repo_can_have(hub, pretrained):
    for name in ("a b", "ada/x/y", "ada/", "é", "x" * 97, "x--y", "a\nb"):
        said = push(pretrained, name)
        assert "cannot be the name of a repo" in said and "\n" not in said and "raised in" not in said
        assert push(pretrained, name, "--dry_run") == said
    assert hub.requests == []


def test_an_empty_card_is_written(hub, pretrained):
    (pretrained / "README.md").touch()
    assert push(pretrained, "encoder") == ""
    assert yaml.safe_load(hub.files("ada/encoder")["README.md"].split(b"---")[1])["library_name"] == "transformers"


def test_weights_of_others_in_the_repo_stay(hub, pretrained):
    """Those of this model are replaced; a file that somebody put there by hand is not ours to delete."""
    theirs = {"vocoder/model.safetensors", "model_ema.safetensors", "model-int8.safetensors", "model.ema.safetensors"}
    assert push(pretrained, "encoder") == ""
    repo = hub.repos["ada/encoder"]
    files = dict(repo.commits[repo.resolve("main")]) | {name: repo.write(b"by hand") for name in theirs}
    repo.commit("main", files, "by hand")
    (pretrained / "loss.png").write_bytes(IMAGE)
    assert push(pretrained, "encoder") == ""
    assert theirs | {"loss.png"} <= hub.files("ada/encoder").keys()
