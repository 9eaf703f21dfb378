"""The emulation of the CUDA model: what it must compute, and what it must report.

The kernels are cuda_emulation/selftest.cu, one for each thing that a GPU does, and faults.cu, one
for each mistake that the emulation is there to find, with and without the mistake. A seed is an
order in which the threads run; 0 is the order of their numbers.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulation import build, registers
from cuda_emulation.selftest import (
    SOURCES,
    Array,
    Device,
    Fault,
    from_bf16,
    to_bf16,
    to_tf32,
    zeros,
)

VARIANTS = os.environ.get("FUSEDRNN_EMULATION_VARIANTS", "plain race").split()
SEEDS = range(4)


def opened(variant: str) -> Device:
    try:
        return Device(variant)
    except build.MissingHeaders as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=VARIANTS)
def device(request: pytest.FixtureRequest) -> Device:
    return opened(request.param)


@pytest.fixture(scope="module")
def plain() -> Device:
    return opened("plain")


@pytest.fixture(scope="module")
def race() -> Device:
    return opened("race")


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(1)


def normal(random: np.random.Generator, *sizes: int) -> Array:
    return random.standard_normal(sizes).astype(np.float32)


# ---- What it must compute ---------------------------------------------------------------------

computes = pytest.mark.parametrize("seed", SEEDS)


@computes
def test_computes_coordinates_and_parameters(device: Device, seed: int) -> None:
    device.configure(seed)
    out = device.run("coordinates", zeros(1), zeros(360), 350)
    np.testing.assert_array_equal(out[:350], np.arange(350) / 2 + 4)
    assert (out[350:] == 0).all()


@computes
def test_computes_half_types(device: Device, seed: int, random: np.random.Generator) -> None:
    device.configure(seed)
    x = normal(random, 100)
    out = device.run("half_types", x, zeros(2, 100), 100)
    np.testing.assert_array_equal(out[0], from_bf16(to_bf16(x)))
    np.testing.assert_array_equal(out[1], 2 * x.astype(np.float16).astype(np.float32))


@computes
@pytest.mark.parametrize("n", [1, 32, 70, 1000])
def test_computes_block_sums(
    device: Device, seed: int, n: int, random: np.random.Generator
) -> None:
    device.configure(seed)
    x = normal(random, 3, n)
    out = device.run("block_sums", x, zeros(3), n)
    np.testing.assert_allclose(out, x.astype(np.float64).sum(1), rtol=1e-5, atol=1e-5)


@computes
@pytest.mark.parametrize("n", [10, 20000])
def test_computes_with_dynamic_shared_memory(device: Device, seed: int, n: int) -> None:
    device.configure(seed)
    x = np.arange(n, dtype=np.float32)
    out = device.run("reversed", x, zeros(n + 1), n)
    np.testing.assert_array_equal(out, [*x[::-1], 6])


@computes
def test_computes_warp_collectives(device: Device, seed: int, random: np.random.Generator) -> None:
    device.configure(seed)
    v = random.integers(-50, 50, 32).astype(np.int32)
    lane = np.arange(32)
    eight = lane & ~7
    odd = v % 2 != 0
    ballot = sum(1 << i for i in lane if odd[i])
    match = [sum(1 << j for j in lane if v[j] & 3 == v[i] & 3) for i in lane]
    tile = v.reshape(8, 4)
    expected = [
        v[np.full(32, 5)],
        v[eight | (lane + 3) % 8],
        v[np.where(lane < 2, lane, lane - 2)],
        v[np.where(lane % 8 < 2, lane, lane - 2)],
        v[np.where(lane >= 30, lane, lane + 2)],
        v[np.where(lane % 8 >= 6, lane, lane + 2)],
        v[lane ^ 9],
        np.full(32, ballot),
        np.full(32, 0),
        np.full(32, 1),
        np.full(32, v.sum()),
        np.full(32, v.min()),
        np.full(32, v.view(np.uint32).max()),
        np.array(match),
        np.full(32, odd.sum()),
        np.full(32, 1),
        v[np.where(lane < 16, lane ^ 1, lane ^ 3)],
        np.repeat(tile[:, 1] * 10 + (tile == 7).any(1), 4),
    ]
    out = device.run("collectives", v, zeros(18, 32, dtype=np.int32))
    for row, (found, wanted) in enumerate(zip(out, expected, strict=True)):
        np.testing.assert_array_equal(found.view(np.uint32), wanted.astype(np.uint32), f"row {row}")


@computes
def test_computes_atomics(device: Device, seed: int, random: np.random.Generator) -> None:
    device.configure(seed)
    a = random.integers(0, 100, 300).astype(np.int32)
    out = device.run("atomics", a, zeros(32, dtype=np.int32), 300)
    np.testing.assert_array_equal(out[:8], np.bincount(a & 7, minlength=8))
    np.testing.assert_array_equal(out[8:11], [0, a.max(), a.max()])
    assert out[16:17].view(np.float32)[0] == 150


@computes
def test_computes_across_a_grid_barrier(device: Device, seed: int) -> None:
    device.configure(seed)
    out = device.run("grid_sums", zeros(1), zeros(10), 5)
    np.testing.assert_array_equal(out, [1, 2, 3, 4, 5, *[15] * 5])


@computes
def test_computes_with_flags_between_blocks(device: Device, seed: int) -> None:
    device.configure(seed)
    out = device.run("flags", zeros(1), zeros(256), 3)
    np.testing.assert_array_equal(out[:10], [1, 2, 3, 4, 12, 4, 12, 12, 12, 12])


@computes
@pytest.mark.parametrize("dtype", ["f16", "bf16", "tf32"])
def test_computes_on_tensor_cores(
    device: Device, seed: int, dtype: str, random: np.random.Generator
) -> None:
    device.configure(seed)
    depth = 8 if dtype == "tf32" else 16
    a, b = normal(random, 16, depth), normal(random, depth, 8)
    if dtype == "f16":
        given = [a.astype(np.float16), b.astype(np.float16)]
        a, b = (x.astype(np.float32) for x in given)
    elif dtype == "bf16":
        given = [to_bf16(a), to_bf16(b)]
        a, b = (from_bf16(x) for x in given)
    else:
        given = [a, b]
        a, b = to_tf32(a), to_tf32(b)
    out = device.run(f"product_{dtype}", given[0], zeros(16, 8), b=given[1])
    expected = a.astype(np.float64) @ b.astype(np.float64) + (0 if dtype == "tf32" else 1)
    np.testing.assert_array_equal(out, expected.astype(np.float32))


@computes
def test_computes_matrix_loads(device: Device, seed: int) -> None:
    device.configure(seed)
    a = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = device.run("matrix_loads", a, zeros(7, 32, dtype=np.uint32))
    for row, matrix in zip(out, [*a[:2], *a, a[3].T], strict=True):
        np.testing.assert_array_equal(row, np.ascontiguousarray(matrix).reshape(64).view(np.uint32))


@computes
@pytest.mark.parametrize("options", ["", "late_copies=0"])
def test_computes_with_asynchronous_copies(
    device: Device, seed: int, options: str, random: np.random.Generator
) -> None:
    device.configure(seed, options)
    x = normal(random, 2, 4 * 64)
    out = device.run("gathered", x, zeros(2, 4, 4 * 64), 64)
    np.testing.assert_array_equal(out, np.repeat(x[:, None], 4, axis=1))


@computes
def test_computes_round_a_cluster(device: Device, seed: int, random: np.random.Generator) -> None:
    device.configure(seed)
    out = device.run("ring", zeros(1), zeros(8), 5)
    np.testing.assert_array_equal(out, [8, 5, 6, 7] * 2)
    x = normal(random, 4, 2, 64)
    out = device.run("cluster_sums", x, zeros(4, 2, 64))
    np.testing.assert_array_equal(out, np.repeat(x.sum(1, keepdims=True), 2, axis=1))


def test_tensor_cores_may_cut_where_others_round(
    plain: Device, random: np.random.Generator
) -> None:
    a, b = (normal(random, 16, 16).astype(np.float16) for _ in range(2))
    plain.configure()
    rounded = plain.run("product_f16", a, zeros(16, 8), b=b[:, :8].copy())
    plain.configure(options="truncated_mma=1")
    cut = plain.run("product_f16", a, zeros(16, 8), b=b[:, :8].copy())
    assert 0 < np.abs(rounded - cut).max() < 4e-6


def test_the_same_seed_is_the_same_order(race: Device) -> None:
    def reports(seed: int) -> list[str]:
        found = []
        for _ in range(2):
            race.configure(seed)
            with pytest.raises(Fault) as fault:
                race.fault("missing_second_barrier", planted=True)
            found.append(str(fault.value))
        return found

    first, again = reports(1)
    assert first == again
    assert first != reports(2)[0]


# ---- What it must report ----------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """The report on a fault in the race build; in the plain build too, unless it cannot tell."""

    report: str
    plain: bool = False


RACE_AT = r"race: (read|write) at faults.cu:\d+ by thread \d+ of block \d"
DIVERGED = r"in a diverged warp: another lane is at faults.cu:\d+, at faults.cu:\d+"
UNFENCED = (
    r" at faults.cu:\d+ by thread 0 of block \d, "
    r"without a proxy fence after the store at faults.cu:\d+ by thread \d+ of block \d"
)
FAULTS = {
    "missing_barrier": Planted(RACE_AT),
    "missing_second_barrier": Planted(RACE_AT),
    "missing_syncwarp": Planted(RACE_AT),
    "unreached_barrier": Planted(
        r"deadlock in .*unreached_barrier<true>(.|\n)*32 of 64 threads have exited(.|\n)*"
        r"32 of 64 threads wait in __syncthreads at faults.cu:\d+",
        plain=True,
    ),
    "diverged_collective": Planted(
        r"different collectives: \S+ at faults.cu:\d+, \S+ at faults.cu:\d+", plain=True
    ),
    "lane_outside_mask": Planted("calling lane is not in its mask at faults.cu", plain=True),
    "lane_past_the_end": Planted("reads lane 8, which does not exist", plain=True),
    "diverged_barrier": Planted(r"__syncthreads, which is .aligned, " + DIVERGED, plain=True),
    "half_a_warp_at_a_barrier": Planted(
        r"named barrier, which is .aligned, in a diverged warp: 16 of its 32 lanes have come, at",
        plain=True,
    ),
    "diverged_matrix_load": Planted(r"ldmatrix, which is .aligned, " + DIVERGED, plain=True),
    "diverged_product": Planted(r"mma, which is .aligned, " + DIVERGED, plain=True),
    "racing_blocks": Planted(RACE_AT + ".* not ordered after the write at .* of block"),
    "write_outside_shared": Planted("write outside the shared memory of `s`", plain=True),
    "read_outside_shared": Planted(r"read outside shared memory at faults.cu:\d+"),
    "write_outside_dynamic_shared": Planted("outside the shared memory of `.dynamic.`", plain=True),
    "unwritten_shared": Planted(r"read of unwritten shared memory at faults.cu:\d+"),
    "grid_barrier": Planted("grid.sync.. without a cooperative launch at faults.cu", plain=True),
    "waiting_blocks": Planted("livelock(.|\n)*clusters not yet started: 1", plain=True),
    "lost_arrival": Planted(
        r"livelock(.|\n)*1 of 32 threads spin at (launch.cuh:\d+|a volatile load)", plain=True
    ),
    "missing_release": Planted(RACE_AT),
    "missing_acquire": Planted(RACE_AT),
    "fence_of_a_block": Planted(RACE_AT),
    "stale_load": Planted("__ldg of what this launch writes at faults.cu"),
    "missing_cluster_barrier": Planted("shared memory of a block that may not have started"),
    "early_exit": Planted("may exit before the access to its shared memory|has exited, at faults"),
    "diverged_cluster_barrier": Planted(
        r"cluster barrier, which is .aligned, " + DIVERGED, plain=True
    ),
    "diverged_cluster_wait": Planted(
        r"cluster barrier, which is .aligned, " + DIVERGED, plain=True
    ),
    "unfenced_copy": Planted("bulk copy: read" + UNFENCED),
    "copy_fenced_late": Planted("bulk copy: read" + UNFENCED),
    "unfenced_store_under_a_copy": Planted("bulk copy: write" + UNFENCED),
    "store_under_a_copy_fenced_late": Planted("bulk copy: write" + UNFENCED),
    "unfenced_mbarrier": Planted(r"mbarrier of another block that was not fenced", plain=True),
    "mbarrier_fenced_late": Planted(r"mbarrier of another block that was not fenced", plain=True),
    "remote_arrival_unfenced": Planted(r"mbarrier of another block that was not", plain=True),
    "st_async_alone": Planted("st.async in a cluster of one block at faults.cu", plain=True),
    "early_bulk_read": Planted(
        r"asynchronous copy not waited for at faults.cu:\d+|"
        r"race: read at faults.cu:\d+ .* by an asynchronous copy"
    ),
    "wrong_byte_count": Planted(r"livelock(.|\n)*spin at faults.cu:\d+", plain=True),
    "bulk_copy_of_global_memory": Planted(
        r"an address that is not in this block's shared memory at faults.cu:\d+", plain=True
    ),
    "uninitialised_mbarrier": Planted("mbarrier not initialised at faults.cu", plain=True),
}
SANITIZED = {  # ends the process
    "write_outside_shared": "faults.cu:.* index 32 out of bounds",
    "read_outside_shared": "faults.cu:.* index 3[2-5] out of bounds",
    "write_outside_dynamic_shared": "heap-buffer-overflow(.|\n)*WRITE of size 4(.|\n)*faults.cu",
    "write_outside_global": "heap-buffer-overflow(.|\n)*WRITE of size 4(.|\n)*faults.cu",
    "read_outside_global": "heap-buffer-overflow(.|\n)*READ of size 4(.|\n)*faults.cu",
    "misaligned_vector": "faults.cu:.* misaligned address",
    "signed_overflow": "faults.cu:.* signed integer overflow",
}


def test_every_fault_is_expected_somewhere() -> None:
    planted = re.findall(r"^    FAULT\((\w+)", SOURCES[1].read_text(), re.MULTILINE)
    assert set(planted) == set(FAULTS) | set(SANITIZED)


@pytest.mark.parametrize("name", FAULTS)
def test_reports_the_fault(race: Device, name: str) -> None:
    for seed in SEEDS:
        race.configure(seed)
        with pytest.raises(Fault, match=FAULTS[name].report):
            race.fault(name, planted=True)


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.plain])
def test_reports_the_fault_without_the_race_check(plain: Device, name: str) -> None:
    for seed in SEEDS:
        plain.configure(seed)
        with pytest.raises(Fault, match=FAULTS[name].report):
            plain.fault(name, planted=True)


@pytest.mark.parametrize("name", [*FAULTS, *SANITIZED])
def test_does_not_report_the_corrected_kernel(device: Device, name: str) -> None:
    for seed in range(10):
        device.configure(seed)
        device.fault(name, planted=False)
        assert device.report() == ""


@pytest.mark.parametrize("name", ["unwritten_shared", "early_bulk_read"])
def test_what_is_not_there_yet_is_nan(plain: Device, name: str) -> None:
    plain.configure()
    assert any(np.isnan(plain.fault(name, planted=True)))
    assert not any(np.isnan(plain.fault(name, planted=False)))


@pytest.mark.parametrize(
    "blocks, threads, cluster, cooperative, shared, allowed, report",
    [
        (1, 0, 1, 0, 0, 0, "0 threads in a block"),
        (1, 1025, 1, 0, 0, 0, "1025 threads in a block"),
        (0, 32, 1, 0, 0, 0, "a grid of 0x1x1 blocks"),
        (6, 32, 4, 0, 0, 0, "a cluster of 4 blocks does not divide the grid"),
        (16, 32, 16, 0, 0, 0, "a cluster of 16 blocks is too large"),
        (265, 1024, 1, 1, 0, 0, "265 blocks in a cooperative launch, 264 fit at once"),
        (133, 32, 1, 1, 200000, 200000, "133 blocks in a cooperative launch, 132 fit at once"),
        (
            1,
            32,
            1,
            0,
            50000,
            49152,
            "50000 bytes .* cudaFuncAttributeMaxDynamicSharedMemorySize allows 49152",
        ),
        (1, 32, 1, 0, 240000, 49152, "240000 bytes of dynamic shared memory, more than"),
    ],
)
def test_refuses_the_launch(
    plain: Device,
    blocks: int,
    threads: int,
    cluster: int,
    cooperative: int,
    shared: int,
    allowed: int,
    report: str,
) -> None:
    plain.configure()
    data = (ctypes.c_float * 8)()
    sizes = [blocks, threads, cluster, cooperative, shared, allowed]
    with pytest.raises(Fault, match="bad launch: " + report):
        plain.check(plain.lib.fusedrnn_launch(*sizes, data))
    assert data[0] == 0


def test_refuses_more_threads_than_registers_allow(plain: Device) -> None:
    """A warp takes its lanes' registers in pieces of 256: 65536 are enough for 12 warps of 168."""
    data = (ctypes.c_float * 8)()
    plain.configure()
    try:
        for count, threads, fits in ((168, 384, True), (169, 384, False), (255, 256, True)):
            assert registers.tell(plain.lib, plain.path, {"nothing": count}) == {"nothing"}
            if fits:
                plain.check(plain.lib.fusedrnn_launch(1, threads, 1, 0, 0, 0, data))
                continue
            with pytest.raises(Fault, match="bad launch: 384 threads take 67584 registers"):
                plain.check(plain.lib.fusedrnn_launch(1, threads, 1, 0, 0, 0, data))
    finally:
        registers.tell(plain.lib, plain.path, {})


