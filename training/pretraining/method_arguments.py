"""Method arguments: what is hidden from the encoder, and what is predicted there."""

from dataclasses import dataclass, field

from sjepa_hf.configuration_sjepa import MIXTURE_FEATURES
from training.common.ranges import check_choice, check_ranges
from training.data.masking import SpanMask


@dataclass
class MaskingArguments:
    """What is hidden from the encoder (method, section 6), and what disturbs it (section 7)."""

    mask_prob: float = field(default=0.65, metadata={"help": "Share of the real frames that is masked."})
    mask_span: int = field(default=10, metadata={"help": "Frames per masked span (20 ms each)."})
    mel_mask: int = field(
        default=0,
        metadata={
            "help": "Mel bins of the widest of the bands that are hidden in visible frames too, two in every 0.8 s "
            "(0: none, as published); with front_end log_mel."
        },
    )
    p_mix: float = field(default=0.25, metadata={"help": "Probability of mixing in a piece of another utterance."})
    p_noise: float = field(default=0.25, metadata={"help": "Probability of noise over the whole utterance."})
    noise_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "Sources of that noise, named as in train_data (not streamed, no tar archives), or coloured: noise"
            " that is made. Without it another utterance of the batch is the noise, as published."
        },
    )

    def __post_init__(self):
        check_ranges(
            self,
            positive="mask_prob",
            at_least_1="mask_span",
            not_negative="mel_mask",
            share="mask_prob p_mix p_noise",
        )
        if self.mask_prob == 1:
            raise ValueError(
                "`mask_prob` must be below 1: every clip keeps a visible frame (0.65 is the published value)."
            )
        if self.p_mix + self.p_noise > 1:
            raise ValueError(f"`p_mix` and `p_noise` must not exceed 1 together, got {self.p_mix} and {self.p_noise}.")
        if self.noise_data is not None and not self.noise_data:
            raise ValueError("`noise_data` is empty: name a source of noise, or leave it out.")
        if self.noise_data and self.p_noise == 0:
            raise ValueError("`noise_data` has no use where `p_noise` is 0: leave one of them out.")

    def mask(self) -> SpanMask:
        """What draws the masks."""
        return SpanMask(self.mask_prob, self.mask_span)


