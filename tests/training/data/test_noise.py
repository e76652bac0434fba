"""Noise reaches the batches: the same from seed and place, bounded, and what is unusable is told."""

import logging

import numpy as np
import pytest
import soundfile
import torch
from clip_streams import after, assert_same, numbers, take, write_clips

from sjepa_hf.frames import SAMPLING_RATE
from training.data.arguments import DataArguments
from training.data.augmentation import augmented
from training.data.bad_audio import BadAudioError
from training.data.loader import build_loader
from training.data.noise import HOPELESS, open_noise


OF_NOISE = ("noise", "noise_lengths", "skipped", "position")


@pytest.fixture(scope="module")
def speech_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    write_clips(folder)
    return folder


@pytest.fixture
def hiss(tmp_path):
    """Three recordings that tell their number by their level."""
    folder = tmp_path / "hiss"
    folder.mkdir()
    for number in (1, 2, 3):
        samples = np.tile([0.1, -0.1], 40_000) * number
        soundfile.write(folder / f"{number}.wav", samples, SAMPLING_RATE, subtype="FLOAT")
    return folder


def loader(folder, noise, num_workers=0, **options):
    args = DataArguments(
        [str(folder)], batch_seconds=3.0, max_seconds=0.5, num_workers=num_workers, bucket_buffer_size=16
    )
    return build_loader(args, noise=noise, seed=3, **options)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_batch_has_as_many_crops_as_its_clips_need_and_none_longer_than_they_are(
    speech_folder, hiss, num_workers
):
    levels = set()
    for batch in take(loader(speech_folder, open_noise([str(hiss)], 0.25), num_workers), 40):
        crops, clips = batch["noise"], batch["input_values"]
        assert crops.dtype == torch.float32 and len(crops) == max(1, round(0.25 * len(clips)))
        assert crops.shape[1] == batch["noise_lengths"].max() == max(clips.shape[1], 1600)
        levels |= {round(10 * level) for level in crops[:, 0].abs().tolist()}
    assert levels == {1, 2, 3}


def test_a_short_recording_is_padded_and_its_length_told(speech_folder, tmp_path):
    (tmp_path / "short").mkdir()
    soundfile.write(tmp_path / "short" / "click.wav", np.tile([0.5, -0.5], 250), SAMPLING_RATE)
    (tmp_path / "long").mkdir()
    soundfile.write(tmp_path / "long" / "hum.wav", np.tile([0.25, -0.25], 9000), SAMPLING_RATE)
    noise = open_noise([str(tmp_path / "short"), str(tmp_path / "long")], 1.0)
    drawn, told = noise.for_batch(20, 8000, np.random.default_rng(0))
    assert not told and noise.size == 2 and set(drawn["noise_lengths"].tolist()) == {500, 8000}
    for row, length in zip(drawn["noise"], drawn["noise_lengths"].tolist()):
        assert (row[:length].abs() > 0.2).all() and not row[length:].any()


def test_order_masks_and_crops_of_the_clips_stay_as_they_are(speech_folder, hiss):
    without = take(loader(speech_folder, None), 12)
    with_noise = take(loader(speech_folder, open_noise([str(hiss)], 0.25)), 12)
    assert all("noise" not in batch for batch in without)
    assert_same(without, [{k: v for k, v in b.items() if k not in OF_NOISE[:2]} for b in with_noise])


def test_a_resumed_run_hears_the_same(speech_folder, hiss):
    (hiss / "broken.wav").write_bytes(b"RIFF")
    whole = take(loader(speech_folder, open_noise([str(hiss)], 0.5), 2), 30)
    position = loader(speech_folder, open_noise([str(hiss)], 0.5), 2).dataset.position
    position.positions, position.batches = after(whole[:13]).positions, 13
    rest = take(loader(speech_folder, open_noise([str(hiss)], 0.5), 2, position=position), 17)
    assert_same(*([{k: v for k, v in b.items() if k != "skipped"} for b in part] for part in (whole[13:], rest)))