# Bits of the cluster sizes that a device lists or refuses.
TEN, SIXTEEN = 1 << 10, 1 << 16
OF_A_MULTIPROCESSOR = 200000  # bytes, so that a block has one to itself


def test_clusters_need_a_gpc_to_themselves(plain: Device) -> None:
    def clusters(size: int, options: str) -> int:
        plain.configure(options=options)
        return int(plain.lib.fusedrnn_clusters(size, OF_A_MULTIPROCESSOR))

    assert clusters(16, "") == 132 // 16 and clusters(10, "") == 13
    assert clusters(16, "gpc=18") == 7 and clusters(10, "gpc=18") == 7
    assert clusters(16, "gpc=17 multiprocessors=33") == 2  # the second has 16
    assert clusters(16, "gpc=14") == 0 and clusters(8, "gpc=14") == 9
    assert clusters(10, f"unlisted={TEN}") == 0 and clusters(9, f"unlisted={TEN}") == 14
    assert clusters(10, f"refused={TEN}") == 13


def test_refuses_clusters_as_it_said_or_in_spite_of_it(plain: Device) -> None:
    data = (ctypes.c_float * 8)()
    launch = [10, 32, 10, 0, OF_A_MULTIPROCESSOR, OF_A_MULTIPROCESSOR, data]
    for options in ("gpc=9", f"unlisted={TEN}"):
        plain.configure(options=options)
        assert plain.lib.fusedrnn_clusters(10, OF_A_MULTIPROCESSOR) == 0  # allows large ones, too
        with pytest.raises(Fault, match="bad launch: no cluster of 10 blocks fits the device"):
            plain.check(plain.lib.fusedrnn_launch(*launch))
    for refusal in (None, 9, 701, 912):
        plain.configure(options=f"refused={TEN}" + (f" refusal={refusal}" if refusal else ""))
        assert plain.lib.fusedrnn_launch(*launch) == (refusal or 912)
        assert "the device refuses a cluster of 10 blocks" in plain.report()
        assert plain.lib.fusedrnn_last_error().decode() == plain.report()
    assert data[0] == 0
    plain.configure(options=f"refused={SIXTEEN}")
    plain.check(plain.lib.fusedrnn_launch(*launch))
    assert data[0] == 1


