"""Configurations from YAML and the command line."""

from dataclasses import dataclass, field

import pytest

from radiodiff_diffusers.training.config import DataConfig, TrainConfig, parse_config, read_yaml, write_yaml


@dataclass
class Recipe:
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(adam_betas=[0.5, 0.9]))
    terms: dict[str, float] = field(default_factory=dict)


def written(tmp_path, text, name="config.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_file_then_command_line(tmp_path):
    path = written(tmp_path, "train:\n  learning_rate: 5e-5\n  max_steps: 50000\nterms: {ssim: 1}\n")
    config = parse_config(Recipe, ["--config", path, "--max_steps", "7", "--train.mixed_precision=no"])
    assert config.train.learning_rate == 5e-5  # YAML reads 5e-5 as text
    assert config.train.max_steps == 7 and isinstance(config.train.max_steps, int)
    assert config.train.mixed_precision == "no"  # YAML reads no as false
    assert config.terms == {"ssim": 1.0}
    assert config.train.adam_betas == [0.5, 0.9]  # the recipe's own default


def test_lists_nothing_and_dictionary_entries():
    config = parse_config(
        Recipe,
        ["--condition_channels", "buildings,transmitter", "--max_grad_norm", "null",
         "--data.options.simulation", "IRT4", "--data.options.cars=true"],
    )  # fmt: skip
    assert config.data.condition_channels == ["buildings", "transmitter"]
    assert config.train.max_grad_norm is None
    assert config.data.options == {"simulation": "IRT4", "cars": True}


def test_dataset_is_another_name_for_the_source(tmp_path, capsys):
    path = written(tmp_path, "data: {source: data/cities, options: {simulation: DPM}, simulate: {cities: 3}}\n")
    for flag in (["--dataset", "you/maps"], ["--dataset=you/maps"], ["--data.source", "you/maps"]):
        config = parse_config(Recipe, ["--config", path, *flag])
        assert config.data.source == "you/maps" and config.data.options == {"simulation": "DPM"}
        assert config.data.simulate == {}  # nothing may be simulated into another data set
    assert parse_config(Recipe, ["--config", path, "--dataset", "data/cities"]).data.simulate == {"cities": 3}
    given = parse_config(Recipe, ["--config", path, "--dataset", "data/more", "--data.simulate.transmitters", "2"])
    assert given.data.simulate == {"cities": 3, "transmitters": 2}
    with pytest.raises(SystemExit):
        parse_config(Recipe, ["--help"])
    assert "--data.source VALUE, --source VALUE, --dataset VALUE" in " ".join(capsys.readouterr().out.split())


def test_extends(tmp_path):
    base = "train: {max_steps: 10, batch_size: 3}\ndata: {options: {simulation: DPM}}\n"
    written(tmp_path, base, "base.yaml")
    path = written(tmp_path, "extends: base.yaml\ntrain: {batch_size: 4}\ndata: {options: {cars: true}}\n")
    # options belong together: those of another data set would be in the way
    assert read_yaml(path) == {"train": {"max_steps": 10, "batch_size": 4}, "data": {"options": {"cars": True}}}


@pytest.mark.parametrize(
    "text, message",
    [
        ("train: {learning_rat: 1}", "unknown key 'train.learning_rat'; did you mean 'train.learning_rate'"),
        ("max_steps: 1", "unknown key 'max_steps'; did you mean 'train.max_steps'"),
        ("train: {max_steps: 1.5}", "train.max_steps is 1.5; expected a whole number"),
        ("train: {max_steps: true}", "train.max_steps is True; expected a whole number"),
        ("train: {compile: 1}", "train.compile is 1; expected true or false"),
        ("train: {max_grad_norm: much}", "expected a number or nothing"),
        ("train: 3", "train is a section"),
        ("terms: {ssim: high}", "terms.ssim is 'high'; expected a number"),
        ("train: [", "not valid YAML"),
        ("- 1", "must hold sections"),
    ],
)
def test_mistakes_in_the_file(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        parse_config(Recipe, ["--config", written(tmp_path, text)])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_mistakes_on_the_command_line():
    with pytest.raises(ValueError, match="unknown argument '--learning_rte'; did you mean 'train.learning_rate'"):
        parse_config(Recipe, ["--learning_rte", "1"])
    with pytest.raises(ValueError, match="no such configuration file"):
        parse_config(Recipe, ["--config", "nowhere.yaml"])
    with pytest.raises(ValueError, match="needs a value"):
        parse_config(Recipe, ["--data.options.root"])


def test_round_trip(tmp_path):
    config = parse_config(Recipe, ["--max_steps", "3", "--condition_channels", "map"])
    write_yaml(config, tmp_path / "out.yaml")
    assert parse_config(Recipe, ["--config", str(tmp_path / "out.yaml")]) == config


def test_every_key_has_an_explanation(capsys):
    with pytest.raises(SystemExit):
        parse_config(Recipe, ["--help"])
    text = capsys.readouterr().out
    assert "--train.learning_rate" in text and "--learning_rate" in text and "pixels" in text
