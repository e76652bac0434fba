"""`python -m sjepa_hf.push` against a Hub: what arrives, what stays at home, what is said where it cannot be done."""

import json
from types import SimpleNamespace

import pytest
from huggingface_hub import CommitOperationDelete, constants
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import httpx
from pushing import push
from safetensors.torch import load_file
from transformers import AutoModel

import sjepa_hf
from sjepa_hf.configuration_sjepa import AUTO_MAP, MODEL_CODE
from sjepa_hf.model_card import MARK
from sjepa_hf.push import commit, hub_errors, listing, open_repo, wants_card, what_stays
from sjepa_hf.push import push as publish


def test_everything_that_a_colleague_needs_arrives(hub, pretrained, capsys):
    assert push(pretrained, "encoder") == ""
    files = hub.files("ada/encoder")
    expected = {path.name for path in pretrained.iterdir() if path.is_file()}
    assert files.keys() == expected | {"README.md"}
    assert set(MODEL_CODE) <= files.keys() and json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    for name in expected:
        assert files[name] == (pretrained / name).read_bytes(), name
    assert hub.repos["ada/encoder"].refs["main"] in capsys.readouterr().out
    assert len(hub.repos["ada/encoder"].commits) == 2, "the empty one of the new repo, and one with all files"


def test_transcripts_and_training_state_stay_at_home(hub, recogniser):
    assert push(recogniser, "ada/asr") == ""
    assert "transcripts.jsonl" not in hub.files("ada/asr")
    assert not any("training_state" in name for name in hub.files("ada/asr"))


def test_pushing_again_replaces_shards_and_keeps_the_card(hub, pretrained, tmp_path):
    model = sjepa_hf.SJepaForPreTraining.from_pretrained(pretrained)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    (tmp_path / "shards" / "README.md").write_text("---\nlicense: mit\n---\nmine")
    assert push(tmp_path / "shards", "encoder") == ""
    sharded = hub.files("ada/encoder")
    assert sum(name.endswith(".safetensors") for name in sharded) > 1
    assert push(pretrained, "encoder") == ""
    whole = hub.files("ada/encoder")
    assert [name for name in whole if name.endswith((".safetensors", "index.json"))] == ["model.safetensors"]
    assert whole["README.md"].endswith(b"mine")


def test_a_generated_card_makes_way_for_one_of_a_newer_training(hub, pretrained):
    assert push(pretrained, "encoder") == ""
    old = hub.files("ada/encoder")["README.md"]
    (pretrained / "training.json").write_text(json.dumps({"steps": 1234}))
    assert push(pretrained, "encoder") == ""
    new = hub.files("ada/encoder")["README.md"]
    assert b"1,234 steps" in new and b"1,234" not in old
    (pretrained / "training.json").unlink()
    assert push(pretrained, "encoder") == "" and hub.files("ada/encoder")["README.md"] == new


def test_nothing_new_is_no_new_commit(hub, pretrained):
    assert push(pretrained, "encoder") == push(pretrained, "encoder") == ""
    assert len(hub.repos["ada/encoder"].commits) == 2


def test_a_private_repo_is_hidden_from_others(hub, pretrained, monkeypatch):
    assert push(pretrained, "secret", "--private") == ""
    assert AutoModel.from_pretrained("ada/secret").config.model_type == "sjepa"
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(pretrained.parent / "bob"))
    with pytest.raises(OSError, match="not a valid model identifier"):
        AutoModel.from_pretrained("ada/secret")
    assert push(pretrained, "ada/secret").startswith("error: The access token may not write to ada/secret")


def test_a_revision_is_a_branch(hub, pretrained):
    assert push(pretrained, "encoder", "--revision", "v2") == ""
    assert hub.files("ada/encoder") == {} and "model.safetensors" in hub.files("ada/encoder", "v2")


def test_what_a_branch_holds_is_that_of_the_branch(hub, pretrained, tmp_path):
    """Its weights make way, its card stays, and its kind of model is kept, whatever main has: here, nothing."""
    model = sjepa_hf.SJepaForPreTraining.from_pretrained(pretrained)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    (tmp_path / "shards" / "README.md").write_text("---\nlicense: mit\n---\nmine")
    for checkpoint in (tmp_path / "shards", pretrained):
        assert push(checkpoint, "encoder", "--revision", "v2") == ""
    files = hub.files("ada/encoder", "v2")
    assert [name for name in files if name.endswith((".safetensors", "index.json"))] == ["model.safetensors"]
    assert files["README.md"].endswith(b"mine")
    (pretrained / "config.json").write_text('{"model_type": "hubert"}')
    assert "taken: it holds a sjepa model" in push(pretrained, "encoder", "--revision", "v2")