@pytest.mark.parametrize("what", ["asking", "setting", "occupancy", "launching"])
def test_a_kernel_is_not_loaded_in_a_capture(plain: Device, what: str) -> None:
    in_capture = partial(plain.lib.fusedrnn_in_capture, what.encode())
    plain.configure(options="capturing=1")
    assert in_capture(0) == 900
    assert "loading a kernel while a graph is captured" in plain.lib.fusedrnn_last_error().decode()
    plain.configure(options="capturing=1")
    assert in_capture(1) == 0
    assert in_capture(0) == 0  # it is there now


def test_a_capture_is_ruined_by_what_it_forbids(plain: Device) -> None:
    for relaxed in (0, 1):
        plain.configure(options="capturing=1")
        assert plain.lib.fusedrnn_in_capture(b"launching", 1) == 0
        assert plain.lib.fusedrnn_in_capture(b"waiting", relaxed) == 900
        assert plain.lib.fusedrnn_in_capture(b"launching", 1) == 901
    plain.configure()
    assert plain.lib.fusedrnn_in_capture(b"waiting", 0) == 0


def test_pretends_to_be_the_device_asked_for(plain: Device) -> None:
    data = (ctypes.c_float * 8)()
    plain.configure(options="multiprocessors=3")
    plain.check(plain.lib.fusedrnn_launch(6, 1024, 1, 1, 0, 0, data))
    with pytest.raises(Fault, match="7 blocks in a cooperative launch, 6 fit"):
        plain.check(plain.lib.fusedrnn_launch(7, 1024, 1, 1, 0, 0, data))
    plain.configure(options="capability=80")
    with pytest.raises(Fault, match="clusters need compute capability 9.0"):
        plain.check(plain.lib.fusedrnn_launch(2, 32, 2, 0, 0, 0, data))
    assert plain.lib.fusedrnn_emulation_configure(ctypes.c_uint64(0), b"colour=1") == 1


