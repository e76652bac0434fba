import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from sjepa_hf import SJepaModel
from sjepa_hf.saving import feature_extractor
from training import superb
from training.data.labelled import open_labelled
from training.evaluation.encoders import TransformersEncoder, open_encoder
from training.evaluation.frozen_features import FeatureStore, FrozenFeatures
from training.evaluation.superb import training as superb_training
from training.evaluation.superb.heads import CtcHead, LayerSum, PooledHead, spec_augment
from training.evaluation.superb.labels import ClassLabels, TokenLabels, read_lexicon, recognised_slots, score, slots
from training.evaluation.superb.results import merge, table
from training.evaluation.superb.tasks import TASKS
from training.superb import choose_task, main, open_splits, parse_arguments


SLOTTED = "A B-size very large E-size cup B-drink tea E-drink"


@pytest.fixture
def folder(tmp_path):
    """40 clips of a low or a high tone in noise; words, phones, slots and slotted transcripts go with the tone."""
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    with open(tmp_path / "clips" / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "tone", "who", "text", "phones", "size", "drink", "slotted"])
        for i in range(40):
            high = i % 2
            time = np.arange(rng.integers(4000, 8000)) / 16000
            audio = 0.3 * np.sin(2 * np.pi * (2500 if high else 300) * time) + 0.03 * rng.standard_normal(len(time))
            soundfile.write(tmp_path / "clips" / f"{i}.wav", audio, 16000)
            slotted = "B-size big E-size one" if high else "one B-drink tea E-drink"
            row = [
                "high" if high else "low",
                "xyzw"[i % 4],
                "be" if high else "a cab",
                "IY1 sp" if high else "sil AE1",
            ]
            writer.writerow([f"{i}.wav", *row, "big" if high else "", "" if high else "tea", slotted])
    return str(tmp_path / "clips")


@pytest.fixture
def checkpoint(tmp_path, make_config):
    SJepaModel(make_config("log_mel", hidden_size=16, num_hidden_layers=2)).save_pretrained(tmp_path / "model")
    feature_extractor().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def call(tmp_path, folder):
    """Runs the script in `tmp_path` and returns its results."""

    def run(task, *options):
        output = tmp_path / "out"
        common = ["--train_data", folder, "--output_dir", str(output), "--cache_dir", str(tmp_path / "features")]
        main(["--task", task, *common, "--device", "cpu", *options])
        return [json.loads(line) for line in (output / f"{task}.jsonl").read_text().splitlines()]

    return run


# The table


def test_settings_are_the_toolkit_s():
    found = {t.name: (t.head, t.learning_rate, t.batch_size, t.max_steps, t.eval_steps) for t in TASKS.values()}
    assert found == {
        "asr": ("recurrent_ctc", 1e-4, 32, 200_000, 2_000),
        "pr": ("linear_ctc", 1e-2, 32, 100_000, 1_000),
        "ks": ("pooled", 1e-4, 32, 200_000, 5_000),
        "ic": ("pooled", 1e-4, 32, 200_000, 5_000),
        "sid": ("pooled", 1e-4, 32, 200_000, 5_000),
        "er": ("pooled", 1e-4, 32, 30_000, 1_000),
        "sf": ("recurrent_ctc", 1e-4, 32, 200_000, 2_000),
    }
    assert all("s3prl" in task.source for task in TASKS.values())
    assert [t.name for t in TASKS.values() if t.spec_augment] == ["asr", "sf"]


# Heads


def test_the_mean_may_come_before_the_projection():
    """What SUPERB does, frame by frame, against the means that are kept: the same logits."""
    layers, head = torch.randn(3, 11, 8), PooledHead(LayerSum(3), 8, [4, 2])
    nn.init.normal_(head.layer_sum.scores)
    weighted = (head.layer_sum.scores.softmax(-1)[:, None, None] * layers).sum(0)
    by_frame = head.classifier(head.projector(weighted).mean(0))
    by_mean = torch.cat(head.logits([layers.mean(1)]), dim=-1)[0]
    torch.testing.assert_close(by_mean, by_frame, rtol=1e-5, atol=1e-5)


