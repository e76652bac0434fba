"""Evaluation: what a frozen encoder knows. A file each:

encoders.py                what is evaluated: a checkpoint, the same network untrained, MFCC, FBANK
frozen_features.py         for SUPERB's heads, cached on disk: hidden states of clips
layer_features_of_clips.py for probes, in memory: chosen frames, or means over clips, of every layer
alignment.py               phones of a clip in time, and at the centres of frames
phone_information.py       what posteriors over clusters know of phones
phones_at_hidden_frames.py that, of predictions, by distance to the nearest visible frame
bimodality.py              the dip test, and two Gaussians: has a sample one mode or two?
abx.py                     ABX errors of units, by dynamic time warping
unit_measures.py           purity, bits a second, and edits under noise and another speed, of units
probes/                    tasks, classifiers and results of `training/probe.py`
superb/                    tasks, labels, heads, their training and results of `training/superb.py`

`training/analyze.py`, `training/target_information.py` and `training/unit_quality.py` stand on these too.
"""
