"""What settings hold, derive and refuse."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from campaign.flags import core_type
from campaign.settings import GROUPS, Settings
from policies import POLICIES
from tasks.errors import BadInput
from tasks.messages import Dynamics

UUID4 = "7c4f1a52-0d8e-4b6e-9a55-3f2f6f0f8a11"


def refusal(**values: object) -> str:
    with pytest.raises(BadInput) as caught:
        Settings(**values)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_defaults_are_the_demonstration():
    settings = Settings()
    assert settings.system == "alanine-dipeptide"
    assert (settings.max_ns, settings.max_segments, settings.max_minutes) == (1.0, None, None)
    assert settings.min_model_versions == 3
    assert settings.control is True
    assert settings.retrains


@pytest.mark.parametrize("limit", [{"max_segments": 5}, {"max_ns": 0.1}, {"max_minutes": 2.0}])
def test_any_limit_ends_the_demonstration(limit):
    settings = Settings(**limit)
    given_limits = {
        name: value
        for name in ("max_segments", "max_ns", "max_minutes")
        if (value := getattr(settings, name)) is not None
    }
    assert given_limits == limit
    assert settings.min_model_versions == 0
    assert settings.control is False


def test_demonstration_asks_for_nothing_that_cannot_be():
    plain, random, frozen = Settings(policy="plain"), Settings(policy="random"), Settings(no_retrain=True)
    assert (plain.max_ns, plain.min_model_versions, plain.control) == (1.0, 0, False)
    assert (random.max_ns, random.min_model_versions, random.control) == (1.0, 0, True)
    assert (frozen.max_ns, frozen.min_model_versions, frozen.control) == (1.0, 0, True)
    assert [settings.retrains for settings in (plain, random, frozen)] == [False, False, False]


@pytest.mark.parametrize(
    ("candidates", "learns", "holds"),
    [("novel", True, (3, True)), ("uniform", False, (0, True)), ("none", False, (0, False))],
)
def test_a_policy_of_ones_own_is_asked_what_it_needs(tmp_path, monkeypatch, candidates, learns, holds):
    name = f"mine_{candidates}"
    (tmp_path / f"{name}.py").write_text(
        f"class Mine:\n candidates = '{candidates}'\n learns = {learns}\n def choose(self, scores, used, rng): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = Settings(policy=f"{name}:Mine")
    assert (settings.min_model_versions, settings.control) == holds
    assert settings.retrains is learns
    assert settings.as_config()["policy"] == f"{name}:Mine"
    refused = {"aae_weights": "/w"} if not learns else {"infer_every": 0}
    assert f"--policy {name}:Mine" in refusal(policy=f"{name}:Mine", **refused)


def test_a_policy_that_cannot_be_imported_is_refused():
    assert "module no.such cannot be imported" in refusal(policy="no.such:Policy")


def test_a_policy_named_after_a_measure_measures_by_it():
    measured = {name: Settings(policy=name).novelty for name in (*POLICIES, "rmsd:/t.pdb")}
    assert measured.pop("least-counts") == "least-counts"
    assert measured.pop("lof") == "lof"
    assert set(measured.values()) == {"sparsity"}


def test_the_path_of_a_target_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert Settings(policy="rmsd:a b.pdb").policy == f"rmsd:{tmp_path}/a b.pdb"
    assert Settings(policy="rmsd:~/a.pdb").policy == "rmsd:/home/someone/a.pdb"


def test_what_is_given_wins_over_the_demonstration():
    settings = Settings(min_model_versions=1, control=False)
    assert (settings.max_ns, settings.min_model_versions, settings.control) == (1.0, 1, False)


def test_none_counts_as_not_given():
    assert Settings(system=None, control=None, walkers=None, max_ns=None) == Settings()


@pytest.mark.parametrize("molecule", [{"sequence": "GYG"}, {"pdb": Path("/p.pdb")}, {"system": "chignolin"}])
def test_a_named_molecule_replaces_the_default_one(molecule):
    settings = Settings(**molecule)
    assert {name: getattr(settings, name) for name in molecule} == molecule
    assert sum(value is not None for value in (settings.system, settings.sequence, settings.pdb)) == 1


def test_settings_cannot_be_changed():
    settings = Settings()
    # A frozen model refuses with pydantic's own error: no user can cause it.
    with pytest.raises(ValueError, match="frozen"):
        settings.walkers = 7


def test_paths_become_absolute_and_nothing_is_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    settings = Settings(pdb="in/a.pdb", ps_file_dir="~/stores", simulate_ps_backend="file")
    assert settings.pdb == tmp_path / "in/a.pdb"
    assert settings.ps_file_dir == Path("/home/someone/stores")
    assert os.listdir(tmp_path) == []


def test_every_setting_is_documented():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.json_schema_extra["group"] in GROUPS, name


def test_settings_of_two_sites_that_share_no_redis():
    settings = Settings(
        simulate_ps_backend="redis",
        infer_ps_backend="file",
        train_ps_backend="file",
        redishost="mom1",
        redisport=6379,
        ps_threshold=500_000,
        ps_file_dir="/scratch/dump",
    )
    assert settings.ps_backends == {"simulate": "redis", "infer": "file", "train": "file"}


@pytest.mark.parametrize(
    "values",
    [
        {"queue": "redis", "redisport": 6380},
        {"queue": "redis", "redishost": "h", "redisport": 1},
        {"train_ps_backend": "redis", "redishost": "h", "redisport": 1},
        # Elsewhere than at `local`, a backend that is left open may become Redis.
        {"simulate_site": "local,cluster", "redishost": "h", "redisport": 1},
        {"ps_file_dir": "/d", "simulate_ps_backend": "redis"},
        {"simulate_ps_backend": "globus", "ps_globus_config": "/g.json"},
        {"policy": "plain", "infer_every": 0, "retrain_every": 7},
        {"policy": "plain", "control": False, "min_model_versions": 0},
        {"policy": "lof", "novelty": "lof"},
        {"policy": "rmsd:/t.pdb", "novelty": "least-counts", "aae_weights": "/w.safetensors"},
        {"no_retrain": True, "aae_weights": "/w.safetensors"},
        {"sequence": "AA", "cap": True},
        {"solvent": "explicit", "padding_nm": 0.8, "ionic_strength": 0.0, "pressure_bar": 0.0},
        {"gromacs": (Path("/t"), Path("/g")), "pressure_bar": 0.0},
        {"amber": (Path("/p"), Path("/c")), "solvent": "implicit"},
        {"start": (Path("/a.pdb"), Path("/b, c"))},
        {"forcefield": ("amber14-all.xml", "implicit/gbn2.xml"), "pdb": "/p.pdb"},
        {"features": "name CA", "store": "protein", "platform": "CUDA", "precision": "single"},
        {"frame_ps": 2.0, "segment_ps": 2.0},
        {"minimise": False, "equilibrate_ps": 0.016},
        {"solvent": "explicit", "equilibrate_ps": 0.0},
        {"frame_ps": 0.004, "segment_ps": 0.004, "timestep_fs": 4.0},
    ],
)
def test_compatible_settings_are_accepted(values):
    settings = Settings(**values)
    assert {name: str(getattr(settings, name)) for name in values} == {k: str(v) for k, v in values.items()}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"system": "chignolin", "sequence": "AAA"}, ["--system chignolin", "--sequence AAA", "only one"]),
        ({"sequence": "AAA", "pdb": "/x.pdb"}, ["--sequence AAA", "--pdb /x.pdb", "only one"]),
        ({"system": "chignolin", "pdb": "/x.pdb"}, ["--system chignolin", "--pdb /x.pdb"]),
        ({"amber": ("/p", "/c"), "pdb": "/x.pdb"}, ["--amber /p /c", "--pdb /x.pdb", "only one"]),
        ({"gromacs": ["/t", "/g"], "openmm_system": ("/s", "/x")}, ["--gromacs /t /g and --openmm-system /s /x"]),
        ({"openmm_system": ("/s", "/x"), "solvent": "explicit"}, ["--solvent explicit", "--openmm-system"]),
        ({"openmm_system": ("/s", "/x"), "pressure_bar": 1.0}, ["--pressure-bar 1", "--openmm-system"]),
        ({"openmm_system": ("/s", "/x"), "forcefield": ("a.xml",)}, ["--forcefield a.xml", "--openmm-system"]),
        ({"amber": ("/p", "/c"), "forcefield": ("a.xml", "b.xml")}, ["--forcefield a.xml b.xml", "--amber"]),
        ({"gromacs": ("/t", "/g"), "padding_nm": 2.0}, ["--padding-nm 2", "--gromacs"]),
        ({"padding_nm": 2.0}, ["--padding-nm 2", "--solvent explicit"]),
        ({"solvent": "vacuum", "ionic_strength": 0.0}, ["--ionic-strength 0", "--solvent explicit"]),
        ({"pressure_bar": 0.0}, ["--pressure-bar 0", "--solvent explicit"]),
        ({"amber": ("/p", "/c"), "solvent": "implicit", "pressure_bar": 1.0}, ["--pressure-bar 1", "--solvent"]),
        ({"equilibrate_ps": 0.01}, ["--equilibrate-ps 0.01", "--timestep-fs 4", "at least --equilibrate-ps 0.016"]),
        ({"equilibrate_ps": 1e6, "timestep_fs": 0.01}, ["--equilibrate-ps 1e+06", "--timestep-fs 0.01"]),
        ({"platform": "CPU", "precision": "double"}, ["--precision double", "--platform CPU"]),
        ({"gather_every": 5}, ["--gather-every 5", "--scratch DIR"]),
        ({"stage_env": Path("/e.tar")}, ["--stage-env /e.tar", "--scratch DIR"]),
        ({"platform": "CPU", "segments_per_device": 2}, ["--segments-per-device 2", "--platform CPU"]),
        ({"cap": True}, ["--cap", "--sequence SEQ"]),
        ({"system": "chignolin", "cap": True}, ["--cap", "--sequence SEQ"]),
        ({"policy": "plain", "aae_weights": "/w"}, ["--aae-weights /w", "--policy plain"]),
        ({"policy": "random", "aae_weights": "/w"}, ["--aae-weights /w", "--policy random"]),
        ({"embedding": "pca", "aae_weights": "/w"}, ["--aae-weights /w", "--embedding pca"]),
        ({"no_retrain": True, "min_model_versions": 2}, ["--min-model-versions 2", "--no-retrain"]),
        ({"policy": "plain", "min_model_versions": 2}, ["--min-model-versions 2", "--policy plain"]),
        ({"policy": "random", "min_model_versions": 2}, ["--min-model-versions 2", "--policy random"]),
        ({"policy": "plain", "control": True}, ["--control", "--policy plain", "--no-control"]),
        ({"infer_every": 0}, ["--infer-every 0", "--policy novelty", "--policy plain"]),
        ({"infer_every": 0, "policy": "random"}, ["--infer-every 0", "--policy random"]),
        ({"infer_every": 0, "policy": "rmsd:/t.pdb"}, ["--infer-every 0", "--policy rmsd:/t.pdb"]),
        ({"policy": "lof", "novelty": "sparsity"}, ["--policy lof", "--novelty sparsity", "--policy novelty"]),
        ({"policy": "least-counts", "novelty": "lof"}, ["--policy least-counts", "--novelty lof"]),
        ({"neighbours": 50, "max_reference": 50}, ["--neighbours 50", "--max-reference 50"]),
        ({"no_proxystore": True, "infer_ps_backend": "file"}, ["--no-proxystore", "--infer-ps-backend file"]),
        ({"no_proxystore": True, "train_ps_backend": "none"}, ["--no-proxystore", "--train-ps-backend none"]),
        ({"no_proxystore": True, "ps_file_dir": "/d"}, ["--no-proxystore", "--ps-file-dir /d"]),
        ({"no_proxystore": True, "ps_globus_config": "/g"}, ["--no-proxystore", "--ps-globus-config /g"]),
        ({"infer_ps_backend": "globus"}, ["--infer-ps-backend globus", "--ps-globus-config FILE"]),
        ({"ps_globus_config": "/g"}, ["--ps-globus-config /g", "globus"]),
        ({"train_ps_backend": "endpoint"}, ["--train-ps-backend endpoint", "--ps-endpoints UUID,UUID", "UDP"]),
        ({"ps_endpoints": (UUID4,)}, [f"--ps-endpoints {UUID4}", "--simulate-ps-backend endpoint"]),
        ({"no_proxystore": True, "ps_endpoints": (UUID4,)}, ["--no-proxystore", f"--ps-endpoints {UUID4}"]),
        (
            {
                "ps_file_dir": "/d",
                "simulate_ps_backend": "redis",
                "infer_ps_backend": "none",
                "train_ps_backend": "redis",
            },
            ["--ps-file-dir /d", "--infer-ps-backend none", "backend file"],
        ),
        ({"queue": "redis", "redishost": "h"}, ["--redishost h", "--redisport"]),
        ({"redishost": "h", "redisport": 1}, ["--redishost h", "--queue redis"]),
        ({"redisport": 6379}, ["--redisport 6379", "--queue redis"]),
        ({"redisport": 6379, "simulate_ps_backend": "file"}, ["--redisport 6379", "--queue redis"]),
        ({"redisport": 6379, "no_proxystore": True, "ml_site": "far"}, ["--redisport 6379", "--queue redis"]),
        ({"frame_ps": 0.3}, ["--frame-ps 0.3", "--segment-ps 2"]),
        ({"frame_ps": 3.0}, ["--frame-ps 3", "--segment-ps 2"]),
        ({"frame_ps": 0.001}, ["--frame-ps 0.001", "--timestep-fs 4", "more frames than steps"]),
        ({"segment_ps": 1e6, "timestep_fs": 0.01}, ["--segment-ps 1e+06", "--timestep-fs 0.01"]),
        ({"min_segment_seconds": 60.0, "task_timeout": 60.0}, ["--min-segment-seconds 60", "--task-timeout 60"]),
        (
            {"ml_endpoint": "u", "no_proxystore": True, "ml_site": "ssh", "ssh_host": "gpubox"},
            ["--ml-endpoint u takes the place of --ml-site ssh"],
        ),
        (
            {"simulate_endpoint": "u", "infer_ps_backend": "file"},
            ["what an endpoint reaches only you know", "--simulate-ps-backend, --train-ps-backend"],
        ),
        ({"heartbeat_s": 5.0, "heartbeat_threshold_s": 5.0}, ["--heartbeat-threshold-s 5", "--heartbeat-s 5"]),
    ],
)
def test_contradictions_are_refused(values, named):
    sentence = refusal(**values)
    for fragment in named:
        assert fragment in sentence


def test_endpoints_are_written_as_proxystore_does():
    written = Settings(simulate_ps_backend="endpoint", ps_endpoints=["{" + UUID4.upper() + "}"])
    assert written.ps_endpoints == (UUID4,)
    assert Settings(**written.as_config()) == written


@pytest.mark.parametrize("word", ["mine", UUID4[:-1], "11111111-1111-1111-8111-111111111111"])
def test_what_names_no_endpoint_is_refused(word):
    sentence = refusal(simulate_ps_backend="endpoint", ps_endpoints=(UUID4, word))
    assert sentence.startswith(f"--ps-endpoints {word} is no UUID of an endpoint: give those that `proxy")


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("walkers", 0, "a whole number of at least 1 (walkers)"),
        ("walkers", True, "a whole number of at least 1 (walkers)"),
        ("walkers", 2.5, "a whole number of at least 1 (walkers)"),
        ("walkers", "4", "a whole number of at least 1 (walkers)"),
        ("simulate_workers", -1, "of at least 1 (workers)"),
        ("temperature", 0.0, "a finite number above 0 (K)"),
        ("temperature", float("nan"), "a finite number above 0 (K)"),
        ("temperature", float("inf"), "a finite number above 0 (K)"),
        ("temperature", True, "a finite number above 0 (K)"),
        ("timestep_fs", 0.004, "of at least 0.01 and at most 10 (fs)"),
        ("latent", 0, "of at least 1 (dimensions)"),
        ("neighbours", 0, "of at least 1 (frames)"),
        ("retrain_every", 0, "of at least 1 (segments)"),
        ("redisport", 65536, "at most 65535"),
        ("grace_s", -1.0, "of at least 0 and at most 10000000 (s)"),
        ("lockstep", "yes", "true or false"),
        ("system", "lysozyme", "alanine-dipeptide, chignolin or double-well"),
        ("policy", "greedy", "least-counts, lof, weighted-ensemble, rmsd:FILE or MODULE:POLICY"),
        ("policy", "rmsd:", "least-counts, lof, weighted-ensemble, rmsd:FILE or MODULE:POLICY"),
        ("policy", 5, "least-counts, lof, weighted-ensemble, rmsd:FILE or MODULE:POLICY"),
        ("policy", ["lof"], "least-counts, lof, weighted-ensemble, rmsd:FILE or MODULE:POLICY"),
        ("sequence", 5, "text (SEQ)"),
        ("ionic_strength", -1.0, "of at least 0 and at most 5 (mol/l)"),
        ("solvent", "oil", "implicit, explicit or vacuum"),
        ("precision", "half", "single, mixed or double"),
        ("amber", "p", "two paths (PRMTOP COORDS)"),
        ("gromacs", 3, "two paths (TOP GRO)"),
        ("features", "", "text (SELECTION)"),
        ("start", "", "paths (FILE)"),
        ("pdb", "", "a path (FILE)"),
        ("pdb", "a\0b", "a path (FILE)"),
        ("pdb", 3, "a path (FILE)"),
    ],
)
def test_impossible_values_are_refused(name, value, remedy):
    sentence = refusal(**{name: value})
    shown = f"{value:g}" if type(value) is float else repr(value) if value in ("", "a\0b") else str(value)
    assert sentence.startswith(f"--{name.replace('_', '-')} {shown} cannot be used: give ")
    assert sentence.endswith(remedy)


NUMBERS = {name: core_type(f) for name, f in Settings.model_fields.items() if core_type(f) in (int, float)}
MAY_BE_ZERO = {
    "equilibrate_ps",
    "ionic_strength",
    "pressure_bar",
    "min_segment_seconds",
    "infer_every",
    "ps_threshold",
    "min_model_versions",
    "grace_s",
    "min_free_mb",
    "max_pause_minutes",
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_have_a_lower_bound(name):
    flag = f"--{name.replace('_', '-')}"
    assert f"{flag} -1 cannot be used" in refusal(**{name: -1})
    if name in MAY_BE_ZERO:
        # The plain policy, because only it can do without inference; explicit water has more to say.
        assert getattr(Settings(policy="plain", solvent="explicit", **{name: 0}), name) == 0
    else:
        assert f"{flag} 0 cannot be used" in refusal(**{name: 0})


@pytest.mark.parametrize("name", [name for name, kind in NUMBERS.items() if kind is float])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(name, value):
    assert f"--{name.replace('_', '-')} {value} cannot be used" in refusal(**{name: value})


@pytest.mark.parametrize("name", ["sequence", "simulate_site", "ml_site", "redishost"])
def test_names_are_not_empty(name):
    assert f"--{name.replace('_', '-')} '' cannot be used" in refusal(**{name: ""})


@pytest.mark.parametrize("value", [("/p",), ("/p", "/c", "/d"), ("/p", ""), ("/p", 3), ["/p", None]])
def test_pairs_of_files_are_two_paths(value):
    assert "cannot be used: give two paths (PRMTOP COORDS)" in refusal(amber=value)


@pytest.mark.parametrize("value", [(), ("",), ("a.xml", ""), "a.xml"])
def test_force_fields_are_words(value):
    assert "cannot be used: give words with commas between them (XML[,XML])" in refusal(forcefield=value)


def test_pairs_of_files_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Settings(amber=["a.prmtop", "/b.rst7"]).amber == (tmp_path / "a.prmtop", Path("/b.rst7"))


def test_explicit_water_says_what_it_is():
    water = Settings(solvent="explicit", padding_nm=2.0)
    assert (water.padding_nm, water.ionic_strength, water.pressure_bar) == (2.0, 0.15, 1.0)
    files = Settings(amber=("/p", "/c"), solvent="explicit")
    assert (files.padding_nm, files.ionic_strength, files.pressure_bar) == (None, None, 1.0)
    assert Settings().pressure_bar is None


def test_water_that_is_added_here_is_equilibrated():
    assert Settings(solvent="explicit").equilibrate_ps == 20.0
    assert Settings(solvent="explicit", equilibrate_ps=0.0).equilibrate_ps == 0.0
    assert Settings(amber=("/p", "/c"), solvent="explicit").equilibrate_ps == 0.0
    assert Settings().equilibrate_ps == 0.0


def test_unknown_setting_is_refused_with_the_closest():
    assert "walkers comes closest" in refusal(wakers=3)


def test_long_values_are_shortened():
    sentence = refusal(system="x" * 1000)
    assert len(sentence) < 150
    assert "..." in sentence


def test_dynamics_of_the_defaults_are_rounded_to_whole_steps():
    dynamics = Settings().dynamics("Reference")
    assert dynamics == Dynamics(
        n_steps=496,
        frame_steps=62,
        timestep_ps=0.004,
        temperature_K=300.0,
        friction_per_ps=1.0,
        platform="Reference",
        min_seconds=0.0,
    )
    assert dynamics.n_frames == 8
    assert dynamics.segment_ps == pytest.approx(1.984)


@given(
    frame_steps=st.integers(1, 5000),
    n_frames=st.integers(1, 400),
    timestep_fs=st.floats(0.1, 5.0),
    off_by=st.floats(-0.49, 0.49),
)
def test_dynamics_keep_within_half_a_step_a_frame(frame_steps, n_frames, timestep_fs, off_by):
    frame_ps = max(1.0, frame_steps + off_by) * timestep_fs / 1000
    dynamics = Settings(frame_ps=frame_ps, segment_ps=frame_ps * n_frames, timestep_fs=timestep_fs).dynamics("CPU")
    assert (dynamics.n_frames, dynamics.frame_steps) == (n_frames, frame_steps)
    assert abs(dynamics.segment_ps - frame_ps * n_frames) <= (n_frames * timestep_fs / 1000) * 0.51
    assert dynamics.n_steps % dynamics.frame_steps == 0


@given(segment_ps=st.floats(0.01, 1000), frame_ps=st.floats(0.01, 1000))
def test_remedy_for_a_frame_that_does_not_divide_works(segment_ps, frame_ps):
    try:
        Settings(segment_ps=segment_ps, frame_ps=frame_ps)
    except BadInput as error:
        words = str(error).split()
        remedy = float(words[len(words) - 1 - words[::-1].index("--frame-ps") + 1])
        # The message shows the segment with six digits, so the user may go on with that.
        assert Settings(segment_ps=segment_ps, frame_ps=remedy).frame_ps == remedy


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "walkers": st.integers(1, 10**6),
            "seed": st.integers(1, 2**31 - 1),
            "temperature": st.floats(1e-300, 1e300),
            "friction": st.floats(1e-300, 1e300),
            "policy": st.sampled_from([*POLICIES, "rmsd:native.pdb"]),
            "max_ns": st.floats(1e-300, 1e300),
            "max_segments": st.integers(1, 10**9),
            "no_retrain": st.booleans(),
            "lockstep": st.booleans(),
            "simulate_site": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            "aae_weights": st.none(),
            "solvent": st.sampled_from(["explicit", "vacuum"]),
            "forcefield": st.lists(st.sampled_from(["a.xml", "dir/b.xml"]), min_size=1, max_size=3).map(tuple),
            "features": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            "pdb": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
        },
    )
)
def test_config_gives_equal_settings_again(values):
    # Without a model there is nothing to bin by.
    assume(not (values.get("policy") == "weighted-ensemble" and values.get("no_retrain")))
    settings = Settings(**values)
    written = json.loads(json.dumps(settings.as_config()))
    assert written.keys() == Settings.model_fields.keys()
    assert Settings(**written) == settings


def test_a_double_well_has_a_step_and_a_friction_of_its_own():
    well = Settings(system="double-well")
    assert (well.timestep_fs, well.friction) == (10.0, 50.0)
    assert (Settings(**well.as_config()).friction, Settings(system="double-well", friction=5.0).friction) == (
        50.0,
        5.0,
    )
    assert (Settings().timestep_fs, Settings().friction) == (4.0, 1.0)


def test_a_bundle_has_at_most_as_many_segments_as_there_are_walkers() -> None:
    with pytest.raises(BadInput, match="--bundle 8 takes more walkers than --walkers 4"):
        Settings(bundle=8)
    # How many an ensemble has, its bins decide.
    assert Settings(bundle=8, policy="weighted-ensemble", max_iterations=1).bundle == 8
