"""Policies that a user wrote: what is taken, what is refused, and what becomes of their mistakes."""

import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from policies import PolicyFailed, policy
from tasks.errors import BadInput

GOOD = """
class Mine:
    candidates = "novel"
    learns = True

    def choose(self, scores, used, rng):
        return int(np.argmax(scores - used)) if len(scores) else None
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module of a new name into the current directory, and return that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(source: str) -> str:
        name = f"mine_{uuid.uuid4().hex[:8]}"
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\n{source}")
        return name

    return write


def refused(name: str) -> str:
    with pytest.raises(BadInput) as error:
        policy(name)
    assert str(error.value).startswith(f"--policy {name} cannot be used, for ")
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def choose(name: str, scores: list[float], used: list[int]) -> int | None:
    return policy(name).choose(np.array(scores), np.array(used, np.int64), np.random.default_rng(1))


@pytest.mark.parametrize("attribute", ["Mine", "mine", "Group.Inner"])
def test_a_class_or_an_instance_of_the_current_directory(module, attribute):
    name = f"{module(GOOD + 'mine = Mine()' + chr(10) + 'class Group: Inner = Mine')}:{attribute}"
    assert (policy(name).candidates, policy(name).learns) == ("novel", True)
    assert choose(name, [3.0, 2.0, 1.0], [5, 0, 0]) == 1
    assert choose(name, [], []) is None


def test_the_example_that_contributors_read(module):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    name = f"{module(text.partition('```python')[2].partition('```')[0])}:Newest"
    assert [choose(name, [3.0, 2.0, 1.0], used) for used in ([0, 0, 0], [2, 1, 0], [2, 2, 2])] == [0, 1, 0]
    assert choose(name, [], []) is None


def test_the_current_directory_comes_last(module, tmp_path):
    name = module(GOOD)
    policy(f"{name}:Mine")
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", ["has no Mine", "mine_"]),
        ("raise ValueError('of\\nmine')", ["cannot be imported (ValueError: of mine)"]),
        ("import nothing_of_that_name", ["ModuleNotFoundError", "nothing_of_that_name"]),
        ("import sys; sys.exit(3)", ["cannot be imported (SystemExit: 3)"]),
        ("def Mine(:", ["cannot be imported (SyntaxError"]),
        (GOOD.replace("candidates =", "wants ="), ["it has no candidates", "CONTRIBUTING.md"]),
        (GOOD.replace("learns =", "trains ="), ["it has no learns"]),
        (GOOD.replace("def choose", "def pick"), ["it has no choose", "choose(scores, used, rng)"]),
        (GOOD.replace('"novel"', '"nearest"'), ["its candidates are 'nearest'", "novel, uniform, none"]),
        (GOOD.replace("True", "'yes'"), ["its learns is 'yes'", "True or False"]),
        (GOOD.replace("True", "False"), ["no frame is novel without a model"]),
        (GOOD.replace("used, rng", "used"), ["its choose does not take three arguments"]),
        (GOOD + "    def __init__(self, k): pass", ["TypeError", "made without arguments"]),
    ],
)
def test_what_is_no_policy_is_refused(module, source, said):
    sentence = refused(f"{module(source)}:Mine")
    for fragment in said:
        assert fragment in sentence


def test_a_module_that_is_not_there():
    assert "install it, or start from the directory that it lies in" in refused("nowhere.to.be_found:Mine")


def test_a_policy_that_raises_is_named(module):
    name = f"{module(GOOD.replace('scores - used', 'scores - 1 / 0'))}:Mine"
    with pytest.raises(PolicyFailed, match=f"^--policy {name} raised ZeroDivisionError: division by zero;"):
        choose(name, [1.0], [0])


@pytest.mark.parametrize("row", ["-1", "2", "1.0", "True", "'0'", "[0]"])
def test_a_policy_that_chooses_what_is_no_row_is_named(module, row):
    name = f"{module(GOOD.replace('int(np.argmax(scores - used))', row))}:Mine"
    with pytest.raises(PolicyFailed, match=f"^--policy {name} chose .* of 2 candidates: return the row of one"):
        choose(name, [1.0, 1.0], [0, 0])


def test_rows_of_numpy_are_rows(module):
    name = f"{module(GOOD.replace('int(', '('))}:Mine"
    row = choose(name, [1.0, 2.0], [0, 0])
    assert (row, type(row)) == (1, int)
