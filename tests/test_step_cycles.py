"""tools/step_cycles.py: what machine code does, when each instruction is issued, and the table.

Instructions are tried one by one against Python's integers, and as kernels that nvcc compiles;
cycles against what can be counted by hand. The committed table is compared wherever the compiler
that it was made with is, and a disassembler.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import step_cycles
from sass.assumptions import Assumptions
from sass.code import Control, Instruction, Kernel, kernels_in
from sass.machine import Event, Launch, Machine, Meeting, unknown
from sass.operands import UnknownInstruction
from sass.schedule import schedule

NVDISASM = step_cycles.find_nvdisasm()
NVCC = step_cycles.in_setup().Nvcc.find()
needs_tools = pytest.mark.skipif(
    NVCC is None or NVDISASM is None, reason="nvcc or nvdisasm is not there"
)

FREE = Control(stall=1, written=7, have_read=7, waits=())
ALONE = Assumptions(contention=False)


def program(text: str, **controls: Control) -> Kernel:
    """Instructions as nvdisasm writes them, one a line; `name:` is a label.

    Those whose control words matter begin with a name of `controls` and a `|`.
    """
    kernel = Kernel("program", [], {})
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.endswith(":"):
            kernel.labels[line[:-1]] = len(kernel.instructions)
            continue
        name, bar, line = line.rpartition("|")
        guard, opcode, operands = re.fullmatch(r"(@\S+\s+)?(\S+)\s*(.*)", line.strip()).groups()
        kernel.instructions.append(
            Instruction(
                16 * len(kernel.instructions),
                (guard or "").strip(),
                opcode,
                tuple(part.strip() for part in operands.split(",")) if operands else (),
                controls[name.strip()] if bar else FREE,
            )
        )
    return kernel


def executed(text: str, threads: int = 32, **registers: np.ndarray | int) -> Machine:
    """Runs a program of one block, after which its registers can be looked at."""
    machine = Machine(program(f"{text}\nEXIT"), Launch(b"\x78\x56\x34\x12", threads, 1024))
    for name, values in registers.items():
        for warp in machine.warps:
            file, number = re.fullmatch(r"([a-z]+)(\d+)", name).groups()
            getattr(warp, file)[int(number)][:] = values
    machine.run()
    return machine


def test_control_words() -> None:
    (kernel,) = kernels_in(
        '\t.section\t.text.name,"ax",@progbits\n'
        '\t//## File "/some/file.cuh", line 7 inlined at "/some/other.cuh", line 9\n'
        '\t//## File "/some/other.cuh", line 9\n'
        "        /*0000*/         @!P3 LDS.128 R16, [R102+0x200] ;  /* 0x0002000066107984 */\n"
        f"                                        /* {0b010111_001_000_1_0101 << 41:#018x} */\n"
        ".L_x_1:\n"
        "        /*0010*/              EXIT ;                       /* 0x000000000000794d */\n"
        "                                                           /* 0x000fea0003800000 */\n"
    )  # fmt: skip
    load, end = kernel.instructions
    assert (load.guard, load.opcode, load.operands) == ("@!P3", "LDS.128", ("R16", "[R102+0x200]"))
    assert load.control == Control(stall=5, written=0, have_read=1, waits=(0, 1, 2, 4))
    assert [(line.file, line.number) for line in load.lines] == [
        ("/some/file.cuh", 7), ("/some/other.cuh", 9),
    ]  # fmt: skip
    assert kernel.labels == {".L_x_1": 1} and end.opcode == "EXIT" and end.lines == load.lines


def signed(x: int, bits: int = 32) -> int:
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> bits - 1 else x


# What is written to R8 (and R9), as an integer, from R1, R2, R3 and the 64 bits of R4 and R5.
OPERATIONS: dict[str, Callable[[int, int, int, int], int]] = {
    "MOV R8, R1": lambda a, b, c, d: a,
    "IMAD R8, R1, R2, R3": lambda a, b, c, d: a * b + c,
    "IMAD R8, R1, -0x3, -R3": lambda a, b, c, d: -3 * a - c,
    "IMAD.SHL.U32 R8, R1, 0x100, RZ": lambda a, b, c, d: a << 8,
    "IMAD.HI.U32 R8, R1, R2, R4": lambda a, b, c, d: (a * b + d) >> 32,
    "IMAD.WIDE R8, R1, R2, R4": lambda a, b, c, d: signed(a) * signed(b) + d,
    "IMAD.WIDE.U32 R8, R1, R2, R4": lambda a, b, c, d: a * b + d,
    "IADD3 R8, R1, -R2, ~R3": lambda a, b, c, d: a - b + ~c,
    "VIADD R8, R1, 0xffffffff": lambda a, b, c, d: a - 1,
    "IABS R8, R1": lambda a, b, c, d: abs(signed(a)),
    "VIMNMX R8, R1, R2, PT": lambda a, b, c, d: min(signed(a), signed(b)),
    "VIMNMX.U32 R8, R1, R2, !PT": lambda a, b, c, d: max(a, b),
    "VIMNMX3 R8, R1, R2, R3, PT": lambda a, b, c, d: min(map(signed, (a, b, c))),
    "VIADDMNMX R8, R1, R2, R3, !PT": lambda a, b, c, d: max(signed(a + b), signed(c)),
    "LEA R8, R1, R2, 0x3": lambda a, b, c, d: (a << 3) + b,
    "LEA.HI R8, R1, R2, R3, 0x5": lambda a, b, c, d: ((c << 32 | a) << 5 >> 32) + b,
    "LEA.HI.SX32 R8, R1, R2, 0x1e": lambda a, b, c, d: (signed(a) << 30 >> 32) + b,
    "LOP3.LUT R8, R1, R2, R3, 0xf8, !PT": lambda a, b, c, d: a | b & c,
    "LOP3.LUT R8, RZ, R2, RZ, 0x33, !PT": lambda a, b, c, d: ~b,
    "LOP3.LUT R8, R1, 0xff, RZ, 0xc0, !PT": lambda a, b, c, d: a & 255,
    "SHF.L.U32 R8, R1, 0x7, RZ": lambda a, b, c, d: a << 7,
    "SHF.L.U64.HI R8, R1, 0x7, R2": lambda a, b, c, d: (b << 32 | a) << 7 >> 32,
    "SHF.R.S32.HI R8, RZ, 0x1f, R1": lambda a, b, c, d: signed(a) >> 31,
    "SHF.R.U32.HI R8, RZ, 0x5, R1": lambda a, b, c, d: a >> 5,
    "SHF.R.U64 R8, R1, 0x9, R2": lambda a, b, c, d: (b << 32 | a) >> 9,
    "PRMT R8, R1, 0x7610, R2": lambda a, b, c, d: b & 0xFFFF0000 | a & 0xFFFF,
    "PRMT R8, R1, 0x8880, R2": lambda a, b, c, d: signed(a, 8),
    "PRMT R8, R1, 0x654, R2": lambda a, b, c, d: b & 0xFFFFFF | a << 24,
    "HFMA2.MMA R8, -RZ, RZ, 0, 6.103515625e-05": lambda a, b, c, d: 0x400,
    "LDC R8, c[0x0][0x210]": lambda a, b, c, d: 0x12345678,
    "ULDC UR4, c[0x0][0x210]\nIADD3 R8, R1, UR4, RZ": lambda a, b, c, d: a + 0x12345678,
    "LDC.U8 R8, c[0x0][0x211]": lambda a, b, c, d: 0x56,
    "ISETP.LT.AND P1, PT, R1, R2, PT\nSEL R8, R1, R2, P1": lambda a, b, c, d: min(
        signed(a), signed(b)
    ),
    "ISETP.GE.U32.AND P1, P2, R1, R2, PT\nSEL R8, R1, R2, P2": lambda a, b, c, d: min(a, b),
    # A carry from the lower half to the upper one, and a comparison of 64 bits.
    "IADD3 R8, P1, R1, R4, RZ\nIADD3.X R9, R2, R5, RZ, P1, !PT": lambda a, b, c, d: (
        (b << 32 | a) + d
    ),
    "IADD3 R8, P1, R1, -R4, RZ\nIADD3.X R9, R2, ~R5, RZ, P1, !PT": lambda a, b, c, d: (
        (b << 32 | a) - d
    ),
    "LEA R8, P1, R1, R4, 0x2\nLEA.HI.X R9, R1, R5, R2, 0x2, P1": lambda a, b, c, d: (
        (b << 32 | a) * 4 + d
    ),
    "ISETP.GT.U32.AND P1, PT, R1, R4, PT\nISETP.GT.AND.EX P1, PT, R2, R5, PT, P1\n"
    "SEL R8, 0x1, RZ, P1": lambda a, b, c, d: int(signed(b << 32 | a, 64) > signed(d, 64)),
    "@P3 MOV R8, R1\n@!P3 MOV R8, R2": lambda a, b, c, d: b,
    "STS.64 [R6], R4\nLDS R8, [R6+0x4]": lambda a, b, c, d: d >> 32,
    "STL [R7+0x10], R1\nMOV R1, RZ\nLDL R8, [R7+0x10]": lambda a, b, c, d: a,
    "P2R R8, PR, RZ, 0x7f\nR2P PR, R1, 0x6\nSEL R8, R1, R2, P1": lambda a, b, c, d: (
        a if a & 2 else b
    ),
    "SHFL.BFLY PT, R8, R1, 0x0, 0x1f": lambda a, b, c, d: a,
}


@pytest.mark.parametrize("text", OPERATIONS)
def test_an_instruction_computes(text: str) -> None:
    draw = random.Random(text)
    edges = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    words = np.array(
        [[draw.choice((draw.getrandbits(32), draw.choice(edges))) for _ in range(32)]
         for _ in range(6)], np.uint32,
    )  # fmt: skip
    own = {f"r{n}": words[n] for n in range(1, 6)}
    machine = executed(text, **own, r6=1024 + 8 * np.arange(32), r7=512)
    low, high = (machine.warps[0].r[n].astype(object) for n in (8, 9))
    is_wide = "WIDE" in text or "R9" in text
    for lane in range(32):
        a, b, c, low4, high4 = (int(words[n, lane]) for n in range(1, 6))
        expected = OPERATIONS[text](a, b, c, high4 << 32 | low4)
        found = low[lane] | high[lane] << 32 if is_wide else low[lane]
        assert found == expected & (1 << (64 if is_wide else 32)) - 1, (lane, a, b, c)


def test_between_lanes() -> None:
    lanes = np.arange(32)
    machine = executed(
        """
        S2R R1, SR_TID.X
        SHFL.BFLY PT, R2, R1, 0x1, 0x1f
        ISETP.GT.AND P0, PT, R1, 0x4, PT
        @P0 ELECT P1, URZ, PT
        @P1 R2UR UR4, R2
        VOTEU.ANY UP0, P0
        VOTEU.ALL UP1, P0
        USEL UR5, UR4, URZ, UP0
        USEL UR6, UR4, URZ, UP1
        """
    )
    (warp,) = machine.warps
    assert (warp.r[2] == (lanes ^ 1)).all()
    assert (warp.p[1] == (lanes == 5)).all()
    assert [int(warp.ur[n][0]) for n in (4, 5, 6)] == [4, 4, 0]


LOOP = """
    S2R R1, SR_TID.X
    BSSY B0, `(.done)
    ISETP.EQ.AND P0, PT, R1, RZ, PT
    @P0 BRA `(.done)
