import pytest

from sjepa_hf.frame_features import FRAME_FEATURES, MfccFeatures
from training.pretraining.arguments import parse_arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--phase1_features", "words"], "`phase1_features` is 'words'; choose one of mfcc, mfcc_cmn, log_mel"),
        (["--target_temperature", "-1"], "`target_temperature` must be at least 0"),
        (["--frozen_weight", "1.5"], "must lie between 0 and 1, got 1.5"),
        (["--mixture_average", "mean"], "`mixture_average` is 'mean'; choose one of statistics, parameters"),
        (["--ema_decays", "0.9", "1.1"], "`ema_decays` must lie between 0 and 1, got 1.1"),
        (["--mixture_decay", "nan"], "`mixture_decay` must lie between 0 and 1, got nan"),
        (["--mask_prob", "0"], "`mask_prob` must be above 0"),
        (["--p_mix", "0.6", "--p_noise", "0.6"], "`p_mix` and `p_noise` must not exceed 1 together"),
        (["--phase2_components", "1"], "`phase2_components` must be at least 2"),
        (["--seed_frames", "20"], "`seed_frames` .20. must not be fewer than `phase2_components` .500."),
        (
            ["--reseed_frames", "600", "--target_dims", "601"],
            "`reseed_frames` .600. must not be fewer than `target_dims` .601.",
        ),
        (["--target_dims", "8", "--reseed_on_layer_switch", "false"], "principal components of its own"),
    ],
)
def test_wrong_settings_get_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--train_data", "speech", *options])


def test_a_feature_that_no_checkpoint_could_name_is_refused_at_the_start(monkeypatch):
    monkeypatch.setitem(FRAME_FEATURES, "plp", MfccFeatures)
    with pytest.raises(ValueError, match="`phase1_features` is 'plp'; choose one of mfcc, mfcc_cmn, log_mel"):
        parse_arguments(["--train_data", "speech", "--phase1_features", "plp"])