# ---- What a launcher sees ---------------------------------------------------------------------


def test_a_failed_launch_leaves_its_report_and_the_device_usable(device: Device) -> None:
    device.configure()
    device.lib.fusedrnn_last_error()
    with pytest.raises(Fault) as fault:
        device.fault("lost_arrival", planted=True)
    assert device.lib.fusedrnn_last_error().decode() == str(fault.value)
    assert device.lib.fusedrnn_last_error().decode() == "cudaSuccess"
    out = device.run("grid_sums", zeros(1), zeros(10), 5)
    assert out[9] == 15
    assert device.report() == ""


def test_counts_launches(plain: Device) -> None:
    before = plain.lib.fusedrnn_emulation_launches()
    plain.configure()
    plain.fault("missing_barrier", planted=False)
    with pytest.raises(Fault):
        plain.fault("lost_arrival", planted=True)
    assert plain.lib.fusedrnn_emulation_launches() == before + 2


def test_failed_launches_do_not_pile_up_memory(plain: Device) -> None:
    def fail(times: int) -> int:
        for seed in range(times):
            plain.configure(seed)
            with pytest.raises(Fault):
                plain.fault("diverged_collective", planted=True)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert fail(100) - fail(10) < 10_000  # KiB


def test_compiles_only_what_changed(plain: Device, tmp_path: Path) -> None:
    def objects() -> dict[Path, int]:
        folder = build.BUILD / "plain"
        files = [folder / "selftest.so", *folder.glob("device/*.o"), *folder.glob("selftest/*.o")]
        return {file: file.stat().st_mtime_ns for file in files}

    before = objects()
    assert len(before) > 8
    source = tmp_path / "empty.cu"
    source.write_text("#include <cuda_runtime.h>\n")
    other = build.library("plain", [source], name="empty")  # shares the device
    assert other.exists()
    build.library("plain", SOURCES, name="selftest")
    assert objects() == before


