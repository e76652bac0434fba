"""Probes of a frozen encoder, which `training/probe.py` runs, a file each:

tasks.py        what is probed for: rows with their classes, and the random splits
classifiers.py  logistic regression and the paper's small MLP, and their accuracy
results.py      the tables and the picture
"""
