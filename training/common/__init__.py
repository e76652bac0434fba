"""
Common: what every command needs besides its subject.

- `command_line`, `ranges`: settings from recipes and the command line, and whether they can work
- `device`: where a command computes
- `processes`, `signals`: several processes of a run, and ending it early and in order
- `progress`: what the log says while something takes long
- `seeds`: one for each random choice of a run
- `memory`: keep freed memory for the next step (glibc)
- `onednn`: keep few kernels; imported before torch
- `metrics`: accuracy, error rates, F1 and others of predictions
- `learned`: whether a model does better than chance
- `figures`: pictures that several rooms draw
- `naming`: what a user wrote, as it stands in messages
- `output_directory`: kept for one run alone, its checkpoints, what a killed run has left
- `resuming`: what `resume_from_checkpoint` takes
- `run_record`, `publishing`: what a run leaves, and its way to the Hub
"""