# ---- cuBLAS -----------------------------------------------------------------------------------

F32, F64, F16, BF16 = 0, 1, 2, 14
COMPUTE_32F, PEDANTIC, COMPUTE_64F, FAST_TF32 = 68, 69, 70, 77
OK, INVALID_VALUE, NOT_SUPPORTED = 0, 7, 15


@dataclass
class Gemm:
    """C = alpha A B + beta C, as cublasGemmStridedBatchedEx takes it: by columns."""

    a: Array  # [batch][columns][rows]
    b: Array
    c: Array
    op_a: int = 0
    op_b: int = 0
    m: int = 0
    n: int = 0
    k: int = 0
    alpha: float = 1
    beta: float = 0
    types: tuple[int, int] = (F32, F32)
    compute: int = COMPUTE_32F

    def status(self, device: Device, **changed: Any) -> int:
        scalar = ctypes.c_double if self.compute == COMPUTE_64F else ctypes.c_float
        alpha, beta = scalar(self.alpha), scalar(self.beta)
        given: dict[str, Any] = dict(
            op_a=self.op_a, op_b=self.op_b, m=self.m, n=self.n, k=self.k,
            alpha=ctypes.byref(alpha), a=self.a.ctypes.data, type_a=self.types[0],
            lda=self.a.shape[2], stride_a=self.a[0].size, b=self.b.ctypes.data,
            type_b=self.types[0], ldb=self.b.shape[2], stride_b=self.b[0].size,
            beta=ctypes.byref(beta), c=self.c.ctypes.data, type_c=self.types[1],
            ldc=self.c.shape[2], stride_c=self.c[0].size, batch=len(self.c), compute=self.compute,
        )  # fmt: skip
        given |= changed
        for name in ("a", "b", "c"):
            given[name] = ctypes.c_void_p(given[name])
        for name in ("stride_a", "stride_b", "stride_c"):
            given[name] = ctypes.c_longlong(given[name])
        return int(device.lib.fusedrnn_gemm(*given.values()))


