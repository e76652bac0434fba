import pytest
from transformers import HfArgumentParser

from training.data.arguments import DataArguments


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_data": []}, "train_data is empty"),
        ({"train_data_weights": [1.0, 2.0]}, "2 values for 1 sources"),
        ({"train_data_weights": [0.0]}, "`train_data_weights` must be above 0"),
        ({"train_data_weights": [float("nan")]}, "`train_data_weights` must be above 0, got nan"),
        ({"min_seconds": 0.02}, "min_seconds must be at least 0.025"),
        ({"max_seconds": 400.0}, "batch_seconds"),
        ({"bucket_buffer_size": 0}, "`bucket_buffer_size` must be at least 1"),
        ({"num_workers": -1}, "`num_workers` must be at least 0"),
        ({"batch_seconds": float("inf")}, "`batch_seconds` must be finite"),
        ({"max_bad_fraction": 2.0}, "`max_bad_fraction` must lie between 0 and 1"),
    ],
)
def test_bad_arguments_name_the_field(values, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**({"train_data": ["a"]} | values))


def test_arguments_parse_and_are_documented(tmp_path):
    line = "--train_data a b::c --train_data_weights 1 2.5 --streaming --max_seconds 10 --audio_column speech"
    (args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(line.split())
    assert args.train_data == ["a", "b::c"] and args.train_data_weights == [1.0, 2.5]
    assert args.streaming and args.max_seconds == 10.0 and args.audio_column == "speech"
    assert all(field.metadata["help"] for field in DataArguments.__dataclass_fields__.values())
