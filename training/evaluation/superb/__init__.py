"""SUPERB, which `training/superb.py` runs, a file each:

arguments.py  what can be asked for
tasks.py     the tasks: heads, hyperparameters, metrics, data sets, and known differences from the toolkit
labels.py    what label columns become, and back; metrics over texts and slots
evaluation.py  one task with its data and labels, ready to score encoders
splits.py    training, dev and test set, and folds
diarization.py  mixtures of two speakers, and the error rate
query_by_example.py  search of words by DTW, and MTWV
heads.py     the learned average of layers, and what is trained on top of it
verification.py  trials of two clips and the equal error rate
training.py  the loop that all tasks share, and the answers of a trained head
results.py   JSON lines, means over the folds, scores over the seeds, table, picture of the layer weights
summary.py   table and picture of several tasks
"""
