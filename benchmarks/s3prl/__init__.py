"""SUPERB in S3PRL's own code and in `training.superb`, side by side on the same small data (table.py)."""