ENCODE = {F32: np.float32, F64: np.float64, F16: np.float16}


def encoded(x: Array, dtype: int) -> Array:
    return to_bf16(x.astype(np.float32)) if dtype == BF16 else x.astype(ENCODE[dtype])


def decoded(x: Array, dtype: int) -> Array:
    return (from_bf16(x) if dtype == BF16 else x).astype(np.float64)


@pytest.mark.parametrize("op_b", [0, 1])
@pytest.mark.parametrize("op_a", [0, 1])
@pytest.mark.parametrize(
    "types, compute, tolerance",
    [
        ((F64, F64), COMPUTE_64F, 1e-14),
        ((F32, F32), COMPUTE_32F, 1e-6),
        ((F32, F32), PEDANTIC, 1e-6),
        ((F32, F32), FAST_TF32, 2e-3),
        ((BF16, F32), COMPUTE_32F, 1e-6),
        ((BF16, BF16), COMPUTE_32F, 4e-3),
        ((F16, F32), COMPUTE_32F, 1e-6),
        ((F16, F16), COMPUTE_32F, 5e-4),
    ],
)
def test_cublas_multiplies(
    plain: Device,
    random: np.random.Generator,
    types: tuple[int, int],
    compute: int,
    tolerance: float,
    op_a: int,
    op_b: int,
) -> None:
    m, n, k, batch = 67, 9, 33, 2
    sizes = [(batch, *((m, k + 2) if op_a else (k, m + 2))),
             (batch, *((k, n + 1) if op_b else (n, k + 1))), (batch, n, m + 3)]  # fmt: skip
    a, b = (encoded(random.standard_normal(size), types[0]) for size in sizes[:2])
    c = encoded(random.standard_normal(sizes[2]), types[1])
    gemm = Gemm(a, b, c, op_a, op_b, m, n, k, 0.5, -2.0, types, compute)
    a, b = decoded(a, types[0]), decoded(b, types[0])
    a = a[:, :m, :k] if op_a else a[:, :k, :m].transpose(0, 2, 1)
    b = b[:, :k, :n] if op_b else b[:, :n, :k].transpose(0, 2, 1)
    before = decoded(gemm.c, types[1]).transpose(0, 2, 1).copy()
    expected = 0.5 * a @ b - 2 * before[:, :m]
    assert gemm.status(plain) == OK
    found = decoded(gemm.c, types[1]).transpose(0, 2, 1)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[:, :m], expected, rtol=tolerance, atol=tolerance * scale)
    np.testing.assert_array_equal(found[:, m:], before[:, m:])


