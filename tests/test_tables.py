"""A sampler's table as a file: the same bits, the same pictures, and a sentence for what is no table of the model."""

import math
from dataclasses import replace

import pytest

import sample
from ddpm import cosine_schedule, linear_schedule
from run import arrays
from samplers import COLUMNS, SAMPLERS, options_of, read_table, sampler_rows, spaced_times, write_table

SCHEDULE = linear_schedule()
OPTIONS = {"eta": 0.7, "churn": 20., "variance": "learned", "s_tmin": 0.1, "s_tmax": 50., "s_noise": 1.007}


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_table_comes_back_to_the_bit(sampler, steps, clip, tmp_path):
    for options in {}, {name: OPTIONS[name] for name in options_of(sampler)}:
        rows = sampler_rows(SCHEDULE, spaced_times(SCHEDULE, steps, "karras"), sampler=sampler, clip=clip, **options)
        write_table(tmp_path / "rows.csv", rows)
        assert read_table(tmp_path / "rows.csv", SCHEDULE).equal(rows)


def test_columns_may_come_in_any_order(tmp_path):
    rows, path = sampler_rows(SCHEDULE, [1000, 500]), tmp_path / "rows.csv"
    write_table(path, rows)
    path.write_text("\n".join(",".join(reversed(line.split(","))) for line in path.read_text().split()))
    assert read_table(path, SCHEDULE).equal(rows)


CHANGES = {
    "not finite": ("c0", 0, math.nan), "only clip may be inf": ("ct", 1, math.inf), "must decrease": ("t", 2, 1000.),
    "lie in 1..1000": ("t", 0, 1001.), "the next row's t": ("s", 0, 400.), "and the last 0": ("s", 2, 1.),
    "was made for another model": ("b", 1, 0.5), "equal in float32": ("cz", slice(None), 1.),
    "before there are any": ("cp", 0, 0.1), "in the first two": ("cp2", 1, 0.1),
}


@pytest.mark.parametrize("sentence", CHANGES)
def test_rows_that_are_no_chain_are_refused(sentence, tmp_path):
    rows, (name, k, value) = sampler_rows(SCHEDULE, [1000, 500.00000001, 500]), CHANGES[sentence]
    write_table(tmp_path / "rows.csv", rows)
    read_table(tmp_path / "rows.csv", SCHEDULE)
    rows[k, COLUMNS.index(name)] = value
    write_table(tmp_path / "rows.csv", rows)
    with pytest.raises(ValueError, match=sentence):
        read_table(tmp_path / "rows.csv", SCHEDULE)


@pytest.mark.parametrize("schedule, target", [(cosine_schedule(), "eps"), (SCHEDULE, "v")])
def test_a_table_of_another_model_is_refused(schedule, target, tmp_path):
    write_table(tmp_path / "rows.csv", sampler_rows(SCHEDULE, [900, 500]))
    with pytest.raises(ValueError, match="was made for another model: its a, b begin with"):
        read_table(tmp_path / "rows.csv", schedule, target)


@pytest.mark.parametrize("text", ["", "t,s\n1,0\n", ",".join(COLUMNS) + "\n"])
def test_other_files_are_refused(text, tmp_path):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match="a sampler's table begins with t,s,a,b"):
        read_table(tmp_path / "rows.csv", SCHEDULE)


@pytest.mark.parametrize("row", ["1000,0", ",".join(["x"] * len(COLUMNS))])
def test_rows_that_are_not_numbers_are_refused(row, tmp_path):
    (tmp_path / "rows.csv").write_text(",".join(COLUMNS) + f"\n{row}\n")
    with pytest.raises(ValueError, match="not 12 numbers"):
        read_table(tmp_path / "rows.csv", SCHEDULE)


# The script

CHOICE = sample.Config(n=4, steps="3", sampler="unipc", spacing="flow")


def test_sample_writes_its_table_and_takes_it(tmp_path):
    path, flags = str(tmp_path / "rows.csv"), ["--n", "4", "--out", str(tmp_path)]
    sample.main(["--sampler", "unipc", "--steps", "3", "--spacing", "flow", "--table", path, *flags])
    sample.main(["--sampler", path, *flags])
    assert sample.generate(sample.Config(n=4, sampler=path)).x.equal(sample.generate(CHOICE).x)


@pytest.mark.parametrize("flags", ["--steps 20", "--spacing flow", "--eta 1.0", "--variance beta", "--no-clip"])
def test_a_flag_that_a_table_leaves_without_effect_is_refused(flags, tmp_path, capsys):
    path = str(tmp_path / "rows.csv")
    write_table(path, sampler_rows(SCHEDULE, [900, 500]))
    with pytest.raises(SystemExit):
        sample.main(["--sampler", path, *flags.split()])
    assert f"{flags} would do nothing: {path} is a table" in capsys.readouterr().err


def test_a_learned_variance_needs_a_model_that_learned_one(tmp_path):
    checkpoint = sample.read(sample.Config())
    rows = sample.sampler_table(checkpoint, CHOICE)
    rows[:, COLUMNS.index("log_max")] = -1
    write_table(path := str(tmp_path / "rows.csv"), rows)
    with pytest.raises(ValueError, match="reads a learned variance, but weights/digits"):
        sample.sampler_table(checkpoint, sample.Config(sampler=path))


def test_pictures_of_another_table_are_not_resumed(tmp_path):
    checkpoint, config = sample.read(CHOICE), sample.Config(sampler=str(tmp_path / "rows.csv"))
    names = set()
    for steps in "345":
        write_table(config.sampler, sample.sampler_table(checkpoint, replace(CHOICE, steps=steps)))
        names.add(arrays.digest(config, checkpoint))
    assert len(names) == 3 and arrays.digest(replace(config, table="x.csv"), checkpoint) in names