def test_layer_sum_starts_even_and_learns():
    layers = LayerSum(4)
    assert layers.weights.tolist() == [0.25] * 4
    x = torch.randn(4, 5, 6)
    torch.testing.assert_close(layers(x), x.mean(0))
    layers(x).square().sum().backward()
    assert layers.scores.grad.abs().min() > 0


def test_statistics_norm_each_dimension():
    x = torch.randn(1, 200, 3) * torch.tensor([1.0, 50.0, 0.1]) + torch.tensor([0.0, -200.0, 1.0])
    normed = LayerSum(1, (x.mean(1), x.std(1, correction=0)))(x)
    torch.testing.assert_close(normed.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normed.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_pooled_loss_sums_over_columns():
    head = PooledHead(LayerSum(2), 8, [3, 5])
    features, targets = [torch.randn(2, 8) for _ in range(4)], [torch.tensor([i % 3, i]) for i in range(4)]
    one, other = head.logits(features)
    wanted = nn.functional.cross_entropy(one, torch.tensor([0, 1, 2, 0]))
    wanted = wanted + nn.functional.cross_entropy(other, torch.arange(4))
    torch.testing.assert_close(head.loss(features, targets), wanted)


@pytest.mark.parametrize("recurrent", [True, False])
def test_padding_does_not_reach_a_clip(recurrent):
    head = CtcHead(LayerSum(2), 8, 5, recurrent, augment=True, units=6).eval()
    clips = [torch.randn(2, length, 8) for length in (30, 7, 19)]
    together, lengths = head.logits(clips)
    assert lengths.tolist() == [30, 7, 19]
    for i, clip in enumerate(clips):
        torch.testing.assert_close(together[i, : clip.shape[1]], head.logits([clip])[0][0], rtol=1e-4, atol=1e-5)
    assert head.predict(clips) == [head.predict([clip])[0] for clip in clips]


def test_ctc_prediction_leaves_out_repeats_and_blanks(monkeypatch):
    head = CtcHead(LayerSum(1), 8, 4, recurrent=False)
    frames = torch.tensor([[2, 2, 0, 2, 3, 3, 1], [1, 1, 1, 3, 2, 2, 2]])
    logits = nn.functional.one_hot(frames, 4).float(), torch.tensor([7, 3])
    monkeypatch.setattr(head, "logits", lambda features: logits)
    assert head.predict([]) == [[2, 2, 3, 1], [1]]


@pytest.mark.parametrize("recurrent", [True, False])
def test_ctc_heads_learn(recurrent):
    head = CtcHead(LayerSum(2), 8, 3, recurrent, units=12)
    features, targets = [torch.randn(2, 6, 8) for _ in range(3)], [torch.tensor(t) for t in ([1, 2], [2], [1])]
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(head.loss(features, targets))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert head.layer_sum.weights.std() > 0.01


def test_spec_augment_warps_and_masks_in_training_only():
    frames = torch.arange(1.0, 401)[:, None].expand(400, 768).contiguous()
    augmented = [spec_augment(frames) for _ in range(20)]
    assert all(x.shape == frames.shape for x in augmented)
    hidden = torch.stack([(x == 0).float() for x in augmented])
    assert 0 < hidden.all(2).float().mean() < 0.2 and 0 < hidden.all(1).float().mean() < 0.26
    shift = max((x[x[:, k] > 0] - frames[x[:, k] > 0])[:, k].abs().max() for x in augmented for k in (0, 767))
    assert 0.5 < shift < 6.5
    assert spec_augment(torch.ones(1, 4)).shape == (1, 4)
    head = CtcHead(LayerSum(1), 8, 4, recurrent=False, augment=True)
    x = [torch.randn(1, 60, 8)]
    assert not torch.equal(head.train().logits(x)[0], head.logits(x)[0])
    assert torch.equal(head.eval().logits(x)[0], head.logits(x)[0])


# Labels and metrics


def test_class_labels():
    labels = ClassLabels({"action": ["on", "off", "on"], "object": ["lamp", "lamp", "fan"]})
    assert labels.sizes == [2, 2]
    seen = {"action": ["off", "up"], "object": ["fan", "fan"]}
    assert [t.tolist() for t in labels.encode(seen)] == [[0, 0], [-100, 0]]
    assert labels.decode([0, 0]) == labels.references(seen)[0] == "off | fan"


def test_slot_columns_become_slots():
    labels = ClassLabels({"size": ["big", "", "small"], "number of shots": ["", "two", ""]}, slots=True)
    texts = labels.references({"size": ["big", ""], "number of shots": ["two", ""]})
    assert [slots(text) for text in texts] == [[("size", "big"), ("number_of_shots", "two")], []]
    assert labels.decode([labels.values["size"].index(""), 1]) == "B-number_of_shots two E-number_of_shots"


@pytest.mark.parametrize(
    ("kind", "text", "normalised", "length"),
    [
        ("characters", "it's  a b", "IT'S A B", 8),
        ("phones", "sil HH AY1 sp DH spn", "HH AY1 DH", 3),
        ("slot_characters", SLOTTED, "A B-size VERY LARGE E-size CUP B-drink TEA E-drink", 24),
    ],
)
def test_texts_survive_their_tokens(kind, text, normalised, length):
    labels = TokenLabels({"text": [text, text]}, kind)
    (tokens, _) = labels.encode({"text": [text, text]})
    assert labels.references({"text": [text]}) == [normalised]
    assert labels.decode(tokens.tolist()) == normalised and len(tokens) == length and 0 not in tokens


def test_tokens_that_training_lacks_are_left_out():
    labels = TokenLabels({"text": ["ab a"]}, "characters")
    assert labels.decode(labels.encode({"text": ["abc a"]})[0].tolist()) == "AB A"


def test_slot_values_of_imperfect_output():
    assert recognised_slots("A B-size BIG E-size B-drink TEA") == [("size", "BIG")]
    assert recognised_slots("B-size B-drink BIG E-size") == [("size", "BIG")]
    assert recognised_slots("B-size BIG E-size B-size E-size") == [("size", "BIG")]


def test_words_with_a_hyphen_are_no_slots():
    labels = TokenLabels({"text": ["an e-mail B-size big E-size", "b-side"]}, "slot_characters")
    text = labels.references({"text": ["an e-mail b-side"]})[0]
    assert text == "AN E-MAIL B-SIDE" and labels.decode(labels.encode({"x": [text]})[0]) == text
    assert {token for token in labels.tokens if len(token) > 1} >= {"B-size", "E-size"}
    assert not {"E-MAIL", "B-SIDE"} & set(labels.tokens)


def test_lexicon(tmp_path):
    (tmp_path / "lexicon.txt").write_text("A AH0\nA EY1\ncab K AE1 B\n\n")
    lexicon = read_lexicon([str(tmp_path / "lexicon.txt")])
    assert lexicon == {"A": "AH0", "CAB": "K AE1 B"}
    assert TokenLabels({"text": ["a cab"]}, "phones", lexicon).references({"text": ["a cab"]}) == ["AH0 K AE1 B"]
    with pytest.raises(ValueError, match="lacks the word 'TAXI'"):
        TokenLabels({"text": ["a taxi"]}, "phones", lexicon)
    with pytest.raises(ValueError, match="--lexicon nowhere.txt"):
        read_lexicon(["nowhere.txt"])


def test_scores():
    assert score(("accuracy",), ["a", "b", "c", "a"], ["a", "b", "d", "b"]) == {"accuracy": 0.5}
    assert score(("per",), ["K AE1", "B"], ["K AE1 B", "B"]) == {"per": 0.25}
    found = score(("slot_type_f1", "slot_value_cer"), ["B-size bug E-size"], ["B-size big E-size B-x y E-x"])
    assert found == {"slot_type_f1": pytest.approx(2 / 3), "slot_value_cer": 0.5}


# Splits and batches


@pytest.mark.parametrize(("given", "sizes"), [("", (24, 8, 8)), ("eval", (32, 40, 8)), ("test", (32, 8, 40))])
def test_what_is_not_given_is_held_out(folder, given, sizes):
    options = [f"--{given}_data", folder] if given else []
    arguments = parse_arguments(
        ["--task", "sid", "--label_column", "who", "--model", "mfcc", "--train_data", folder, *options]
    )
    splits = open_splits(choose_task(arguments), arguments)
    assert tuple(len(splits[name]) for name in ("train", "dev", "test")) == sizes
    for name in {"dev", "test"} - {{"eval": "dev", "test": "test"}.get(given)}:
        assert [splits[name].labels["who"].count(who) for who in "xyzw"] == [2, 2, 2, 2], (
            "drawn evenly from all labels"
        )
        assert not set(splits[name].places) & set(splits["train"].places)


def test_texts_are_held_out_by_whole_recordings(folder, tmp_path):
    rows = [
        {"audio_filepath": f"{folder}/{i}.wav", "offset": start, "duration": 0.1, "text": f"word {i}"}
        for i in range(20)
        for start in (0.0, 0.1)
    ]
    (tmp_path / "pieces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = parse_arguments(["--task", "asr", "--model", "mfcc", "--train_data", str(tmp_path / "pieces.jsonl")])
    splits = open_splits(choose_task(arguments), arguments)
    files = {name: {part.clip(i).name for i in range(len(part))} for name, part in splits.items()}
    assert all(len(part) == 2 * len(files[name]) for name, part in splits.items())
    assert not files["train"] & files["dev"] and not files["dev"] & files["test"]


def test_balanced_batches_draw_all_classes_alike():
    classes = [(0,)] * 90 + [(1,)] * 10
    drawn = superb_training.batches(TASKS["ks"], [1] * 100, classes, seed=0)
    share = np.mean([i >= 90 for _ in range(100) for i in next(drawn)])
    assert 0.45 < share < 0.55
    plain = superb_training.batches(TASKS["sid"], [1] * 100, [], seed=0)
    assert sorted(i for _ in range(4) for i in next(plain)) == list(range(100))


def test_sequences_of_similar_length_go_together():
    lengths = np.random.default_rng(0).integers(1, 1000, 640).tolist()
    drawn = superb_training.batches(TASKS["asr"], lengths, [], seed=0)
    first = [next(drawn) for _ in range(20)]
    assert sorted(i for batch in first for i in batch) == list(range(640))
    assert np.mean([np.ptp([lengths[i] for i in batch]) for batch in first]) < 100


def test_the_best_step_is_that_of_the_dev_set(monkeypatch):
    head, task = PooledHead(LayerSum(1), 4, [2]), replace(TASKS["sid"], columns=("who",), max_steps=5, eval_steps=1)
    dev, seen = [0.2, 0.7, 0.7, 0.6, 0.1], []

    def evaluate(head, *_):
        seen.append(head.classifier.weight.detach().clone())
        return {"accuracy": dev[len(seen) - 1]}, 3

    class Clips:
        labels, num_samples = {"who": ["a", "b", "a"]}, [1, 1, 1]

    class Features:
        clips = Clips

        def __getitem__(self, indices):
            return [torch.ones(1, 4) * (i + 1) for i in indices]

    monkeypatch.setattr(superb_training, "evaluate", evaluate)
    features = {"train": Features(), "dev": Features()}
    step, metrics = superb_training.train(head, task, features, ClassLabels(Clips.labels), seed=0)
    assert (step, metrics) == (2, {"accuracy": 0.7})
    assert torch.equal(head.classifier.weight, seen[1]) and not torch.equal(seen[1], seen[4])


# Whole runs


def test_pooled_task_with_several_subjects(call, checkpoint, capsys, tmp_path, monkeypatch):
    options = ["--label_column", "tone", "--max_steps", "40", "--learning_rate", "3e-3", "--batch_size", "8"]
    subjects = ["mfcc", f"untrained:{checkpoint}", checkpoint]
    results = call("ks", "--model", *subjects, *options, "--seeds", "0", "1")
    assert [(r["encoder"], r["seed"]) for r in results] == [(name, seed) for name in subjects for seed in (0, 1)]
    for result in results:
        assert result["metrics"]["accuracy"] >= 0.9, result["encoder"]
        assert sum(result["layer_weights"]) == pytest.approx(1)
        assert len(result["layer_weights"]) == (1 if result["encoder"] == "mfcc" else 3)
        assert result["clips"] == {"train": 24, "dev": 8, "test": 8} and result["hours"]["test"] > 0
        assert result["split"] == "test" and "speech_commands" in result["protocol"]
        assert result["hyperparameters"]["learning_rate"] == 3e-3 and result["hyperparameters"]["balanced"]
    assert results[4]["layer_weights"] != results[5]["layer_weights"]
    printed = capsys.readouterr().out
    assert "± " in printed and checkpoint in printed and "train 24 clips" in printed
    assert (tmp_path / "out" / "ks.md").read_text().strip() == printed.strip()
    assert (tmp_path / "out" / "ks_layer_weights.png").stat().st_size > 1000
    assert not list((tmp_path / "out").glob("*incomplete*"))

    def fail(*_):
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(TransformersEncoder, "__call__", fail)
    again = call("sid", "--model", checkpoint, *options, "--seeds", "1")  # another task on the same clips
    assert again[0]["metrics"].keys() == {"accuracy"}


def test_results_join_those_of_earlier_calls(call, checkpoint):
    options = ["--label_column", "tone", "--max_steps", "4", "--batch_size", "8"]
    first = call("ks", "--model", "mfcc", f"untrained:{checkpoint}", *options, "--seeds", "0", "1")
    both = call("ks", "--model", checkpoint, *options)
    assert both[:4] == first and [(r["encoder"], r["seed"]) for r in both[4:]] == [(checkpoint, 0)]
    again = call("ks", "--model", "mfcc", *options, "--seeds", "1")
    assert [(r["encoder"], r["seed"]) for r in again][-1] == ("mfcc", 1) and len(again) == 5
    with pytest.raises(SystemExit, match="error: .*ks.jsonl holds results with `max_steps` 4, not 5: choose another"):
        call("ks", "--model", "mfcc", *options, "--max_steps", "5")
    changed = [row | {"encoder_digest": "new", "encoder": checkpoint, "seed": 7} for row in both[:1]]
    assert all(row["encoder"] != checkpoint for row in merge(both, changed)[:-1]), "its encoder is another now"


def test_intents_are_right_if_all_columns_are(call):
    options = ["--max_steps", "30", "--learning_rate", "3e-3", "--batch_size", "8", "--model", "mfcc"]
    (both,) = call("ic", "--label_column", "tone", "who", *options)
    assert both["hyperparameters"]["columns"] == ["tone", "who"] and both["metrics"]["accuracy"] < 0.9


def test_slots_by_classification(call):
    options = ["--max_steps", "60", "--learning_rate", "3e-3", "--batch_size", "8", "--model", "mfcc"]
    (result,) = call("sf", "--slot_columns", "size", "drink", *options)
    assert result["metrics"]["slot_type_f1"] >= 0.9 and result["metrics"]["slot_value_cer"] <= 0.1
    assert result["protocol"].startswith("not a task of SUPERB") and result["title"].endswith("classification")


@pytest.mark.parametrize(
    ("task", "column", "metrics"),
    [
        ("asr", "text", {"wer", "cer"}),
        ("pr", "phones", {"per"}),
        ("sf", "slotted", {"slot_type_f1", "slot_value_cer"}),
    ],
)
def test_sequence_tasks(call, checkpoint, task, column, metrics):
    options = ["--max_steps", "4", "--batch_size", "4", "--rnn_units", "8", "--label_column", column]
    (result,) = call(task, "--model", checkpoint, *options)
    assert result["metrics"].keys() == result["dev_metrics"].keys() == metrics
    assert all(0 <= value for value in result["metrics"].values())


def test_a_lexicon_that_is_not_there_gets_a_sentence(call):
    with pytest.raises(SystemExit, match="error: --lexicon nowhere.txt: there is no such file"):
        call("pr", "--model", "mfcc", "--label_column", "text", "--lexicon", "nowhere.txt")


def test_phones_are_recognised(call):
    """The tone says which phone is spoken: a linear head finds it from MFCC. The same answer for all gives 0.5."""
    (result,) = call("pr", "--model", "mfcc", "--max_steps", "60", "--batch_size", "8")
    assert result["metrics"]["per"] < 0.5


def test_features_that_do_not_fit_give_the_same_figures(call, checkpoint, tmp_path):
    options = ["--model", checkpoint, "--max_steps", "20", "--learning_rate", "3e-3", "--batch_size", "8"]
    (stored,) = call("pr", *options)
    (computed,) = call("pr", *options, "--cache_gb", "0", "--cache_dir", str(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()
    assert computed["layer_weights"] == pytest.approx(stored["layer_weights"], abs=1e-3)


def test_unseen_labels_count_as_errors(tmp_path, folder, caplog, call):
    other = tmp_path / "other.jsonl"
    rows = [{"audio_filepath": f"{folder}/{i}.wav", "tone": ["low", "new"][i % 2]} for i in range(10)]
    other.write_text("\n".join(map(json.dumps, rows)))
    options = ["--max_steps", "60", "--learning_rate", "3e-3", "--batch_size", "8", "--model", "mfcc"]
    (result,) = call("ks", "--label_column", "tone", "--test_data", str(other), *options)
    assert 0.4 <= result["metrics"]["accuracy"] <= 0.5
    assert "test: 5 clips have a tone that no training clip has, so that no answer is right: new." in caplog.text


def test_table_gives_mean_and_deviation():
    result = {
        "task": "sid", "title": "t", "encoder": "e", "metrics": {"accuracy": 0.5}, "layer_weights": [0.4, 0.6],
        "clips": dict(train=3, dev=2, test=1), "hours": dict(train=0.3, dev=0.2, test=0.1),
        "hyperparameters": dict(max_steps=9, batch_size=2, learning_rate=0.1),
    }  # fmt: skip
    text = table([result, result | {"metrics": {"accuracy": 0.7}}])
    assert "0.6000 ± 0.1414 | 2     | 1 of 0 to 1 (0.60)" in text


# Arguments


def test_a_recipe_can_hold_any_field(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("task: sid\nmodel: [a, b]\nmax_steps: 5000\nseeds: [1, 2]\n")
    arguments = parse_arguments(["--config", str(recipe), "--model", "mfcc"])
    assert (arguments.task, arguments.model, arguments.max_steps, arguments.seeds) == ("sid", ["mfcc"], 5000, [1, 2])
    assert choose_task(arguments).eval_steps == 500


def test_every_field_is_documented():
    for name, field in superb.SuperbArguments.__dataclass_fields__.items():
        assert field.metadata.get("help"), name


def test_hub_data_sets_are_the_default():
    def chosen(*options):
        return choose_task(parse_arguments(["--model", "mfcc", *options]))

    assert chosen("--task", "ks").test_data == ["s3prl/superb::ks::test"]
    assert chosen("--task", "er").eval_data == [] and len(chosen("--task", "er").train_data) == 4
    assert chosen("--task", "pr", "--lexicon", "x").columns == ("text",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "sf"], "no data set on the Hub for --task sf: name a source with --train_data"),
        (["--task", "pr"], "--task pr on LibriSpeech needs --lexicon"),
        (["--task", "ks", "--slot_columns", "size"], "`slot_columns` belongs to --task sf"),
        (["--task", "ks", "--lexicon", "x"], "`lexicon` belongs to --task pr"),
        (["--task", "ks", "--max_steps", "0"], "`max_steps` must be positive, got 0"),
        (["--task", "ks", "--eval_fraction", "0.7"], "`eval_fraction` must lie between 0 and 0.5"),
        (["--task", "ks", "--test_data", "x"], "need `train_data` beside them"),
        (["--task", "asr", "--label_column", "a", "b"], "one column of texts, got a, b"),
        (["--task", "ks", "--train_data", "FOLDER"], "no column 'label'; it has file_name, tone, who"),
        (["--task", "sf", "--train_data", "FOLDER"], "texts of column 'text' hold no slots"),
        (["--task", "ks", "--config", "nowhere.yaml"], "no recipe nowhere.yaml"),
    ],
)
def test_what_cannot_work_gets_a_sentence(folder, options, message):
    options = [folder if word == "FOLDER" else word for word in options]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(["--model", "mfcc", *options])


def test_one_label_only(folder):
    with pytest.raises(ValueError, match="Column 'who' has the one value 'x'"):
        ClassLabels({"who": ["x", "x"]})


def test_real_digits(speech, tmp_path):
    """MFCC tell two digits of two speakers apart."""
    with open(speech / "digits_8khz" / "metadata.csv") as file:
        rows = [r for r in csv.DictReader(file) if r["digit"] in "16" and r["speaker_id"] in ("george", "jackson")]
    manifest = tmp_path / "digits.jsonl"
    lines = [{"audio_filepath": str(speech / "digits_8khz" / r["file_name"]), "digit": r["digit"]} for r in rows[::2]]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    options = ["--label_column", "digit", "--model", "mfcc", "--max_steps", "100", "--learning_rate", "3e-3"]
    paths = ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "features")]
    main(["--task", "ks", "--train_data", str(manifest), *options, *paths])
    (result,) = [json.loads(line) for line in (tmp_path / "out" / "ks.jsonl").read_text().splitlines()]
    assert result["metrics"]["accuracy"] > 0.8