def test_processes_and_workers_only_decide_who_reads(speech_folder, hiss):
    one = take(loader(speech_folder, open_noise([str(hiss)], 0.5), 2), 6)
    two = [
        take(loader(speech_folder, open_noise([str(hiss)], 0.5), 0, process_index=r, num_processes=2), 3)
        for r in (0, 1)
    ]
    for batch, other in zip(one, [batch for pair in zip(*two) for batch in pair]):
        assert numbers(batch) == numbers(other) and torch.equal(batch["noise"], other["noise"])


def test_augmentation_adds_it(speech_folder, hiss):
    batch = take(loader(speech_folder, open_noise([str(hiss)], 1.0)), 1)[0]
    added = augmented(batch, 0.0, 1.0) - batch["input_values"]
    for row, length in zip(added, batch["lengths"].tolist()):
        assert torch.allclose(row[:length].abs(), row[0].abs().expand(length), rtol=1e-3, atol=1e-6), "a square wave"
    other = augmented({k: v for k, v in batch.items() if k not in OF_NOISE}, 0.0, 1.0)
    assert not torch.allclose(other - batch["input_values"], added)


def test_bad_recordings_are_passed_over_and_told_once_by_each_reader(speech_folder, hiss):
    (hiss / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(hiss / "silent.wav", np.zeros(8000), SAMPLING_RATE)
    batches = take(loader(speech_folder, open_noise([str(hiss)], 0.25)), 40)
    told = [pair for batch in batches for pair in batch["skipped"]]
    assert sorted(told) == [
        (str(hiss / "broken.wav"), "noise: corrupt"),
        (str(hiss / "silent.wav"), "noise: silent"),
    ]
    assert all(batch["noise"].any(1).all() for batch in batches)


def test_what_gives_nothing_is_refused(tmp_path, hiss):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`noise_data`: .*no audio"):
        open_noise([str(tmp_path / "empty")], 0.25)
    for path in hiss.iterdir():
        soundfile.write(path, np.zeros(8000), SAMPLING_RATE)
    with pytest.raises(
        ValueError, match=rf"nothing usable in {HOPELESS} draws from 3 recordings \({HOPELESS} silent,"
    ):
        open_noise([str(hiss)], 0.25)


def test_recordings_that_vanish_end_the_run_with_a_sentence(speech_folder, hiss):
    batches = iter(loader(speech_folder, open_noise([str(hiss)], 0.25)))
    next(batches)
    for path in hiss.iterdir():
        path.unlink()
    with pytest.raises(BadAudioError, match="nothing usable .* missing"):
        next(batches)


def test_other_noise_is_told_and_leaves_the_place_in_the_data(speech_folder, hiss, caplog):
    whole = take(loader(speech_folder, open_noise([str(hiss)], 0.5)), 10)
    position = loader(speech_folder, open_noise([str(hiss)], 0.5)).dataset.position
    position.positions, position.batches = after(whole[:4]).positions, 4
    (hiss / "3.wav").unlink()
    with caplog.at_level(logging.WARNING):
        rest = take(loader(speech_folder, open_noise([str(hiss)], 0.5), position=position), 6)
    assert [record.getMessage() for record in caplog.records] == [
        "Data: `noise_data` is another than before: the noise is drawn from it from here on."
    ]
    assert [numbers(batch) for batch in rest] == [numbers(batch) for batch in whole[4:]]


def test_coloured_noise_needs_no_recordings_and_goes_on_where_it_was(speech_folder):
    noise = open_noise(["coloured"], 0.25)
    batches = take(loader(speech_folder, noise), 6)
    assert all(len(batch["noise"]) == max(1, round(0.25 * len(batch["input_values"]))) for batch in batches)
    assert not torch.equal(batches[0]["noise"][0, :400], batches[1]["noise"][0, :400])
    position = loader(speech_folder, noise).dataset.position
    assert position.settings["noise"] == ["coloured"]
    position.positions, position.batches = after(batches[:3]).positions, 3
    again = take(loader(speech_folder, noise, position=position), 3)
    for batch, other in zip(batches[3:], again, strict=True):
        assert torch.equal(batch["noise"], other["noise"])


def test_coloured_noise_is_not_mixed_with_recordings(hiss):
    with pytest.raises(ValueError, match="coloured, noise that is made, beside recordings"):
        open_noise(["coloured", str(hiss)], 0.25)