@dataclass
class TargetArguments:
    """The mixtures whose posteriors are predicted (method, sections 3 to 5)."""

    phase1_components: int = field(default=100, metadata={"help": "Components of the frozen MFCC mixture."})
    phase1_features: str = field(
        default="mfcc",
        metadata={"help": "What that mixture is over: mfcc (published), mfcc_cmn (less each clip's mean) or log_mel."},
    )
    phase1_temperature: float = field(
        default=1.0, metadata={"help": "As target_temperature, in phase 1; 0 makes the targets one-hot."}
    )
    phase2_components: int = field(default=500, metadata={"help": "Components of the online mixture."})
    fit_frames: int = field(
        default=2_000_000, metadata={"help": "Frames in the reservoir that the MFCC mixture is fitted to."}
    )
    fit_hours: float = field(
        default=1000.0, metadata={"help": "Hours of audio that are read, at most, to fill that reservoir."}
    )
    seed_frames: int = field(
        default=500_000, metadata={"help": "Frames that seed the online mixture at the phase boundary."}
    )
    reseed_frames: int = field(
        default=100_000, metadata={"help": "Frames that seed it anew when the active layer changes."}
    )
    kmeans_passes: int = field(default=5, metadata={"help": "Mini-batch k-means passes of a fit."})
    em_iterations: int = field(default=20, metadata={"help": "EM iterations of a fit."})
    relative_variance_floor: float = field(
        default=1e-3,
        metadata={
            "help": "Variance floor as a share of the data's variance. 0: 1e-6, as published; below 1e-4, audio with"
            " digital silence gives wrong posteriors in fp32."
        },
    )
    mixture_decay: float = field(default=0.999, metadata={"help": "Decay of the online mixture's average."})
    mixture_average: str = field(
        default="statistics",
        metadata={"help": "What the online update averages: sufficient 'statistics', or 'parameters' as published."},
    )
    target_temperature: float = field(
        default=1.0,
        metadata={
            "help": "Divides the log-joint of the posterior used as target in phase 2 (1: published; 0: one-hot)."
        },
    )
    target_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Layers whose mean makes the targets, instead of the active one; numbered as start_layer."},
    )
    target_instance_norm: bool = field(
        default=False,
        metadata={"help": "Normalise each clip's features over its frames before the online mixture sees them."},
    )
    target_dims: int | None = field(
        default=None,
        metadata={"help": "Whitened principal components that the mixture sees. Default: all dimensions."},
    )
    target_transitions: bool = field(
        default=False,
        metadata={
            "help": "Targets given the whole clip: the mixtures' components are states of a hidden Markov model (our "
            "addition)."
        },
    )
    transition_passes: int = field(
        default=3,
        metadata={
            "help": "With it: passes over fit_frames, seed_frames or reseed_frames of audio after a fit. The first "
            "counts transitions, each later one is a round of Baum-Welch."
        },
    )
    frozen_weight: float = field(
        default=0.0, metadata={"help": "Share of the phase-1 targets in the loss of phase 2."}
    )
    start_layer: int | None = field(
        default=3,
        metadata={
            "help": "Layer whose features the second phase starts on. Layers are numbered as in hidden_states: 1 is "
            "the first one's output, 0 its input. The default is the paper's layer 2, which counts the first as 0; "
            "null in a recipe: the one (from 1) of the highest effective rank when the phase begins."
        },
    )
    adaptive_layer: bool = field(
        default=True,
        metadata={"help": "Move to the layer (from 1) of the highest effective rank; false stays on start_layer."},
    )
    layer_check_steps: int = field(default=10_000, metadata={"help": "Steps between two measures of effective rank."})
    layer_score_decay: float = field(
        default=0.37, metadata={"help": "Decay of the smoothed effective ranks from one measure to the next."}
    )
    reseed_on_layer_switch: bool = field(
        default=True, metadata={"help": "Seed the mixture on the new layer's features (false: published)."}
    )
    ema_decays: list[float] = field(
        default_factory=lambda: [0.999, 0.9999], metadata={"help": "Decays of the EMA encoder, used in turn."}
    )
    ema_switch_steps: int = field(default=20_000, metadata={"help": "Steps between two changes of that decay."})

    def __post_init__(self):
        check_ranges(
            self,
            at_least_1="kmeans_passes transition_passes layer_check_steps ema_switch_steps target_dims",
            at_least_2="phase1_components phase2_components",
            positive="fit_hours",
            not_negative="em_iterations relative_variance_floor phase1_temperature target_temperature",
            share="mixture_decay frozen_weight layer_score_decay ema_decays",
        )
        check_choice(self, "phase1_features", [n for n in MIXTURE_FEATURES if n != "encoder"])  # what a save can name
        check_choice(self, "mixture_average", ("statistics", "parameters"))
        for frames, found in (
            ("fit_frames", "phase1_components"),
            ("seed_frames", "phase2_components"),
            ("reseed_frames", "phase2_components"),
            ("seed_frames", "target_dims"),
            ("reseed_frames", "target_dims"),
        ):
            given, needed = getattr(self, frames), getattr(self, found) or 0
            if given < needed:
                raise ValueError(f"`{frames}` ({given}) must not be fewer than `{found}` ({needed}).")
        if not self.ema_decays:
            raise ValueError("`ema_decays` is empty: name at least one decay.")
        if self.target_dims and self.follows_ranks and not self.reseed_on_layer_switch:
            raise ValueError(
                "With `target_dims` a new layer needs principal components of its own: leave"
                " `reseed_on_layer_switch` true, or set `adaptive_layer` to false."
            )

    @property
    def keeps_frozen(self) -> bool:
        """Whether the phase-1 targets stay in the loss of phase 2."""
        return self.frozen_weight > 0

    @property
    def follows_ranks(self) -> bool:
        """Whether the layer that makes the targets may change."""
        return self.adaptive_layer and not self.target_layers

    def fit_options(self) -> dict:
        """Options of [`DiagonalGaussianMixture.fit`]."""
        return {
            "num_passes": self.kmeans_passes,
            "num_iterations": self.em_iterations,
            "relative_variance_floor": self.relative_variance_floor,
        }
