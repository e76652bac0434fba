from training.data.labelled import open_labelled
from training.finetuning.data import drawn


def test_a_smaller_part_lies_in_a_larger_one(mine):
    clips = open_labelled([str(mine)], ["text"])
    parts = [drawn(clips, share * clips.hours) for share in (0.2, 0.6, 2.0)]
    names = [{part.clip(i).name for i in range(len(part))} for part in parts]
    assert names[0] < names[1] < names[2] and len(names[2]) == 20
    assert 0.2 * clips.hours <= parts[0].hours < 0.2 * clips.hours + max(clips.num_samples) / 16000 / 3600
