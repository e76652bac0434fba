"""The demonstration: a small labelled corpus, pretraining with the real command, linear probes."""