def test_a_token_of_one_s_own_goes_before_the_one_that_is_logged_in(hub, pretrained, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_bob")
    publish(pretrained, "encoder", token="hf_ada")
    assert "model.safetensors" in hub.files("ada/encoder")
    with pytest.raises(ValueError, match="may not write to ada/encoder"):  # before there is anything to send
        open_repo("ada/encoder", "sjepa")


def test_a_new_repo_is_as_the_account_s_settings_say_unless_it_is_to_be_hidden(pretrained, monkeypatch):
    asked = []
    monkeypatch.setattr("sjepa_hf.push.push", lambda **told: asked.append(told) or SimpleNamespace(commit_url=""))
    for options in ([], ["--private"]):
        assert push(pretrained, "encoder", *options) == ""
    assert [told["private"] for told in asked] == [None, True]


@pytest.mark.parametrize(
    ("token", "repo", "sentence"),
    [
        ("hf_wrong", "encoder", "The Hub refuses the access token"),
        ("hf_bob", "ada/encoder", "The access token may not write to ada/encoder"),
        ("hf_bob", "ada/other", "The access token may not write to ada/other"),
    ],
)
def test_who_may_not_write_is_told_so(hub, pretrained, monkeypatch, token, repo, sentence):
    assert push(pretrained, "encoder") == ""
    monkeypatch.setenv("HF_TOKEN", token)
    assert push(pretrained, repo).startswith(f"error: {sentence}")


def test_a_name_that_holds_another_kind_of_model_is_taken(hub, pretrained):
    assert push(pretrained, "encoder") == ""
    (pretrained / "config.json").write_text('{"model_type": "hubert"}')
    assert push(pretrained, "encoder").startswith(
        "error: ada/encoder is taken: it holds a sjepa model, not a hubert model"
    )


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/lfs/"), ("POST", "/preupload/"), ("POST", "/commit/"), ("POST", "/objects/batch")]
)
def test_a_connection_that_is_cut_is_tried_again(hub, pretrained, monkeypatch, method, path):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail(method, path, "cut")
    assert push(pretrained, "encoder") == "" and not hub.failures
    assert hub.files("ada/encoder")["model.safetensors"] == (pretrained / "model.safetensors").read_bytes()
    assert len(hub.repos["ada/encoder"].commits) == 2