def ones(m: int, n: int, k: int, **options: Any) -> Gemm:
    a, b = np.ones((1, k, m), np.float32), np.ones((1, n, k), np.float32)
    c = np.full((1, n, m), np.nan, np.float32)
    return Gemm(a, b, c, m=m, n=n, k=k, **options)


def test_cublas_reads_what_blas_reads(plain: Device) -> None:
    product = ones(3, 2, 4)
    product.a[0, 1, 1], product.b[0, 0, 1] = np.inf, 0
    assert product.status(plain) == OK
    expected = np.array([[3, np.nan, 3], [4, np.inf, 4]])
    np.testing.assert_array_equal(product.c[0], expected)  # 0 * inf; C was NaN and is not read

    scaled = ones(3, 2, 4, alpha=0.0, beta=2.0)
    scaled.a[:], scaled.c[:] = np.nan, 5  # A is not read if alpha is zero
    assert scaled.status(plain) == OK
    assert (scaled.c == 10).all()

    empty = ones(3, 2, 4)
    assert empty.status(plain, k=0) == OK
    assert (empty.c == 0).all()


@pytest.mark.parametrize(
    "changed, status",
    [
        (dict(m=-1), INVALID_VALUE),
        (dict(batch=-1), INVALID_VALUE),
        (dict(op_a=3), INVALID_VALUE),
        (dict(lda=2), INVALID_VALUE),
        (dict(ldb=3), INVALID_VALUE),
        (dict(ldc=2), INVALID_VALUE),
        (dict(a=None), INVALID_VALUE),
        (dict(c=None), INVALID_VALUE),
        (dict(m=0, a=None, c=None), OK),
        (dict(type_b=BF16), NOT_SUPPORTED),
        (dict(type_c=BF16), NOT_SUPPORTED),
        (dict(compute=COMPUTE_64F), NOT_SUPPORTED),
        (dict(type_a=BF16, type_b=BF16, compute=FAST_TF32), NOT_SUPPORTED),
    ],
    ids=str,
)
def test_cublas_checks_its_arguments(plain: Device, changed: dict[str, Any], status: int) -> None:
    gemm = ones(3, 2, 4)
    assert gemm.status(plain, **changed) == status
    assert np.isnan(gemm.c).all()


