from training.evaluation.superb.arguments import SuperbArguments, choose_task, parse_arguments


def test_a_recipe_can_hold_any_field(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("task: sid\nmodel: [a, b]\nmax_steps: 5000\nseeds: [1, 2]\n")
    arguments = parse_arguments(["--config", str(recipe), "--model", "mfcc"])
    assert (arguments.task, arguments.model, arguments.max_steps, arguments.seeds) == ("sid", ["mfcc"], 5000, [1, 2])
    assert choose_task(arguments).eval_steps == 500


def test_every_field_is_documented():
    for name, field in SuperbArguments.__dataclass_fields__.items():
        assert field.metadata.get("help"), name


def test_hub_data_sets_are_the_default():
    def chosen(*options):
        return choose_task(parse_arguments(["--model", "mfcc", *options]))

    assert chosen("--task", "ks").test_data == ["s3prl/superb::ks::test"]
    assert chosen("--task", "er").eval_data == [] and len(chosen("--task", "er").train_data) == 4
    assert chosen("--task", "pr", "--lexicon", "x").columns == ("text",)
