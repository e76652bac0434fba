"""The demo: a labelled corpus spoken by eSpeak NG, and what the demo script decides by itself."""

import csv
import importlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from accelerate.state import AcceleratorState

from examples.demo import run, synthesize
from sjepa_hf.command import UserError


RATE = 16000


def read_table(folder):
    with open(folder / "metadata.csv", newline="") as file:
        return list(csv.DictReader(file))


def all_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def few_speakers():
    pytest.importorskip("espeakng_loader", reason="eSpeak NG speaks the demo corpus: pip install espeakng-loader")
    everybody = synthesize.plan_speakers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesize, "plan_speakers", lambda minutes, seed: everybody(minutes, seed)[::12])
        yield


@pytest.fixture(scope="module")
def corpus(few_speakers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    synthesize.synthesize(folder, minutes=10, seed=0)
    return folder


# The corpus


def test_every_recording_is_labelled_to_its_end(corpus):
    for split in ("train", "test"):
        rows = read_table(corpus / split)
        assert list(rows[0]) == list(synthesize.FIELDS)
        assert len(rows) >= 4
        for row in rows:
            audio, rate = soundfile.read(corpus / split / row["file_name"])
            phones, ends = row["phones"].split(), [float(end) for end in row["phone_ends"].split()]
            assert rate == RATE and audio.ndim == 1
            assert len(phones) == len(ends) > 5
            assert np.all(np.diff([0.0, *ends]) > 0)
            assert ends[-1] == float(row["duration"]) == pytest.approx(len(audio) / RATE, abs=1e-4)
            assert 0.05 < np.abs(audio).max() < 1.0
            assert not any(phone.startswith(("'", ",", "_")) for phone in phones)


def test_pauses_are_quieter_than_phones(corpus):
    # Wrong boundaries would put speech into the pauses.
    quieter = []
    for row in read_table(corpus / "train"):
        audio, _ = soundfile.read(corpus / "train" / row["file_name"])
        ends = (np.array(row["phone_ends"].split(), dtype=float) * RATE).astype(int)
        energy = {True: [], False: []}
        for phone, begin, end in zip(row["phones"].split(), [0, *ends], ends):
            begin += 1600 if phone == "sil" else 0  # a room still sounds when a pause begins
            if end - begin > 320:
                energy[phone == "sil"].append(np.mean(audio[begin:end] ** 2))
        if energy[True]:
            quieter.append(np.mean(energy[True]) < 0.2 * np.mean(energy[False]))
    assert len(quieter) >= 3
    assert np.mean(quieter) > 0.9


def test_same_seed_same_bytes(corpus, tmp_path):
    synthesize.synthesize(tmp_path / "again", minutes=10, seed=0, num_processes=1)
    synthesize.synthesize(tmp_path / "other", minutes=10, seed=1)
    assert all_bytes(tmp_path / "again") == all_bytes(corpus)
    assert read_table(tmp_path / "other" / "train") != read_table(corpus / "train")
    assert not list(tmp_path.glob("*.partial"))


def test_corpus_is_reused_and_foreign_folders_are_left_alone(corpus):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    minutes = synthesize.synthesize(corpus, minutes=10, seed=0)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before
    assert minutes["train"] == pytest.approx(sum(float(row["duration"]) for row in read_table(corpus / "train")) / 60)
    with pytest.raises(ValueError, match="not this corpus"):
        synthesize.synthesize(corpus, minutes=11, seed=0)


def test_held_out_voices_are_disjoint(plan=synthesize.plan_speakers):  # the whole cast, not the few of `corpus`
    speakers = plan(60)
    variants = {
        split: {speaker.voice.split("+")[1] for speaker in speakers if speaker.split == split}
        for split in ("train", "test")
    }
    assert len(variants["train"]) > 40 and len(variants["test"]) == 16
    assert not variants["train"] & variants["test"]
    assert len({speaker.speaker_id for speaker in speakers}) == len(speakers)
    assert sum(speaker.seconds for speaker in speakers) == pytest.approx(3600)
    assert sum(speaker.seconds for speaker in speakers if speaker.split == "test") == pytest.approx(900)


def test_phone_segments_merge_pauses_and_drop_empty_phones():
    events = [(10, "'aI"), (30, "t"), (30, "@2"), (50, "_:"), (60, "_")]
    assert synthesize.phone_segments(events, 80) == (["sil", "aI", "@", "sil"], [10, 30, 50, 80])
    assert synthesize.phone_segments([(0, "t"), (10, "t")], 20) == (["t", "t"], [10, 20]), "two of one phone stay two"


# The demo script


def test_own_speech_is_split_only_where_it_has_a_held_out_folder(tmp_path):
    said = "none of test/, validation/, dev/ lies beside train/ with a metadata.csv"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "metadata.csv").write_text("file_name\n")
    train, probe, note = run.locate_speech(tmp_path)
    assert train == probe == tmp_path and said in note, "all of it is pretrained on"
    (tmp_path / "dev" / "metadata.csv").unlink()
    for name in ("train", "validation"):
        (tmp_path / name).mkdir()
    train, probe, note = run.locate_speech(tmp_path)
    assert train == probe == tmp_path / "train" and said in note
    (tmp_path / "validation" / "metadata.csv").write_text("file_name\n")
    train, probe, note = run.locate_speech(tmp_path)
    assert (train, probe) == (tmp_path / "train", tmp_path / "validation") and "did not read" in note
    with pytest.raises(ValueError, match="not a folder"):
        run.locate_speech(tmp_path / "absent")