def test_a_push_whose_answer_was_lost_ends_well(hub, pretrained, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    model = sjepa_hf.SJepaForPreTraining.from_pretrained(pretrained)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert push(tmp_path / "shards", "encoder") == ""
    hub.fail("POST", "/commit/", "lost")
    with caplog.at_level("INFO"):
        assert push(pretrained, "encoder") == "" and not hub.failures
    assert "that this checkpoint does not have are deleted: model-00001-of-" in caplog.text
    weights = [name for name in hub.files("ada/encoder") if ".safetensors" in name]
    assert weights == ["model.safetensors"]


def test_a_full_hub_publishes_nothing(hub, pretrained):
    hub.fail("PUT", "/lfs/", 507)
    assert push(pretrained, "encoder") == "error: The Hub has no space left for these files; nothing was published."
    assert hub.files("ada/encoder") == {}


def test_no_hub_is_one_sentence(pretrained, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    assert push(pretrained, "encoder").startswith("error: The connection to http://127.0.0.1:9 failed")


def test_what_is_no_whole_checkpoint_is_refused(pretrained, tmp_path):
    assert "has no config.json" in push(tmp_path / "nothing", "x")
    (pretrained / "mixture.py").unlink()
    assert "lacks the model's code (mixture.py)" in push(pretrained, "x")
    sjepa_hf.SJepaForPreTraining.from_pretrained(pretrained).save_pretrained(pretrained)
    (pretrained / "model.safetensors").unlink()
    assert "lacks model.safetensors." in push(pretrained, "x")


def test_shards_are_all_there_or_refused(pretrained, tmp_path):
    model = sjepa_hf.SJepaForPreTraining.from_pretrained(pretrained)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[0]
    assert load_file(shard)
    shard.unlink()
    assert f"lacks {shard.name}." in push(tmp_path / "shards", "x")


class Failing:
    """A Hub that refuses every commit with an error, and notes what was asked of it."""

    def __init__(self, error):
        self.error, self.commits = error, []

    def list_repo_files(self, repo_id, revision):
        return ["README.md"]

    def create_commit(self, repo_id, operations, commit_message, revision):
        self.commits.append((operations, commit_message, revision))
        if self.error:
            raise self.error
        return "done"


def http_error(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("refused", response=httpx.Response(status, request=httpx.Request("POST", "http://hub")))


def test_weights_alone_are_deleted_and_only_those_that_are_no_more(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    there = {"model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    there |= {"adapter/adapter_model.safetensors", "model.safetensors.md", "my-model.safetensors", "README.md"}
    api = Failing(None)
    assert commit(api, {"model.safetensors": b"weights"}, there, "ada/x", "v2", "said") == "done"
    ((operations, message, revision),) = api.commits
    stale = ["adapter/adapter_model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert [operation.path_in_repo for operation in operations] == [*stale, "model.safetensors"]
    assert [isinstance(operation, CommitOperationDelete) for operation in operations] == [True] * 3 + [False]
    assert (message, revision) == ("said", "v2")


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (httpx.ReadTimeout(""), [1, 2, 4, 8]),
        (http_error(503), [1, 2, 4, 8]),
        (http_error(500), [1, 2, 4, 8]),
        (http_error(507), []),
        (http_error(404), []),
        (RuntimeError("a fault of ours"), []),
    ],
)
def test_what_may_pass_is_waited_for_longer_each_time(monkeypatch, caplog, error, waits):
    slept, api = [], Failing(error)
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(type(error)):
        commit(api, {"config.json": b"{}"}, set(), "ada/x", None, "said")
    assert slept == waits and len(api.commits) == len(waits) + 1
    why = str(error) or "ReadTimeout"
    assert caplog.messages == [f"The upload broke off ({why}); trying again in {wait} s." for wait in waits]


def test_settings_go_without_the_paths_of_this_machine_and_the_message_is_that_of_the_user(
    hub, pretrained, monkeypatch
):
    settings = json.loads((pretrained / "config.json").read_text()) | {"made_from": "/home/ada/secret/final"}
    (pretrained / "config.json").write_text(json.dumps(settings))
    commits = []
    monkeypatch.setattr("sjepa_hf.push.commit", lambda *told: commits.append(told) or SimpleNamespace(commit_url=""))
    monkeypatch.chdir(pretrained)
    told = ["--message", "as it was told", "--revision", "v2"]
    for options, message in ((told, "as it was told"), ([], "Upload pretrained")):
        assert push(".", "encoder", *options) == ""
        _, files, _, repo_id, revision, said = commits[-1]
        assert json.loads(files["config.json"])["made_from"] == "final" and repo_id == "ada/encoder"
        assert said == message and revision == ("v2" if options else None)


def test_a_card_that_people_have_written_stays_whatever_is_known_of_the_training(tmp_path):
    for text, record, wanted in ((f"{MARK}\nold", True, True), (f"{MARK}\nold", False, False), ("ours", True, False)):
        (tmp_path / "README.md").write_text(text)
        api = SimpleNamespace(hf_hub_download=lambda *_, **__: str(tmp_path / "README.md"))
        files = {"training.json": b"{}"} if record else {}
        assert wants_card(api, files, {"README.md"}, "ada/x", None) == wanted
        assert wants_card(api, files, {"config.json"}, "ada/x", None)


def caused(error: Exception) -> RuntimeError:
    """As an upload of large files fails."""
    failed = RuntimeError("Error while uploading")
    failed.__cause__ = error
    return failed


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (caused(httpx.ReadTimeout("")), "The connection to http://hub failed: ReadTimeout."),
        (caused(http_error(507)), "The Hub has no space left for these files; nothing was published."),
        (RevisionNotFoundError("", response=http_error(404).response), "ada/x has no such revision."),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(error, sentence):
    with pytest.raises(ValueError) as caught, hub_errors(SimpleNamespace(endpoint="http://hub"), "ada/x"):
        raise error
    assert str(caught.value) == sentence


def test_ten_names_of_what_stays_are_said_and_more_are_counted(tmp_path):
    for count, ending in (
        (10, ": a0, a1, a2, a3, a4, a5, a6, a7, a8, a9"),
        (11, "a9 and 1 more (--dry_run names all)"),
    ):
        assert what_stays(tmp_path, {f"a{n}": "" for n in range(count)}).endswith(ending)


def test_a_dry_run_refuses_a_name_that_no_repo_can_have(pretrained):
    with pytest.raises(ValueError, match="'a/b/c' cannot be the name of a repo"):
        listing(pretrained, "a/b/c")
