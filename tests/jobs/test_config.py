# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Configurations are checked once, whoever gives their values, and everything else follows from them."""

from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest

from diffuseseg_diffusers.jobs.command_line import command_line, config_line, parse
from diffuseseg_diffusers.jobs.config import Config, option
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.tasks.options import WritesFolder


@dataclass(frozen=True, kw_only=True)
class Drawing(WritesFolder):
    """Draw something.

    At length.
    """

    images: tuple[str, ...] = option((), "Images to start from.", positional=True, reads=True)
    blocks: tuple[int | str, ...] | None = option(None, "Blocks, by number or name.", group="features")
    tile: bool | None = option(None, "Tiles.", negative="--whole")
    count: int = option(8, "Number of drawings.", minimum=1, aliases=("--number",))
    alpha: float = option(0.5, "Opacity.", maximum=1)
    scale: float | None = option(None, "Scale.", above=0)
    offsets: tuple[int, ...] | None = option(None, "Offsets.", minimum=float("-inf"))
    size: tuple[int, int] | None = option(None, "Height and width.")
    colour: str = option("red", "Colour.", choices=("red", "green"))
    source: Path | None = option(None, "File of shapes.", reads=True)
    quiet: bool = option(False, "Print nothing.", influence=False, why="it only prints")


def drawn(*words: str) -> Config:
    return parse(config_line("draw", Drawing), ["--output_dir", "out", *words])


def test_a_command_line_and_python_give_the_same_configuration():
    words = ("a.png", "b.png", "--blocks", "1", "mid", "--whole", "--number=3", "--offsets", "-2", "5", "--scale", "2")
    given = dict(blocks=[1, "mid"], tile=False, count=3, offsets=(-2, 5), scale=2)
    assert drawn(*words) == Drawing(images=["a.png", "b.png"], output_dir="out", **given)
    assert drawn() == Drawing(output_dir="out")
    assert parse(config_line("draw", Drawing), ["--output_dir=~/out"]).output_dir == Path.home() / "out"


def test_of_an_option_with_several_values_that_is_given_twice_the_last_one_holds():
    config = drawn("--blocks", "1", "mid", "--offsets", "3", "--blocks", "4")
    assert (config.blocks, config.offsets) == ((4,), (3,))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 0, "--count must be at least 1, got 0."),
        ("alpha", 2.0, r"--alpha must lie in 0 to 1, got 2.0."),
        ("alpha", float("nan"), "--alpha must be a finite number, got nan."),
        ("scale", 0.0, "--scale must be above 0, got 0.0."),
        ("blocks", (-1,), "--blocks must be at least 0, got -1."),
        ("colour", "blue", "--colour must be one of red, green; got blue."),
    ],
)
def test_values_out_of_range_are_refused_from_python_and_the_command_line_alike(field, value, message):
    with pytest.raises(UserError, match=message):
        Drawing(output_dir="out", **{field: value})
    with pytest.raises(UserError, match=message):
        drawn(f"--{field}", *map(str, value if isinstance(value, tuple) else (value,)))


def test_settings_hold_what_results_depend_on_and_inputs_what_is_read():
    config = Drawing(output_dir="out", images=("a.png",), source="shapes.json", quiet=True)
    assert set(Drawing.options()) - set(config.settings()) == {"quiet", "output_dir", "overwrite"}
    assert config.settings()["source"] == "shapes.json" and config.settings()["images"] == ["a.png"]
    assert config.inputs() == ["a.png", "shapes.json"]
    assert all(own.why for own in Drawing.options().values() if not own.influence)


def test_what_is_not_understood_shows_the_usage_of_its_command(capsys):
    app = command_line("program", "Does things.", "1.0", {"draw": Drawing})
    out = ["--output_dir", "out"]
    wrong = (
        (["--colr", "red", *out], "--colr"),
        (["--count", "many", *out], "--count"),
        ([], "--output_dir is required"),
    )
    for words, said in wrong:
        with pytest.raises(SystemExit) as end:
            parse(app, ["draw", *words])
        printed = capsys.readouterr()
        assert end.value.code == 2 and said in printed.err and not printed.out
        assert printed.err.startswith("usage: program draw [OPTIONS] IMAGES; program draw --help")
    assert parse(app, ["draw", "--help"]) is None
    shown = capsys.readouterr().out
    assert "--number" in shown and "()" not in shown
    with pytest.raises(SystemExit):
        parse(app, ["drew"])
    assert capsys.readouterr().err.startswith("usage: program COMMAND; program --help")
    assert parse(app, ["--version"]) is None
    assert capsys.readouterr().out == "1.0\n"


def test_everything_that_is_required_and_missing_is_named_at_once(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Copying(WritesFolder):
        """Copy."""

        source: str = option(help="What.", positional=True)
        model: str = option(help="By what.", aliases=("--pretrained",))
        tags: tuple[str, ...] = option((), "Of what.")

    app = command_line("program", "Does things.", "1.0", {"copy": Copying})
    for words, said in (
        (["a"], "--output_dir and --model are required."),
        (["a", "--output_dir=b"], "--model is required."),
        (["a", "--pretrained", "b"], "--output_dir is required."),
        ([], "SOURCE and --output_dir and --model are required."),
    ):
        with pytest.raises(SystemExit):
            parse(app, ["copy", *words])
        assert capsys.readouterr().err.endswith(f"error: {said}\n"), words
    assert parse(app, ["copy", "--help"]) is None and "()" not in capsys.readouterr().out


def test_fields_of_the_class_itself_come_first_in_the_help():
    assert list(Drawing.grouped()) == ["", "features", "output"]
    assert Drawing.grouped()["features"] == ["blocks"]


def test_a_value_of_several_words_may_begin_as_an_option_does():
    assert drawn("--source", "--red 1 --blue 2").source == Path("--red 1 --blue 2")


def test_of_an_option_that_is_given_twice_the_last_holds():
    given = drawn("--count", "3", "--colour", "red", "--quiet", "--number", "5", "--colour", "green", "--quiet")
    assert (given.count, given.colour, given.quiet) == (5, "green", True)


@pytest.mark.parametrize(
    ("field", "given", "held"),
    [
        ("images", "a.png", ("a.png",)),
        ("images", [Path("a.png"), 3], ("a.png", "3")),
        ("blocks", ["mid", "3"], ("mid", 3)),
        ("offsets", range(-1, 1), (-1, 0)),
        ("count", numpy.int64(3), 3),
        ("scale", 2, 2.0),
    ],
)
def test_a_single_value_is_one_of_several_and_numbers_are_plain(field, given, held):
    """Was: each letter of `images="a.png"` was an image."""
    value = getattr(Drawing(output_dir="out", **{field: given}), field)
    assert value == held and type(value) is type(held)


@pytest.mark.parametrize(
    ("field", "given"),
    [("count", "3"), ("count", None), ("count", True), ("quiet", "yes"), ("size", (64,)), ("colour", 1)],
)
def test_a_value_of_another_type_is_refused(field, given):
    with pytest.raises(UserError, match=f"--{field} must be of type .*, got "):
        Drawing(output_dir="out", **{field: given})
