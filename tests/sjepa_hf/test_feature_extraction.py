from sjepa_hf.feature_extraction import feature_extractor


def test_feature_extractor_gives_padding_a_mask_and_leaves_the_level_alone():
    inputs = feature_extractor()([[0.5] * 400, [0.25] * 800], sampling_rate=16000, padding=True, return_tensors="pt")
    assert inputs["attention_mask"].sum(-1).tolist() == [400, 800]
    assert inputs["input_values"].max() == 0.5