.again:
    IADD3 R2, R2, R3, RZ
    IADD3 R3, R3, 0x1, RZ
    ISETP.LT.AND P0, PT, R3, R1, PT
    @P0 BRA `(.again)
.done:
    BSYNC B0
    IADD3 R2, R2, 0x64, RZ
"""


def test_lanes_part_and_meet() -> None:
    """Each lane's loop has as many turns as it says, and what follows is executed once."""
    (warp,) = executed(LOOP).warps
    assert warp.r[2].tolist() == [sum(range(n)) + 100 for n in range(32)]
    after = sum(event.at == 9 for event in warp.trace)
    assert after == 1, "the lanes have not met"


def test_comparisons_of_data_go_both_ways() -> None:
    text = """
        BSSY B0, `(.done)
        FSETP.GT.AND P0, PT, R1, R2, PT
        @P0 BRA `(.other)
        MOV R3, 0x1
        BRA `(.done)
    .other:
        MOV R3, 0x2
    .done:
        BSYNC B0
    """
    (warp,) = executed(text).warps
    assert warp.r[3].tolist() == [2, 1] * 16


def test_what_is_unknown_is_named() -> None:
    kernel = program("MOV R1, R2\nBREV R3, R1\nIMAD R4, R1, R2, [R5]\nEXIT")
    found = unknown(kernel)
    assert len(found) == 2 and "BREV R3, R1" in found[0] and "IMAD R4" in found[1]
    with pytest.raises(UnknownInstruction, match="0010: BREV R3, R1"):
        Machine(kernel, Launch(b"", 32)).run()


def test_what_a_block_may_not_do_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="expected addresses below 2048"):
        executed("LDS R1, [R2]", r2=2048)
    with pytest.raises(RuntimeError, match="wait for others that do not come"):
        executed("S2R R1, SR_TID.X\nISETP.LT.AND P0, PT, R1, 0x20, PT\n@P0 BAR.SYNC 0x0", 64)
    with pytest.raises(RuntimeError, match="expected all lanes of warp 0, got a part"):
        executed("S2R R1, SR_TID.X\nISETP.LT.AND P0, PT, R1, 0x5, PT\n@P0 BAR.SYNC 0x0")


# ---- Cycles that can be counted by hand ----------------------------------------------------------

LOAD = Control(stall=2, written=0, have_read=7, waits=())
USE = Control(stall=4, written=7, have_read=7, waits=(0,))


def cycles(kernel: Kernel, warps: int = 1, assumptions: Assumptions = ALONE) -> list[list[int]]:
    """When the instructions of each warp are issued."""
    machine = Machine(kernel, Launch(b"", 32 * warps, 1024))
    line = schedule(kernel, machine.run(), assumptions)
    return [[issued.cycle for issued in of_warp] for of_warp in line.issued]


def test_stalls_scoreboards_and_branches() -> None:
    kernel = program(
        """
        MOV R2, 0x400
        load| LDS R1, [R2]
        MOV R3, R4
        use| IADD3 R1, R1, R3, RZ
        @!PT BRA `(.end)
        BRA `(.end)
        MOV R5, R6
    .end:
        EXIT
        """,
        load=LOAD, use=USE,
    )  # fmt: skip
    a = ALONE
    assert a.latency_of("LDS") == 30 and a.taken_branch == 6
    # one for MOV; the load's stall count; its result after 30; USE's stall count; one for a branch
    # that is not taken, and seven for one that is
    assert cycles(kernel) == [[0, 1, 3, 31, 35, 36, 43]]


def test_warps_compete_for_their_scheduler_and_for_pipes() -> None:
    moves = program("NOP\n" * 100 + "EXIT")
    together = cycles(moves, 8, Assumptions())
    assert [of_warp[-1] for of_warp in together] == [100] * 4 + [201] * 4
    assert [of_warp[-1] for of_warp in cycles(moves, 8)] == [100] * 8
    assert Assumptions().pipes["LDS.128"] == ("shared", 4)
    loads = program("MOV R2, 0x400\n" + "load| LDS.128 R4, [R2]\n" * 10 + "use| EXIT",
                    load=LOAD, use=USE)  # fmt: skip
    # 8 warps, each with 10 loads of 4 cycles; the last of all begins after the 79 before it.
    assert max(of_warp[-1] for of_warp in cycles(loads, 8, Assumptions())) in range(346, 360)


def test_a_barrier_waits_for_the_last_warp() -> None:
    kernel = program(
        """
        S2R R1, SR_TID.X
        ISETP.GE.AND P0, PT, R1, 0x20, PT
        @P0 BRA `(.late)
        BAR.SYNC 0x0
        EXIT
    .late:
        slow| MOV R2, R3
        BAR.SYNC 0x0
        EXIT
        """,
        slow=Control(15, 7, 7, ()),
    )
    assert ALONE.barrier == 38
    first, second = cycles(kernel, 2)
    assert second[3:] == [9, 24, 24 + 38 + 1]
    assert first[3:] == [3, 24 + 38 + 1]


def test_the_path_of_a_step_goes_along_the_slowest_warp() -> None:
    """Every cycle belongs to an instruction, and before a barrier to the warp that came last."""
    kernel = program(
        "load| LDS R1, [R2]\nuse| IADD3 R1, R1, R1, RZ\nBAR.SYNC 0x0\nNOP\nNOP", load=LOAD, use=USE
    )
    meeting = Meeting(2, "barrier 0")
    on = [Event(at, True) for at in range(5)]
    barrier = on[2]._replace(meeting=meeting, waits=True)
    late = [*on[:2], barrier, on[3]]
    early = [barrier, on[3], on[4]]
    line = schedule(kernel, [late, early], ALONE)
    found = [(i.opcode, n) for i, n in line.path(1, 2, 0)]
    assert found == [("NOP", 1), ("BAR.SYNC", 39), ("IADD3", 4), ("LDS", 28), ("LDS", 2)]


# ---- Kernels that nvcc compiles ------------------------------------------------------------------

INTEGERS = """
    extern __shared__ volatile unsigned out[];
    __global__ void integers(int n, long long wide, unsigned* to) {
      const int t = static_cast<int>(threadIdx.x);
      out[t] = t / n, out[32 + t] = t % n, out[64 + t] = (t - 16) / n;
      out[96 + t] = static_cast<unsigned>(wide * (t - 16) >> 20);
      unsigned sum = 0;
      for (int i = 0; i < t; ++i) sum += i % 3 ? i * n : i ^ n;
      out[128 + t] = sum;
      out[160 + t] = __shfl_xor_sync(~0u, sum, 5);
      if (n < 0) to[t] = out[(t + 1) % 192];
    }
    __global__ void reversed(unsigned* to) { to[threadIdx.x] = __brev(threadIdx.x); }
"""

# A step of a block, in which products are a chain of multiply-adds, and a cell a chain of loads.
TINY = """
    template <int products>
    __device__ void multiply(float& sum, float by) {
      #pragma unroll
      for (int i = 0; i < products; ++i)
        asm volatile("fma.rn.f32 %0, %0, %1, %1;" : "+f"(sum) : "f"(by));
    }
    template <int loads>
    __device__ void update(unsigned& place) {
      #pragma unroll
      for (int i = 0; i < loads; ++i) asm volatile("ld.shared.u32 %0, [%0];" : "+r"(place));
    }
    __device__ void publish() { __syncthreads(); }
    template <int products, int loads>
    __global__ void walk_forward(int steps, float by, unsigned zero, float* to) {
      extern __shared__ unsigned shared[];
      shared[threadIdx.x] = 1024;
      float sum = by;
      unsigned place = 1024;
      #pragma unroll 1
      for (int s = 0; s < steps; ++s) {
        multiply<products>(sum, by + place);
        place += __float_as_uint(sum) & zero;
        update<loads>(place);
        publish();
      }
      to[threadIdx.x] = sum + place;
    }
    template __global__ void walk_forward<16, 4>(int, float, unsigned, float*);
    template __global__ void walk_forward<32, 4>(int, float, unsigned, float*);
    template __global__ void walk_forward<16, 12>(int, float, unsigned, float*);
"""

# A step of a cluster, which waits once or twice.
CLUSTER = """
    #include "cuda/team/ptx.cuh"
    namespace ptx = fusedrnn::cuda::ptx;
    __device__ void wait_for_sent(uint64_t* barrier, int step) {
      ptx::mbarrier_wait(barrier, step & 1);
    }
    __device__ void publish(uint64_t* barrier, float value, unsigned rank) {
      uint32_t* const place = reinterpret_cast<uint32_t*>(barrier + 2 + threadIdx.x);
      if (threadIdx.x % 2 == 0) ptx::st_async(place, __float_as_uint(value), barrier, rank);
    }
    template <int waits>
    __global__ void walk_cluster(int steps, float by, unsigned rank, float* to) {
      extern __shared__ uint64_t barriers[];
      float sum = by;
      #pragma unroll 1
      for (int s = 0; s < steps; ++s) {
        #pragma unroll
        for (int i = 0; i < waits; ++i) {
          wait_for_sent(barriers + i, s);
          multiply<16>(sum, reinterpret_cast<volatile float*>(barriers)[8 + i]);
        }
        publish(barriers, sum, rank);
      }
      to[threadIdx.x] = sum;
    }
    template __global__ void walk_cluster<1>(int, float, unsigned, float*);
    template __global__ void walk_cluster<2>(int, float, unsigned, float*);
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, Kernel]:
    """The kernels of these texts by their mangled names; compiled once, as long as they stay."""
    text = INTEGERS + TINY + CLUSTER
    folder = step_cycles.BUILD / "tests" / "cuda" / "team"  # lines are looked up there
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "walk_tiny.cuh").write_text(text)
    source = folder / "tiny.cu"
    source.write_text('#include "walk_tiny.cuh"\n')
    assert NVCC is not None and NVDISASM is not None
    tools = step_cycles.Tools(NVCC.path, NVDISASM)
    options = step_cycles.TO_MACHINE_CODE
    place = step_cycles.place_of("tiny", ".cubin", tools.release, (text, *options))
    cubin = tools.compile(source, place, *options)
    return {kernel.name: kernel for kernel in step_cycles.kernels_of(cubin, NVDISASM)}


def the(kernels: dict[str, Kernel], name: str) -> Kernel:
    (found,) = (kernel for mangled, kernel in kernels.items() if name in mangled)
    return found


@needs_tools
@pytest.mark.parametrize("n", (1, 3, 7, -5))
def test_compiled_integers(compiled: dict[str, Kernel], n: int) -> None:
    wide = 0x123456789AB
    parameters = n.to_bytes(8, "little", signed=True)[:4] + bytes(4) + wide.to_bytes(8, "little")
    machine = Machine(the(compiled, "integers"), Launch(parameters + bytes(8), 32, 1024))
    machine.run()
    out = machine.shared.view(np.uint32)[256:448].reshape(6, 32).astype(object)
    sums = [sum(i * n if i % 3 else i ^ n for i in range(t)) & 0xFFFFFFFF for t in range(32)]
    for t in range(32):
        assert signed(out[0, t]) == int(t / n) and signed(out[1, t]) == t - int(t / n) * n
        assert signed(out[2, t]) == int((t - 16) / n)
        assert out[3, t] == wide * (t - 16) >> 20 & 0xFFFFFFFF
        assert out[4, t] == sums[t] and out[5, t] == sums[t ^ 5]


@needs_tools
def test_a_compiled_instruction_that_is_unknown(compiled: dict[str, Kernel]) -> None:
    assert ["BREV" in text for text in unknown(the(compiled, "reversed"))] == [True]


@needs_tools
def test_a_slower_step_shows_where_it_is_slower(compiled: dict[str, Kernel]) -> None:
    parameters = np.array([step_cycles.STEPS], np.int32).tobytes() + bytes(20)
    plain, products, loads = (
        step_cycles.measure(the(compiled, f"walk_forwardILi{a}ELi{b}E"), launch, Assumptions())
        for launch in [Launch(parameters, 64, 1024)]
        for a, b in ((16, 4), (32, 4), (16, 12))
    )
    # A multiply-add takes 4 cycles when the next one needs it, a load 30.
    assert products.parts - plain.parts == {"product": 16 * 4}
    assert loads.parts - plain.parts == {"cell": 8 * 30}
    assert plain.parts["product"] in range(16 * 4, 16 * 4 + 8)
    assert plain.parts["cell"] in range(4 * 30, 4 * 30 + 16)
    assert plain.total == plain.again == sum(plain.lines.values())
    assert any("multiply<products>(sum" in line for line in plain.lines)


@needs_tools
def test_a_step_of_a_cluster(compiled: dict[str, Kernel]) -> None:
    """From the first wait that is over to the first byte that the slowest warp sends."""
    parameters = np.array([step_cycles.STEPS, 0, 1], np.int32).tobytes() + bytes(12)
    launch = Launch(parameters, 64, 1024, cluster_blocks=2)
    once, twice = (
        step_cycles.measure(the(compiled, f"walk_clusterILi{waits}E"), launch, Assumptions())
        for waits in (1, 2)
    )
    chain, load, wait = 16 * 4, 30, 24
    assert once.parts["product"] in range(chain + load, chain + load + 8)
    assert twice.parts["product"] in range(2 * chain, 2 * (chain + load))
    assert once.parts["wait"] in range(wait, wait + 8)
    assert twice.parts["wait"] in range(wait, wait + 8)  # the second one is behind the chain
    for step in (once, twice):
        assert step.total <= step.sent <= step.again and step.warps == 2
        assert step.parts["publish"] > 0


# ---- The table -----------------------------------------------------------------------------------


def name_of(line: str) -> tuple[str, ...]:
    """Cell, arithmetic, pass, H and blocks."""
    return tuple(line.split()[:5])


def test_a_walks_kernel_is_found_by_name() -> None:
    names = ["12walk_forward11ClusterTeam5FixedILi4ELi16ELi8EE", "12walk_forward11ClusterTeam4Told",
             "12walk_forward9BlockTeam4Told", "13walk_backward11ClusterTeam4Told"]  # fmt: skip
    kernels = [Kernel(name, [], {}) for name in names]

    def found(kernel: str, *walk: Any) -> str:
        return step_cycles.kernel_of(kernels, step_cycles.Walk("lstm", "bf16", *walk), kernel).name

    assert found("fixed", "forward", 64, 4) == names[0]
    assert found("told", "forward", 64, 4) == names[1]
    assert found("told", "forward", 64, 1) == names[2]
    assert found("told", "backward", 64, 4) == names[3]
    with pytest.raises(SystemExit, match="expected one kernel"):
        found("told", "backward", 64, 1)


@needs_tools
def test_a_walk_has_the_kernel_that_a_plan_takes() -> None:
    def of(*walk: Any) -> str:
        program = step_cycles.Tools.find().parameters
        return step_cycles.Walk("lstm", *walk).launched(program).kernel

    assert of("bf16", "forward", 64, 4) == "fixed"
    assert of("bf16", "forward", 50, 4) == of("bf16", "forward", 64, 4, 16) == "told"
    assert of("bf16", "forward", 64, 4, 8, "told") == "told"
    assert of("tf32", "forward", 512, 16) == "fixed"
    assert of("tf32", "backward", 512, 16) == "told"  # the other needs more shared memory


def test_the_table_has_every_walk() -> None:
    _, _, *lines = step_cycles.TABLE.read_text().splitlines()
    walks = step_cycles.tabled(step_cycles.TABLED, step_cycles.TEAMS)
    assert [name_of(line) for line in lines] == [
        name_of(step_cycles.row(walk, None)) for walk in walks
    ]
    for line in lines:
        if "-" not in line:
            warps, cycles, *parts, sent, again = map(int, line.split()[5:])
            assert sum(parts) == cycles <= sent <= again and warps <= 12, line


@needs_tools
def test_the_table_is_of_these_kernels(thorough: bool) -> None:
    assert NVCC is not None and NVDISASM is not None
    tools = step_cycles.Tools(NVCC.path, NVDISASM)
    text = step_cycles.TABLE.read_text()
    if not text.startswith(f"# nvcc {tools.release},"):
        pytest.skip("another compiler, other machine code")
    assert text.startswith(step_cycles.header(tools.release))
    committed = {name_of(line): line for line in text.splitlines(keepends=True)}
    cells = step_cycles.TABLED if thorough else {"lstm": ("bf16",)}
    for walk in step_cycles.tabled(cells, step_cycles.TEAMS):
        found = step_cycles.row(walk, step_cycles.measured(walk, tools, Assumptions()))
        assert found == committed[name_of(found)], (
            f"`python tools/step_cycles.py --write` writes {step_cycles.TABLE.name} anew"
        )


@needs_tools
def test_walks_have_no_unknown_instruction(thorough: bool) -> None:
    assert NVCC is not None and NVDISASM is not None
    tools = step_cycles.Tools(NVCC.path, NVDISASM)
    cells = range(4) if thorough else (2,)  # RNN with both activations, LSTM, GRU
    for cell_at in cells:
        for arithmetic in step_cycles.ARITHMETICS if thorough else ("bf16",):
            kernels = step_cycles.kernels_of(tools.walks(cell_at, arithmetic), tools.nvdisasm)
            walks = [kernel for kernel in kernels if "walk_" in kernel.name]
            assert walks
            assert [text for kernel in walks for text in unknown(kernel)] == []
