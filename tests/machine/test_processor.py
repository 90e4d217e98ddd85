"""What is read from Linux's description of the processor, and what is said without it."""

import platform

import pytest

from qlora_lab.machine import processor

INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Some Xeon: 8 cores\nflags\t\t: fpu avx512f amx_bf16\n"
AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: Some EPYC\nflags\t\t: fpu avx2 avx512_bf16_not\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("text", "name", "amd", "bfloat16"),
    [(INTEL, "Some Xeon: 8 cores", False, True), (AMD, "Some EPYC", True, False), (ARM, "an Arm", False, True)],
)
def test_what_linux_says_is_read(monkeypatch, tmp_path, text, name, amd, bfloat16):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "an Arm")
    assert (processor.name(), processor.is_amd(), processor.multiplies_bfloat16()) == (name, amd, bfloat16)


def test_elsewhere_python_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "not there")
    monkeypatch.setattr(platform, "processor", lambda: "AMD64 Family 26, AuthenticAMD")
    assert processor.name() == "AMD64 Family 26, AuthenticAMD" and processor.is_amd()
    assert not processor.multiplies_bfloat16()
