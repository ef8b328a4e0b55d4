"""Hooks in the settings: what is taken, and what is refused before anything starts."""

import json

import pytest

from campaign.cli import parse
from campaign.control import control_settings
from campaign.flags import flag
from campaign.resuming import Standing
from campaign.settings import Settings
from tasks.errors import BadInput

CHAINS = ("before_segment", "after_segment", "after_campaign")

SOURCE = """
number = 3
def shape(run, segment): return {}
def starred(*all): return {}
def asked(segment): return True
class Group:
    def of(run, segment): return {}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module of the user's, in the current directory."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def refusal(**values: object) -> str:
    with pytest.raises(BadInput) as caught:
        Settings(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("attribute", ["shape", "starred", "Group.of"])
def test_functions(mine, chain, attribute):
    settings = Settings(**{chain: (f"{mine}:{attribute}",)})
    assert settings.has_hooks
    assert not Settings().has_hooks


def test_a_chain_is_a_repeated_flag_whose_commas_stay(mine, tmp_path):
    command = "python -c 'print({1, 2}, 3)'"
    settings = parse(["--after-segment", f"{mine}:shape", "--after-segment", command]).settings
    assert settings.after_segment == (f"{mine}:shape", command)
    (tmp_path / "params.json").write_text(json.dumps(settings.as_config()))
    assert parse(["--config", str(tmp_path / "params.json")]).settings == settings
    (tmp_path / "one.yaml").write_text(f'after-segment: "{command}"')
    assert parse(["--config", str(tmp_path / "one.yaml")]).settings.after_segment == (command,)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("{}:shade", ["has no shade", "look for a slip"]),
        ("{}:number", ["it is int and no function", "give a function f(run, segment)"]),
        ("{}:asked", ["cannot be called so", "give a function f(run, segment)"]),
        ("no.such.module:f", ["module no.such.module cannot be imported", "start from the directory"]),
        ("no-such-program --now", ["there is no program no-such-program", "module:function"]),
        ("sh -c 'echo", ["cannot be parted into words (No closing quotation)"]),
        ("  ", ["it is empty"]),
    ],
)
def test_what_cannot_be_run_is_refused(mine, chain, hook, said):
    sentence = refusal(**{chain: ("true", hook.format(mine))})
    assert sentence.startswith(f"{flag(chain)} ")
    for fragment in ["cannot be used, for ", *said]:
        assert fragment in sentence


@pytest.mark.parametrize("value", [(), "true", (3,)])
def test_what_is_no_chain_is_refused(value):
    assert "cannot be used: give texts (HOOK)" in refusal(after_segment=value)


def test_what_decides_whether_to_go_on_is_a_function(mine):
    assert Settings(continue_until=f"{mine}:asked").has_hooks
    assert "it names no function" in refusal(continue_until="true")
    assert "give a function f(segment)" in refusal(continue_until=f"{mine}:shape")
    assert "has no asks" in refusal(continue_until=f"{mine}:asks")


def test_a_hook_has_less_time_than_its_task():
    sentence = refusal(after_segment=("true",), task_timeout=600.0)
    assert sentence.startswith("--hook-timeout 600 leaves a hook to run into --task-timeout 600")
    Settings(task_timeout=600.0)


def test_another_end_is_another_campaign(mine):
    one = Settings(continue_until=f"{mine}:asked", max_segments=5)
    assert one.ends == (f"{mine}:asked", 5, None)


def test_the_control_runs_no_hooks(mine):
    given = dict.fromkeys(CHAINS, ("true",)) | {"continue_until": f"{mine}:asked"}
    assert not control_settings(Settings(**given), 10).has_hooks


def test_a_campaign_that_reached_its_end_is_over_until_it_has_others(mine):
    settings = Settings(continue_until=f"{mine}:asked", max_segments=50)
    timed = Settings(continue_until=f"{mine}:asked", max_minutes=5.0)

    def is_over(of: Settings, then: Settings, status: str = "complete", segments: int = 7) -> bool:
        until = json.loads(json.dumps(of.ends))
        return Standing(status, "id", {}, (), segments, 0.0, 0, True, frozenset(), until).is_over(then, {})

    assert is_over(settings, settings)
    assert is_over(timed, timed)
    assert not is_over(settings, settings, status="died")
    assert not is_over(settings, Settings(continue_until=f"{mine}:asked", max_segments=60))
    assert is_over(settings, Settings(continue_until=f"{mine}:asked", max_segments=6))
    assert not is_over(timed, Settings(continue_until=f"{mine}:starred", max_minutes=5.0))
