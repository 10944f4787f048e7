"""The same words for a computer whatever system tells them; texts are excerpts of what real machines print."""

from __future__ import annotations

import json
import platform

import psutil

from edgecore.machine.facts import cpuinfo, facts, sysctl

XEON = """\
processor	: 0
model name	: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags		: fpu sse4_2 avx2 fma avx512f avx512_bf16 amx_bf16 amx_tile amx_int8

processor	: 1
model name	: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags		: fpu sse4_2 avx2 fma avx512f avx512_bf16 amx_bf16 amx_tile amx_int8
"""
BIG_LITTLE = """\
processor	: 0
Features	: fp asimd crc32 atomics asimdhp asimddp

processor	: 4
Features	: fp asimd crc32 atomics asimdhp asimddp i8mm bf16 sve

Hardware	: Qualcomm Technologies, Inc SM8475
"""
APPLE_M2 = """\
machdep.cpu.brand_string: Apple M2
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.arm.AdvSIMD: 1
hw.memsize: 17179869184
"""
INTEL_MAC = """\
machdep.cpu.brand_string: Intel(R) Core(TM) i7-8850H CPU @ 2.60GHz
machdep.cpu.features: FPU SSE SSE2 SSE3 SSSE3 FMA SSE4.1 SSE4.2 MOVBE POPCNT AVX1.0 F16C
machdep.cpu.leaf7_features: BMI1 AVX2 BMI2
machdep.cpu.extfeatures: LAHF LZCNT
"""


def test_linux_tells_chip_and_features_of_an_x86_server() -> None:
    chip, features = cpuinfo(XEON)
    assert chip == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert {"avx2", "amx_tile"} <= features


def test_where_cores_differ_only_what_all_have_counts() -> None:
    chip, features = cpuinfo(BIG_LITTLE)
    assert chip == "Qualcomm Technologies, Inc SM8475"
    assert features == {"fp", "asimd", "crc32", "atomics", "asimdhp", "asimddp"}


def test_a_mac_tells_its_features_by_linux_names() -> None:
    chip, features = sysctl(APPLE_M2)
    assert chip == "Apple M2"
    assert features == {"asimd", "asimdhp", "asimddp", "i8mm", "bf16"}


def test_an_intel_mac_too() -> None:
    chip, features = sysctl(INTEL_MAC)
    assert chip.startswith("Intel(R) Core(TM) i7")
    assert {"pni", "ssse3", "sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "abm", "lahf_lm"} <= features


def test_this_computer_is_described_within_its_own_limits() -> None:
    here = facts()
    assert here.system == platform.system()
    assert 1 <= here.threads <= here.cpus
    assert 1 <= here.cores <= here.cpus
    assert 0 < here.memory_available <= here.memory <= psutil.virtual_memory().total
    assert here.features
    assert json.loads(json.dumps(here.to_dict()))["features"] == sorted(here.features)
