"""
Fine-tuning: a checkpoint, a head, and transformers' Trainer. `finetune_ctc.py` and `finetune_classification.py` read
from top to bottom; what they are made of lies here:

    arguments         what both commands are asked, from recipes and the command line
    data              sources, their column of labels, the clips to train on, to choose by and to test on
    order             of the training clips, of like length together or any
    model             the checkpoint with a head; fresh layers, adapters
    ctc               what only CTC needs: tokenizer, batches, error rates
    classification    what only classification needs: classes, batches, scores
    trainer           the Trainer of both: learning rates, checkpoints, signals
    trainer_settings  which of the Trainer's settings cannot work, and how many steps there are
    plan              what a run is about to do, in words
    resuming          which checkpoint a run goes on from, and whether it is of the same task
    saving            a checkpoint that is there whole or not at all
    result            what a run leaves: model, scores, record, learning curve
    text              normalisation of transcripts, vocabulary
    ngram             word n-grams and ARPA files
    beam_search       CTC decoding, greedy and with an n-gram
    transcribe        transcripts of clips, and their error rates

A new head is a file beside `ctc.py` and `classification.py` (its batches, its scores, what it asks of the labels) and
a command beside the two (its arguments; `settings`, `prepare` and `train`); all else serves it as it is. In `sjepa_hf`
it is a class in `modeling_sjepa_heads.py`, with its Auto class in `auto_classes.py`.
"""
