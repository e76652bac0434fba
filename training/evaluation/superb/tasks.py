"""Tasks of SUPERB (arXiv 2105.01051): heads, hyperparameters, metrics and data sets, as in its toolkit, s3prl.

All tasks: Adam without schedule, and the weights of the layer sum start at zero, before the softmax. Where the toolkit
accumulates gradients, `batch_size` is the product. The published figures of a model stand at the best of several
learning rates, these are the toolkit's defaults.

Known differences from the toolkit, beside whose figures these stand only with that said:

all   The toolkit cuts features to round(samples / 320) frames and, in ks, leaves out a last batch that is not full.
ks    The toolkit draws any second of a background noise whenever it needs a `_silence_` to train or to select with,
      here one of those that begin every 0.1 s, so that a longer noise counts for more. It chooses the step on a
      class-balanced sample of the dev set, here on the mean accuracy of the classes. It attenuates every clip by 3 dB,
      here those of SUPERB alone.
sid   The toolkit trains on 8 s of each clip, here on all of it; its head has the 1,251 outputs of VoxCeleb1 whatever
      the data.
er    SUPERB's figure is the mean of five folds, one a session, which `--folds` makes of data with a column for it; on
      the Hub's it is that of the first. The toolkit's dev set is a fifth of the utterances of the other sessions at
      random; here of the recordings, evenly from all labels.
asr   The toolkit sorts batches into buckets of length and halves those with long clips; the time masks of its
      SpecAugment are drawn within the padded batch, here within each clip. So in sf.
pr    The toolkit's vocabulary is fixed; here it is that of the lexicon, or of the training data where there is none.
      `--stacked_frames` is none of it.
sf    Slot type F1 and slot value CER are the toolkit's.
asv   The loss is the toolkit's AM-softmax; SUPERB does not use its AAM-softmax. The toolkit takes silence out of all
      clips, attenuates them by 3 dB, leaves out training clips of 2 s and less, and cuts 8 s of the waveform, here of
      the frames. Of several checkpoints it reports the lowest rate on the test set; here the dev set chooses the step.
qbe   The toolkit leaves the score to QUESST 2014's tool; here it is MTWV with that benchmark's costs, a document being
      one trial. It may take the best of several distances; here it is its default, the exponential of the cosine.
sd    SUPERB's mixtures are Libri2Mix's, whose clips begin together; here clips of one speaker are mixed as they are
      read, the second beginning anywhere in the first, and a clip counts as speech from end to end. The toolkit trains
      on pieces of 2,000 frames, chooses the step by accuracy, and reports the lowest test figure of five thresholds
      and two median filters; here mixtures are whole, the dev set's error rate chooses, and it is 0.5 and 11 frames.
fbank Is SUPERB's baseline: FBANK of 80 bands every 10 ms with deltas, each value normed over the clip, of which a mean
      over the frames keeps nothing: ks, ic, sid and er are at chance with it. In asv it is 4 s that a batch takes of a
      clip, in sd the labels stay those of 20 ms.
mfcc  Is not SUPERB's: MFCC normed over the training set, so that a pooled head learns from them.
"""

from dataclasses import dataclass, field, replace
from typing import Literal


TOOLKIT = "s3prl/s3prl@ec8064b, s3prl/downstream"
CLASS_MEAN = "class_mean_accuracy"  # of the dev set where classes count alike
HEAD_UNITS = {"recurrent_ctc": 1024, "xvector": 512, "diarization": 512}


@dataclass(frozen=True)
class SuperbTask:
    """
    A task.

    Attributes:
        head: "pooled" (projection to 256, mean over frames, linear), "linear_ctc" (projection to 256, linear, CTC),
            "recurrent_ctc" (projection to 1024, two bidirectional LSTM layers of 1024, dropout 0.2, linear, CTC),
            "xvector" (x-vectors of 512, AM-softmax), "diarization" (one LSTM layer of
            512, linear, best of both orders of the speakers), or "dtw", where nothing is trained.
        labels: what the label columns hold: "classes" (one classifier each), "slots" (likewise, where empty means that
            the slot is absent), "characters", "phones", "slot_characters" (characters and slot tokens), "speakers"
            (other ones in dev and test set than in training), or "words", which are searched for in other clips.
        columns: label columns of the data set on the Hub.
        metrics: the first one chooses the best step; where it is the same, the next.
        learning_rate, batch_size, max_steps, weight_decay: of the training of the head.
        max_norm: to which gradients are clipped.
        eval_steps: steps between two looks at the dev set.
        balanced: classes are drawn equally often in training, and the dev set's metric is the mean over them.
        silence: label of background noise, of which training and dev set take single seconds.
        gain: of SUPERB's own clips, in dB.
        spec_augment: weighted sums are warped and masked in training.
        train_data, eval_data, test_data: data sets on the Hub, as `training.data.sources.open_source` reads them;
            empty where there is none; without `eval_data` a part of the training data is held out.
        source: where the settings stand.
    """

    name: str
    title: str
    head: Literal["pooled", "linear_ctc", "recurrent_ctc", "xvector", "diarization", "dtw"]
    labels: Literal["classes", "slots", "characters", "phones", "slot_characters", "speakers", "words"]
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    source: str
    learning_rate: float = 1e-4
    batch_size: int = 32
    max_steps: int = 200_000
    eval_steps: int = 5_000
    weight_decay: float = 0.0
    max_norm: float = 1.0
    balanced: bool = False
    silence: str | None = None
    gain: float = 0.0
    spec_augment: bool = False
    train_data: list[str] = field(default_factory=list)
    eval_data: list[str] = field(default_factory=list)
    test_data: list[str] = field(default_factory=list)

    @property
    def is_trained(self) -> bool:
        """Whether a head is trained on the features."""
        return self.head != "dtw"


