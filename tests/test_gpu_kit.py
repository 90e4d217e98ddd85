"""The GPU kit and the script that records a session: what is pure logic in them. The rest: `machines/bare.py`."""

import argparse
import hashlib
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from qlora_lab.models.downloads import VerificationError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True, scope="module")
def scripts():
    """`benchmarks/` holds scripts: importable here only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture
def kit():
    import gpu_kit

    return gpu_kit


@pytest.fixture
def recorder():
    import record_gpu

    return record_gpu


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- the kit


@given(content=st.binary(min_size=0, max_size=50), parts=st.integers(1, 7))
def test_what_is_split_is_joined_to_the_same(tmp_path_factory, content, parts):
    import gpu_kit

    place = tmp_path_factory.mktemp("model")
    file, joined = place / "a.gguf", place / "joined" / "a.gguf"
    file.write_bytes(content)
    folders = [place / f"call-{n}" for n in range(parts)]
    for folder in (*folders, place / "all", joined.parent):
        folder.mkdir()
    made = gpu_kit.split(file, folders)
    each = -(-len(content) // parts)
    assert [p.parent for p in made] == folders and max(p.stat().st_size for p in made) == each
    for part in reversed(made):  # they may come in any order
        part.rename(place / "all" / part.name)
    gpu_kit.join(place / "all", joined, len(content), sha256(content))
    assert joined.read_bytes() == content


def test_a_part_that_is_missing_or_wrong_is_named_and_nothing_is_left(kit, tmp_path):
    file, parts, joined = tmp_path / "a.gguf", tmp_path / "parts", tmp_path / "joined" / "a.gguf"
    content = b"0123456789"
    file.write_bytes(content)
    parts.mkdir()
    joined.parent.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no part of a\.gguf"):
        kit.join(parts, joined, 10, sha256(content))
    _, second = kit.split(file, [parts, parts])
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.gguf\.2-of-2 is not in"):
        kit.join(parts, joined, 10, sha256(content))
    second.write_bytes(b"56780")
    with pytest.raises(VerificationError, match="SHA-256"):
        kit.join(parts, joined, 10, sha256(content))
    second.write_bytes(b"567")
    with pytest.raises(VerificationError, match="8 bytes, expected 10"):
        kit.join(parts, joined, 10, sha256(content))
    assert list(joined.parent.iterdir()) == []


def test_a_folder_over_the_limit_is_refused_with_what_is_large_in_it(kit, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "large.whl").write_bytes(bytes(2**20))
    (tmp_path / "call.sh").write_bytes(bytes(100))
    assert kit.check_size(tmp_path, 2**20 + 100) == 2**20 + 100
    with pytest.raises(ValueError, match=r"large\.whl \(1\.0 MiB\)"):
        kit.check_size(tmp_path, 2**20 + 99)


def test_each_call_has_a_script_all_wheels_and_its_part_of_the_model(kit, tmp_path):
    wheels, model = tmp_path / "wheels", tmp_path / "m.gguf"
    wheels.mkdir()
    (wheels / "light-1.0-py3-none-any.whl").write_bytes(b"wheel")
    model.write_bytes(b"12345")
    sizes = kit.write_kit(tmp_path / "kit", model, wheels)
    for number, name in enumerate(sizes, 1):
        folder = tmp_path / "kit" / name
        found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        assert found == ["call.sh", f"model/m.gguf.{number}-of-2", "wheels/light-1.0-py3-none-any.whl"]
        subprocess.run(["bash", "-n", folder / "call.sh"], check=True)
        assert " ".join(kit.CALLS[name][0]) in (folder / "call.sh").read_text()


def test_stages_of_the_calls_are_stages_and_together_all_of_them(kit, recorder):
    called = [stage for stages, _ in kit.CALLS.values() for stage in stages]
    assert set(called) == set(recorder.STAGES) and called[0] == "smoke"


def test_only_the_one_library_of_a_wheel_is_carried(kit, tmp_path):
    wheel = tmp_path / "bitsandbytes-1.0-py3-none-manylinux_2_24_x86_64.whl"
    info = "bitsandbytes-1.0.dist-info"
    content = {
        "bitsandbytes/__init__.py": b"VERSION = 1",
        "bitsandbytes/libbitsandbytes_cuda130.so": b"kept",
        "bitsandbytes/libbitsandbytes_cuda128.so": b"dropped",
        "bitsandbytes/libbitsandbytes_cpu.so": b"dropped",
        f"{info}/METADATA": b"Name: bitsandbytes",
    }
    record = "".join(f"{name},sha256=x,1\n" for name in content)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, value in (content | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(name, value)
    kit.cut_down(wheel)
    with zipfile.ZipFile(wheel) as archive:
        kept = [name for name in content if content[name] != b"dropped"]
        assert archive.namelist() == [*kept, f"{info}/RECORD"]
        assert all(archive.read(name) == content[name] for name in kept)
        assert archive.read(f"{info}/RECORD").decode() == "".join(f"{name},sha256=x,1\n" for name in kept)
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]
    with pytest.raises(ValueError, match="has no libbitsandbytes_cuda999"):
        kit.cut_down(wheel, "libbitsandbytes_cuda999.so")


def test_what_is_missing_there_is_followed_to_its_own_needs(kit):
    carried = kit.missing_requirements([Requirement("gguf>=0.1"), Requirement("torch"), Requirement("platformdirs")])
    assert [line.split("==")[0] for line in carried] == ["gguf", "platformdirs"]
    more = kit.missing_requirements([Requirement("gguf")], there=kit.THERE - {"pyyaml"})
    assert [line.split("==")[0] for line in more] == ["gguf", "pyyaml"]


def test_a_wheel_for_this_machine_alone_is_refused(kit):
    kit.check_wheel(Path("gguf-1.0-py3-none-any.whl"))
    kit.check_wheel(Path("bitsandbytes-0.50.2-py3-none-manylinux_2_24_x86_64.whl"))
    with pytest.raises(ValueError, match="pyyaml"):
        kit.check_wheel(Path("pyyaml-6.0-cp311-cp311-manylinux_2_28_x86_64.whl"))


# -- the session

HANG = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '54321'])"


def test_a_stage_ends_with_all_that_it_started(recorder, tmp_path):
    log = tmp_path / "log.txt"
    assert recorder.run_limited([sys.executable, "-c", "print('said')"], 60, log) == "done"
    assert recorder.run_limited([sys.executable, "-c", "raise SystemExit(3)"], 60, log) == "failed"
    assert recorder.run_limited([sys.executable, "-c", HANG], 2, log) == "cut off after 2 s"
    assert log.read_text().split() == ["said", "begun"]
    deadline = time.monotonic() + 30
    while sleeping := [p for p in Path("/proc").glob("[0-9]*/cmdline") if read(p) == b"sleep\x0054321\0"]:
        assert time.monotonic() < deadline, f"{sleeping} goes on"
        time.sleep(0.05)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def session(recorder, tmp_path, monkeypatch, results, names, **changed):
    """A session whose stages give `results`, or the outcome in it, without running anything; the record."""
    ran = []

    def run_stage(name, limit, out, options):
        ran.append((name, limit))
        return {"outcome": "done", "stage seconds": 1.0} | results.get(name, {})

    monkeypatch.setattr(recorder, "run_stage", run_stage)
    options = {"seconds": 1000, "patience": 1, "keep": None, "again": False, "stop_after_smoke": False, "tiny": False}
    args = argparse.Namespace(out=tmp_path, **(options | changed))
    record = recorder.run_session(names, args, [])
    return record["stages"], ran


def test_the_model_is_looked_for_once_and_only_by_stages_that_need_it(recorder, tmp_path, monkeypatch):
    _, ran = session(recorder, tmp_path, monkeypatch, {}, ["smoke", "kernels"])
    assert [name for name, _ in ran] == ["smoke", "kernels"]
    (tmp_path / "gpu.json").unlink()
    _, ran = session(recorder, tmp_path, monkeypatch, {}, ["smoke", "step", "memory", "model"])
    assert [name for name, _ in ran] == ["smoke", "model", "step", "memory"]


def test_without_the_model_the_others_go_on(recorder, tmp_path, monkeypatch):
    results = {"model": {"outcome": "failed", "last words": "part 2 is not there"}}
    found, ran = session(recorder, tmp_path, monkeypatch, results, ["step", "kernels", "memory"])
    assert [name for name, _ in ran] == ["model", "kernels"]
    assert found["kernels"]["outcome"] == "done"
    for name in ("step", "memory"):
        assert found[name] == {
            "outcome": "not begun: the base model is not there",
            "because": "part 2 is not there",
        }


def test_each_stage_has_its_limit_and_no_more_than_is_left(recorder, tmp_path, monkeypatch):
    _, ran = session(recorder, tmp_path, monkeypatch, {}, ["smoke", "giant"], seconds=100)
    assert ran[0] == ("smoke", recorder.STAGES["smoke"].limit) and 95 < ran[1][1] <= 100
    (tmp_path / "gpu.json").unlink()
    found, ran = session(recorder, tmp_path, monkeypatch, {}, ["smoke"], seconds=recorder.LEAST - 1)
    assert found["smoke"]["outcome"] == "not begun: no time left" and not ran


@pytest.mark.parametrize("changed", [{"outcome": "cut off after 90 s"}, {"failed": ["float32"]}])
def test_a_smoke_test_that_fails_can_end_the_session(recorder, tmp_path, monkeypatch, changed):
    results = {"smoke": {"failed": []} | changed}
    _, ran = session(recorder, tmp_path, monkeypatch, results, ["smoke", "giant"], stop_after_smoke=True)
    assert [name for name, _ in ran] == ["smoke"]
    _, ran = session(recorder, tmp_path, monkeypatch, results, ["smoke", "giant"], again=True)
    assert [name for name, _ in ran] == ["smoke", "giant"]


def test_a_second_call_goes_on_with_the_first_ones_record(recorder, tmp_path, monkeypatch):
    keep, first, second = (tmp_path / name for name in ("keep", "first", "second"))
    for folder in (keep, first, second):
        folder.mkdir()
    results = {"giant": {"outcome": "failed"}, "smoke": {"facts": {"device": "a card"}}}
    session(recorder, first, monkeypatch, results, ["smoke", "giant"], keep=keep)
    found, ran = session(recorder, second, monkeypatch, {}, ["smoke", "giant", "kernels"], keep=keep)
    assert [name for name, _ in ran] == ["giant", "kernels"]  # what failed is tried again
    assert {name: entry["outcome"] for name, entry in found.items()} == dict.fromkeys(found, "done")
    written = json.loads((second / "gpu.json").read_text())
    assert written["device"] == "a card" and set(written["stages"]) == {"smoke", "giant", "kernels"}


def test_a_part_does_not_replace_what_is_whole(recorder):
    whole, part = {"outcome": "done", "n": 1}, {"outcome": "cut off after 9 s", "n": 2}
    none, newer = {"outcome": "not begun: no time left"}, {"outcome": "done", "n": 3}
    records = [{"stages": {"a": entry}, "device": "x"} for entry in (none, part, whole, part, none)]
    assert recorder.join_records(records) == {"stages": {"a": whole}, "device": "x"}
    assert recorder.join_records([*records, {"stages": {"a": newer}}])["stages"]["a"] == newer
    assert recorder.join_records([{"stages": {"a": part}}, {"stages": {"a": none}}])["stages"]["a"] == part


def test_a_record_is_called_after_its_device(recorder):
    assert recorder.recorded_path({"device": "NVIDIA H200"}).name == "gpu-nvidia-h200.json"


def test_what_a_stage_said_last_is_its_own(recorder, tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("an earlier stage\n")
    start = log.stat().st_size
    with open(log, "a") as file:
        file.write("one\n\ntwo\nthree\n")
    assert recorder.last_words(log, start, count=2) == "two\nthree"


# -- the CUDA tests, run where their results are wanted one by one


def test_outcomes_of_tests_are_saved_as_they_come(recorder, tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2, 'told'\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n"
        "@pytest.fixture\ndef broken(): raise OSError('no disk')\n"
        "def test_with_it(broken): pass\n"
    )
    (tmp_path / "test_more.py").write_text("import a_module_that_is_not_there\n")
    program = (
        f"import sys, json, pytest; sys.path.insert(0, {str(BENCHMARKS)!r}); import record_gpu\n"
        "saved = []\n"
        "outcomes = record_gpu.Outcomes(lambda value: saved.append(json.dumps(value)))\n"
        "pytest.main(['-q', '-p', 'no:cacheprovider', '--continue-on-collection-errors', '.'], plugins=[outcomes])\n"
        "print(json.dumps([outcomes.found(), [json.loads(s) for s in saved]]))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    found, saved = json.loads(done.stdout.splitlines()[-1])
    assert found["counts"] == {"not collected": 1, "passed": 1, "failed": 1, "skipped": 1, "error": 1}
    assert found["failed"]["test_some.py::test_wrong"] == "AssertionError: told"
    assert "no disk" in found["failed"]["test_some.py::test_with_it"]
    assert "a_module_that_is_not_there" in found["failed"]["test_more.py"]
    assert {"counts": {"not collected": 1}, "at": "test_some.py::test_right"}.items() <= saved[1].items()


# -- the smoke test


def smoke(monkeypatch, **checks):
    """Its result, where these checks give something else than all is well."""
    import smoke_test

    names = ("what_is_here", "quantization", "layer", "paged_steps", "model_step", "reference")
    for name in names:
        monkeypatch.setattr(smoke_test, name, checks.get(name, lambda *arguments, **options: (True, "fine")))
    saved = []
    return smoke_test.run("cpu", True, saved.append), saved


def broken(*arguments, **options):
    raise RuntimeError("broken\nand more")


def test_a_smoke_test_has_ten_lines_and_names_what_it_is_at(monkeypatch):
    found, saved = smoke(monkeypatch)
    assert len(found["lines"]) == 10 and not found["wrong"] and not found["failed"]
    assert [value["at"] for value in saved][:2] == ["what is here", "float32"] and len(saved) == 10


def test_what_fails_in_a_smoke_test_takes_nothing_from_the_others(monkeypatch):
    found, _ = smoke(monkeypatch, layer=lambda *_: (False, "off"), paged_steps=lambda *_: (False, "off"))
    assert found["wrong"] == ["QLoRA layer", "PagedAdamW", "PagedAdamW, state elsewhere"]
    assert found["failed"] == ["QLoRA layer"] and found["lines"][-1].startswith("ok")
    found, _ = smoke(monkeypatch, what_is_here=broken, reference=broken)
    assert found["wrong"] == ["what is here", "bitsandbytes"] and found["failed"] == ["what is here"]
    assert found["lines"][0].startswith("FAILED what is here: RuntimeError: broken (")


# -- the races' verdicts


def test_codes_that_differ_are_counted_one_by_one(scripts):
    import race
    import torch

    one = torch.tensor([0x12, 0x34, 0x56], dtype=torch.uint8)
    other = torch.tensor([[0x12], [0x35], [0x67]], dtype=torch.uint8)
    assert race.differing_codes(one, other) == 3 and race.differing_codes(one, one) == 0


def test_a_wrong_result_ends_a_race_on_a_cpu_and_is_told_on_a_gpu(monkeypatch):
    import race
    import torch

    monkeypatch.setattr(race, "DEVICE", torch.device("cpu"))
    assert race.accepted(True, {"n": 0}) == {"n": 0, "accepted": True}
    with pytest.raises(AssertionError):
        race.accepted(False, {"n": 9})
    monkeypatch.setattr(race, "DEVICE", torch.device("cuda"))
    assert race.accepted(False, {"n": 9}) == {"n": 9, "accepted": False}


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_race_waits_for_the_gpu_that_it_runs_on(monkeypatch, kind):
    import race
    import torch

    waited = []
    monkeypatch.setattr(race, "DEVICE", torch.device(kind))
    monkeypatch.setattr(torch.get_device_module(kind), "synchronize", lambda: waited.append(kind))
    assert race.interleaved({"a": lambda: waited.append("a")}, rounds=1, warmup=0)["a"]["median_ms"] >= 0
    assert waited == [kind, "a", kind]


def test_the_long_sequence_is_the_shortest_beyond_the_cap(monkeypatch):
    import types

    import giant_step

    from qlora_lab.memory import TrainingPlan

    asked = []

    def simulate_training(device, config, sequence_length, **plan):
        asked.append(sequence_length)
        return types.SimpleNamespace(peak=10**9 + 10**6 * sequence_length, by_category={})

    monkeypatch.setattr(giant_step, "simulate_training", simulate_training)
    plan = TrainingPlan("SmolLM2-135M-Instruct", "qlora", 4, 1, 512)
    found = giant_step.simulate("a", plan, 3e9, report=lambda *_, **__: None)
    assert found["simulated peak"] == 1_512_000_000
    assert found["fits"]["tokens"] == 1920 and found["long"]["tokens"] == 2048  # 2,000 fit, and 2,015 with 0.5 % more
    assert len(asked) == len(set(asked))
    with pytest.raises(ValueError, match="already take more"):
        giant_step.simulate("a", plan, 1.5e9, report=lambda *_, **__: None)


def test_the_step_that_is_recorded_is_the_one_that_was_simulated():
    import giant_step

    expected = json.loads(giant_step.SIMULATED.read_text())
    assert expected["long"]["simulated peak"] > expected["cap bytes"] > expected["fits"]["simulated peak"]
    state = expected["simulated by category"]["optimizer state"]
    needed = expected["long"]["simulated peak"] + 0.05 * expected["cap bytes"]  # with the margin that a pager leaves
    assert needed - state < expected["cap bytes"], "the pager could not make enough room"


def test_a_smoke_test_says_when_the_decoder_in_triton_was_given_up(monkeypatch):
    """Its kind of device still has compiled kernels then: without the line the record would show them as Triton's."""
    import smoke_test

    taken = {"compiled and proved": ["dequantization"], "given up": None, "decoder in Triton given up": "no ptxas"}
    monkeypatch.setattr("qlora_lab.quantization.path_taken", lambda device: taken)
    assert "Triton was given up (no ptxas)" in smoke_test.path("cuda")
    taken["decoder in Triton given up"] = None
    assert "given up" not in smoke_test.path("cuda")