# ---- Sanitizers, and the real compiler ----------------------------------------------------------


def in_asan_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = build.asan_environment() | {"FUSEDRNN_EMULATION_VARIANTS": "asan"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parent, env=environment,
    )  # fmt: skip


@pytest.mark.skipif("asan" in VARIANTS, reason="this is that process")
def test_under_address_and_undefined_behaviour_sanitizers(plain: Device) -> None:
    build.library("asan", SOURCES, name="selftest")
    done = in_asan_process(
        "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--noconftest", __file__,
        "-k", "test_computes or corrected_kernel or a_failed_launch",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize("name", SANITIZED)
def test_sanitizers_report_the_fault(plain: Device, name: str) -> None:
    build.library("asan", SOURCES, name="selftest")
    code = f"""if True:
        from cuda_emulation.selftest import Device
        Device("asan").fault({name!r}, planted=True)"""
    done = in_asan_process("-c", code)
    assert done.returncode != 0
    assert re.search(SANITIZED[name], done.stderr), done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_kernels_are_cuda(source: Path, tmp_path: Path) -> None:
    targets = [
        f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ("75", "80", "90a", "100")
    ]
    done = subprocess.run(
        ["nvcc", "-std=c++17", "--threads=2", "-Werror=all-warnings", *targets, "-c", str(source),
         f"-I{build.ROOT / 'csrc'}", "-o", str(tmp_path / "object.o")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
