"""What `training/superb.py` is made of: tasks, frozen features, heads, labels, the training of a head, results."""