LIBRISPEECH = dict(  # train-clean-100, dev-clean, test-clean; a first use downloads train-clean-360 with them
    train_data=["openslr/librispeech_asr::clean::train.100"],
    eval_data=["openslr/librispeech_asr::clean::validation"],
    test_data=["openslr/librispeech_asr::clean::test"],
)


def _superb(config: str) -> dict[str, list[str]]:
    splits = {"train_data": "train", "eval_data": "validation", "test_data": "test"}
    return {name: [f"s3prl/superb::{config}::{split}"] for name, split in splits.items()}


TASKS = {
    task.name: task
    for task in (
        SuperbTask(
            "asr",
            "speech recognition",
            "recurrent_ctc",
            "characters",
            ("text",),
            ("wer", "cer"),
            f"{TOOLKIT}/asr/config.yaml",
            eval_steps=2_000,
            spec_augment=True,
            **LIBRISPEECH,
        ),
        SuperbTask(
            "pr",
            "phone recognition",
            "linear_ctc",
            "phones",
            ("text",),  # a lexicon turns words into phones
            ("per",),
            f"{TOOLKIT}/ctc/libriphone.yaml",  # batches of 16, gradients of 2
            learning_rate=1e-2,
            max_steps=100_000,
            eval_steps=1_000,
            **LIBRISPEECH,
        ),
        SuperbTask(
            "ks",
            "keyword spotting",
            "pooled",
            "classes",
            ("label",),
            ("accuracy",),
            f"{TOOLKIT}/speech_commands/config.yaml",
            balanced=True,
            silence="_silence_",
            gain=-3.0,
            **_superb("ks"),
        ),
        SuperbTask(
            "ic",
            "intent classification",  # right if action, object and location all are
            "pooled",
            "classes",
            ("action", "object", "location"),
            ("accuracy",),
            f"{TOOLKIT}/fluent_commands/config.yaml",
            **_superb("ic"),
        ),
        SuperbTask(
            "sid",
            "speaker identification",
            "pooled",
            "classes",
            ("label",),
            ("accuracy",),
            f"{TOOLKIT}/voxceleb1/config.yaml",  # batches of 8, gradients of 4
            **_superb("si"),
        ),
        SuperbTask(
            "er",
            "emotion recognition",  # first of five folds: session 1 is the test set, a fifth of the others the dev set
            "pooled",
            "classes",
            ("label",),
            ("accuracy",),
            f"{TOOLKIT}/emotion/config.yaml",  # batches of 4, gradients of 8
            max_steps=30_000,
            eval_steps=1_000,
            train_data=[f"s3prl/superb::er::session{number}" for number in (2, 3, 4, 5)],
            test_data=["s3prl/superb::er::session1"],
        ),
        SuperbTask(
            "sf",
            "slot filling",  # Audio SNIPS has no data set of this form on the Hub
            "recurrent_ctc",
            "slot_characters",
            ("text",),
            ("slot_type_f1", "slot_value_cer"),
            f"{TOOLKIT}/ctc/snips.yaml",
            eval_steps=2_000,
            spec_augment=True,
        ),
        SuperbTask(
            "asv",
            "speaker verification",  # VoxCeleb1 has no data set of this form on the Hub
            "xvector",
            "speakers",
            ("label",),
            ("eer",),
            f"{TOOLKIT}/sv_voxceleb1/configs/amsoftmax.yaml",  # batches of 10, gradients of 5
            batch_size=50,
            eval_steps=10_000,
            weight_decay=0.01,
            max_norm=1e3,
        ),
        SuperbTask(
            "sd",
            "diarization of two speakers",
            "diarization",
            "speakers",
            ("speaker",),
            ("der",),
            f"{TOOLKIT}/diarization/config.yaml",  # batches of 8, gradients of 4
            max_steps=30_000,
            eval_steps=500,
        ),
        SuperbTask(
            "qbe",
            "query by example",  # QUESST 2014 has no data set of this form on the Hub
            "dtw",
            "words",
            ("keyword",),
            ("mtwv",),
            f"{TOOLKIT}/quesst14_dtw/config.yaml",
            max_steps=0,
        ),
    )
}


def slot_classification() -> SuperbTask:
    """Slot filling for data with a column of values for each slot but no annotated transcripts. Not SUPERB's task:
    one classifier per slot chooses among the values of the training data, or none."""
    return replace(
        TASKS["sf"],
        title="slot filling as classification",
        head="pooled",
        labels="slots",
        eval_steps=TASKS["ic"].eval_steps,
        spec_augment=False,
        source=f"not a task of SUPERB; head and settings of {TOOLKIT}/fluent_commands/config.yaml",
    )