def test_options_of_synthetic_speech_do_not_go_with_one_s_own(tmp_path, monkeypatch):
    for option in ("minutes", "speech_seed"):
        monkeypatch.setattr(sys, "argv", ["run.py", "--speech", str(tmp_path), f"--{option}", "1"])
        with pytest.raises(
            SystemExit, match=f"^error: `{option}` is of synthetic speech, but `speech` names your own"
        ):
            run.main()


def test_a_seed_is_that_of_pretraining(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(run, "pretrain", lambda train_data, output_dir, extra: given.extend(extra))
    monkeypatch.setattr(run, "probe", lambda *arguments: False)
    words = ["run.py", "--speech", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--seed", "1"]
    monkeypatch.setattr(sys, "argv", words)
    run.main()
    assert given == ["--seed", "1"]


def test_the_command_of_the_corpus_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["synthesize.py", str(tmp_path / "speech"), "--minutes", "-1"])
    with pytest.raises(SystemExit, match="^error: minutes must be positive, got -1"):
        synthesize.main()


def test_earlier_models_are_kept(tmp_path):
    assert run.free_folder(tmp_path / "model") == tmp_path / "model"
    (tmp_path / "model").mkdir()
    (tmp_path / "model-2").mkdir()
    assert run.free_folder(tmp_path / "model") == tmp_path / "model-3"


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (
            "file_name,speaker_id,phones,phone_ends" + 4 * "\na,x,p,0.1\nb,y,p,0.1",
            "--utterance_labels --phones --split_by",
        ),
        ("file_name,speaker_id,phones,phone_ends\na,x,p,0.1\nb,y,p,0.1", "--phones --split_by"),  # too few recordings
        ("file_name,speaker_id" + 4 * "\na,x\nb,y", "--utterance_labels"),
        ("file_name,phones,phone_ends\na,p,0.1", "--phones"),
        ("file_name,phones\na,p", ""),
        ("file_name,speaker_id" + 4 * "\na,x", ""),  # one voice, which nothing tells from another
        ("file_name,speaker_id,phones,phone_ends\na,x,p,0.1\nb,x,p,0.1", "--phones"),  # one voice
        ("file_name,speaker_id,phones,phone_ends\na,,,\nb,,,", ""),
        ("file_name,duration\na,1", ""),
        (None, ""),
    ],
)
def test_what_is_probed_follows_from_the_labels(tmp_path, capsys, table, options):
    if table:
        (tmp_path / "metadata.csv").write_text(table + "\n")
    chosen = [word for word in run.probes_of(tmp_path) if word.startswith("--") and word != "--max_frames"]
    assert chosen == options.split()
    if not options:
        assert run.probe(tmp_path / "model", tmp_path, tmp_path / "probes") is False
        assert f"Nothing to probe for: {tmp_path} has no metadata.csv" in capsys.readouterr().out


def run_here(command, cwd):
    """In place of `subprocess.run`, for a command of ours: in this process, which has imported it all."""
    python, dash_m, module, *arguments = command
    assert (python, dash_m, cwd) == (sys.executable, "-m", run.REPOSITORY)
    AcceleratorState._reset_state()  # it keeps the precision of the process's first run
    try:
        importlib.import_module(module).main(arguments)
    except SystemExit as ended:
        print(ended, file=sys.stderr)
        return subprocess.CompletedProcess(command, 1)
    finally:
        AcceleratorState._reset_state()
    return subprocess.CompletedProcess(command, 0)


def test_probes_that_fail_leave_the_model_and_say_why(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(run.subprocess, "run", run_here)
    (tmp_path / "metadata.csv").write_text("file_name,phones,phone_ends\nabsent.wav,p t k,0.1 0.2\n")
    assert run.probe(tmp_path / "model", tmp_path, tmp_path / "probes") is False
    printed = capfd.readouterr()
    assert "The probes stopped with exit code 1: the last lines above say why." in printed.out
    assert printed.err.splitlines()[-1].startswith("error: ") and not (tmp_path / "probes").exists()


def test_the_demo_from_end_to_end(tmp_path, monkeypatch, capfd):
    words = f"--output_dir {tmp_path} --minutes 2 --phase1_steps 3 --phase1_warmup_steps 1 --phase2_steps 0"
    words += ' --num_workers 0 --start_layer 1 --model_config {"num_hidden_layers":1}'
    monkeypatch.setattr(run, "PROBE_FRAMES", 500)
    monkeypatch.setattr(run.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(run.subprocess, "run", run_here)
    monkeypatch.setattr(sys, "argv", ["run.py", *words.split()])
    run.main()
    printed, model = capfd.readouterr().out, tmp_path / "model"
    assert "$ python -m training.pretrain" in printed and "$ python -m training.probe" in printed
    assert "phones, linear probe: accuracy in % over 3 splits" in printed and "speaker_id kept apart; MFCC" in printed
    assert printed.count("Best layer: MFCC ") >= 2 and "untrained" in printed
    assert str(model / "final") in printed and (model / "final" / "loss.png").is_file()
    assert str(model / "probes" / "probes.json") in printed and str(model / "probes" / "probes.png") in printed


def test_what_is_wrong_with_the_user_s_options_is_not_buried(tmp_path, capfd):
    """The command in a process of its own, as users run it."""
    (tmp_path / "speech").mkdir()
    with pytest.raises(UserError, match="exit code 1; its last lines above say why"):
        run.pretrain(tmp_path / "speech", tmp_path / "model", ["--phase1_steps", "-3"])
    errors = capfd.readouterr().err
    assert errors.splitlines()[-1] == "error: `phase1_steps` must be at least 0, got -3." and "Traceback" not in errors