def test_nothing_but_real_frames_is_read(folder, checkpoint, tmp_path):
    """The means of a clip are the same whatever it shares a batch with."""
    clips = open_labelled([folder], ["who"])
    encoder = open_encoder(checkpoint)
    together = FrozenFeatures(encoder, clips, FeatureStore(tmp_path / "a", 1), pooled=True)
    alone = FrozenFeatures(encoder, clips.select([5]), FeatureStore(tmp_path / "b", 1), pooled=True)
    torch.testing.assert_close(together[[5]][0], alone[[0]][0], rtol=1e-4, atol=1e-5)


# What SUPERB's toolkit does


def test_slot_values_are_cut_as_the_toolkit_cuts_them():
    """Within a value, slot tokens go between words; at its outer edges they stay, where references keep all."""
    for text, value in (
        ("B-size B-drink BIG E-size", "BIG"),
        ("B-size BIG E-drink E-size", "BIG"),
        ("B-size BIG B-drink ONE E-size", "BIG ONE"),
        ("B-size E-drink BIG E-size", "E-drink BIG"),
        ("B-size BIG B-drink E-size", "BIG B-drink"),
    ):
        assert recognised_slots(text) == [("size", value)], text
    assert slots("B-size B-drink BIG E-size") == [("size", "B-drink BIG")]
    found = score(("slot_value_cer",), ["B-size E-x BIG E-size"], ["B-size BIG E-size"])
    assert found == {"slot_value_cer": pytest.approx(4 / 3)}


