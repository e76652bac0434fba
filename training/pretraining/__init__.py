"""
Pretraining, the parts of a run; the loop itself is `training/pretrain.py`.

- `arguments`: every setting, from a recipe and the command line; `method_arguments`: those of masking and targets;
  `shortening`: a phase that is made shorter
- `run`: everything that the loop works on; `model`: model, optimizer and targets, new or of a checkpoint
- `other_encoder`: HuBERT, WavLM, ... called as our encoder is; `other_pretraining`: all else over one
- `training_data`: the next batch, and where every reader stands
- `phases`: the fits of the mixtures, the boundary between the phases, the layer that targets are read from
- `schedules`: what the settings say of each step
- `monitoring`: the line of metrics in the log; `hidden_frames`: what of it is about hidden frames by distance;
  `figures`: its pictures; `plan`: what a run says before it begins
- `checkpointing`: saving and restoring a run; `checkpoint_layout`: the files of a checkpoint
- `resuming`: which checkpoint, and what may differ from the run that wrote it
- `result`: what a run leaves at its end
"""
