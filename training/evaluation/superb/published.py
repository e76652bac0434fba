"""Published figures of SUPERB's own data, as the S-JEPA paper has them; none was measured here.

They are shares of 1, as in our tables. er is the mean of five folds.
"""

COLUMNS = (("asr", "wer"), ("er", "accuracy"), ("sf", "slot_type_f1"), ("sf", "slot_value_cer"))
FIGURES = {  # of COLUMNS
    "DistilHuBERT": (0.1337, 0.6302, 0.8257, 0.3559),
    "HuBERT Base": (0.0642, 0.6492, 0.8853, 0.2520),
    "WavLM Base+": (0.0559, 0.6865, 0.9058, 0.2120),
    "data2vec 2.0 Base": (0.0481, 0.6666, 0.8967, 0.2209),
    "S-JEPA": (0.1210, 0.6483, 0.8305, 0.3317),
}