def test_background_noise_is_cut_into_seconds(tmp_path, folder):
    """Three and a half seconds of noise are three pieces, in training and dev set, and nothing else is cut."""
    noise = np.sin(np.arange(56000)) * np.r_[np.full(16000, 0.2), np.full(40000, 0.4)]
    soundfile.write(tmp_path / "noise.wav", noise, 16000)
    rows = [{"audio_filepath": f"{folder}/{i}.wav", "label": ["low", "high"][i % 2]} for i in range(6)]
    rows.append({"audio_filepath": str(tmp_path / "noise.wav"), "label": "_silence_"})
    (tmp_path / "ks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = str(tmp_path / "ks.jsonl")
    arguments = ["--task", "ks", "--model", "mfcc", "--train_data", data, "--eval_data", data, "--test_data", data]
    arguments = parse_arguments(arguments)
    splits = open_splits(choose_task(arguments), arguments)
    assert {name: clips.labels["label"].count("_silence_") for name, clips in splits.items()} == {
        "train": 3,
        "dev": 3,
        "test": 1,
    }
    pieces = [splits["train"][i]["input_values"] for i in range(6, 9)]
    assert [len(piece) for piece in pieces] == [16000] * 3
    assert [round(float(piece.max()), 1) for piece in pieces] == [0.2, 0.4, 0.4]
    assert len(splits["train"]) == 9 and len(splits["test"]) == 7
    assert "silence" not in superb.hyperparameters(TASKS["sid"], arguments, None)


def test_a_head_that_learned_nothing_is_named(call, caplog, capsys):
    options = ["--label_column", "tone", "--max_steps", "1", "--learning_rate", "1e-9", "--batch_size", "8"]
    (result,) = call("sid", "--model", "mfcc", *options)
    assert result["learned"] is False and "mfcc, seed 0: THE HEAD HAS LEARNED NOTHING" in caplog.text
    assert "No better than chance: mfcc, seed 0." in capsys.readouterr().out


def test_a_dry_run_says_what_it_would_do(tmp_path, folder, caplog):
    caplog.set_level("INFO")
    required = ["--task", "sid", "--train_data", folder, "--label_column", "tone", "--model", "mfcc"]
    main([*required, "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), "--dry_run"])
    assert "heads of 2 outputs are trained for 200000 steps of 32 clips" in caplog.text
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
