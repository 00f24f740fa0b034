"""Do the built objects and libraries hold what they may hold on every processor, and no more?"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

import fastact

ROOT = Path(__file__).parent.parent
CPP = Path(__file__).parent / "cpp"
LIBRARY = Path(fastact.__file__).with_name("_ops.so")
BUILD = ROOT / "build" / f"torch-{torch.__version__}-{sys.implementation.cache_tag}"

# Of an installed package nobody has the objects.
needs_build = pytest.mark.skipif(not BUILD.exists(), reason="no build folder beside the tests")
only_x86 = pytest.mark.skipif(
    "avx2" not in fastact.info()["instruction_sets"], reason="built for another kind of processor"
)


def run(*command, **environment):
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def output_of(*command):
    finished = run(*command)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def objects(*folders):
    found = [path for folder in folders for path in sorted((BUILD / folder).rglob("*.o"))]
    assert found
    return found


def command_for(output):
    """The command by which the build makes a file."""
    graph = (BUILD / "build.ninja").read_text()
    line = re.search(rf"^build \S*/{re.escape(output)}: .*\n  cmd = (.+)$", graph, re.MULTILINE)
    return shlex.split(line[1].replace("$$", "$"))


# ---- symbols and instructions ------------------------------------------------------------------


@needs_build
@only_x86
@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_bf16"])
def test_wide_objects_define_no_weak_symbol(isa):
    """The linker keeps one copy of a weak function for every processor: it might be this one."""
    if not (BUILD / isa).exists():
        pytest.skip(f"no kernel is built for {isa} alone")
    for path in objects(isa):
        defined = [line.split() for line in output_of("nm", "--defined-only", path).splitlines()]
        assert len(defined) > 10
        weak = [name for *_, kind, name in defined if kind in "WVuU" or kind == "C"]
        assert not weak, f"{path.name}: {weak[:5]}"


# What a set may not contain: registers of wider sets, and their encodings.
BEYOND = {
    "torch": r"%[yz]mm|%k[0-7]|\bv[a-z]+\d*[a-z]* .*%xmm",
    "baseline": r"%[yz]mm|%k[0-7]|\bv[a-z]+\d*[a-z]* .*%xmm",
    "avx2": r"%zmm|%k[0-7]|%[xy]mm(?:1[6-9]|2\d|3[01])",
}


@needs_build
@only_x86
@pytest.mark.parametrize("folder", BEYOND)
def test_objects_hold_no_instruction_of_a_wider_set(folder):
    beyond = re.compile(BEYOND[folder])
    for path in objects(folder):
        lines = output_of("objdump", "-d", "--no-show-raw-insn", path).splitlines()
        assert len(lines) > 20
        found = [line for line in lines if beyond.search(line)]
        assert not found, f"{path.name}: {found[:3]}"


@needs_build
@only_x86
@pytest.mark.parametrize("isa, register", [("avx2", "%ymm"), ("avx512", "%zmm")])
def test_wide_objects_use_their_registers(isa, register):
    """Otherwise the test above could not find them either."""
    for path in objects(isa):
        assert output_of("objdump", "-d", "--no-show-raw-insn", path).count(register) > 1000


def test_operators_know_no_python():
    undefined = output_of("nm", "-D", "--undefined-only", LIBRARY).split()
    assert any("TORCH" in name or "torch" in name for name in undefined)
    assert not [name for name in undefined if re.match(r"_?Py[A-Z_]", name)]
    assert not [name for name in undefined if "pybind11" in name or "THP" in name]


def test_libraries_need_what_pytorch_brings():
    needed = re.findall(r"NEEDED.*\[(.+)\]", output_of("readelf", "-d", LIBRARY))
    assert any(name.startswith("libtorch_cpu") for name in needed)
    # The OpenMP runtime is PyTorch's: a second one would bring a second pool of threads.
    assert not [name for name in needed if "omp" in name or "python" in name]


def test_no_path_of_the_building_machine():
    """Also none of PyTorch's folder, which assertions in its headers would bring along."""
    for library in [LIBRARY, *LIBRARY.parent.glob("_C*.so")]:
        content = library.read_bytes()
        for path in (ROOT, Path(torch.__file__).parent, Path.home()):
            assert bytes(path) + b"/" not in content, f"{library.name} contains {path}"


def test_one_openmp_runtime():
    program = """
import torch, fastact
torch.set_num_threads(2)
x = torch.randn(1 << 20)
assert torch.allclose(fastact.functional.tanh(x), torch.tanh(x))
print(*{line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split()[-1]})
"""
    runtimes = output_of(sys.executable, "-c", program).split()
    assert len(runtimes) == 1, runtimes


# ---- without Python, without AVX ---------------------------------------------------------------


def linked_with_torch():
    paths = cpp_extension.library_paths()
    where = [flag for path in paths for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    return [*where, "-ltorch", "-ltorch_cpu", "-lc10"]


@needs_build
def test_cpp_program(tmp_path):
    [standard] = [
        word for word in command_for("csrc/bindings/module.cpp.o") if word.startswith("-std=")
    ]
    program = tmp_path / "load_ops"
    output_of(
        *shlex.split(cpp_extension.get_cxx_compiler()),
        standard,
        "-O1",
        *(word for path in cpp_extension.include_paths() for word in ("-isystem", path)),
        CPP / "load_ops.cpp",
        *linked_with_torch(),
        *("-ldl", "-o", program),
    )
    output = output_of(program, LIBRARY)
    assert fastact.info()["instruction_set"] in output
    assert output.count("right") == 4, output


@needs_build
def test_the_matrix_product_as_a_library(tmp_path):
    """What no operator asks of it yet: channels along the rows of the result."""
    compile_ = command_for("csrc/cpu/gemm/gemm.cpp.o")
    parts = "isa/.*|gemm/gemm|stages|dispatch|memory|parallel|softmax_rows"
    linked = [
        word for word in command_for("_ops.so") if re.search(rf"/csrc/cpu/({parts})\.cpp\.o$", word)
    ]
    program = tmp_path / "gemm_library"
    output_of(
        *compile_[: compile_.index("-MMD")],
        CPP / "gemm_library.cpp",
        *linked,
        *linked_with_torch(),
        *("-o", program),
    )
    assert output_of(program) == "840 products right, by 4 algorithms\n"


AVX512 = "avx2 fma f16c avx512f avx512bw avx512vl avx512dq"
PROCESSORS = [
    # features, the set that is chosen, a set that is refused with the sets that there are
    ("", "baseline", ("avx2", "baseline")),
    ("avx2", "baseline", None),  # without fused multiply-add
    ("avx2 fma f16c", "avx2", ("avx512", "baseline, avx2")),
    ("avx2 fma f16c avx512f avx512bw", "avx2", None),  # the first processors with AVX-512
    (AVX512, "avx512", None),
]
# Loads the library that the argument names and runs every operator.
LOADED = """
import sys, torch
torch.ops.load_library(sys.argv[1])
fastact = torch.ops.fastact
print(fastact.instruction_set())
x, count = torch.linspace(-4, 4, 1000), 0
shapes = {"linear": (25, 40), "pack_linear": (25, 40), "pack_conv": (25, 8, 5)}
for schema in torch._C._jit_get_all_schemas():
    if schema.name.startswith("fastact::") and [str(a.type) for a in schema.arguments][:1] == [
        "Tensor"
    ] and all(a.has_default_value() for a in schema.arguments[1:]):
        name = schema.name.removeprefix("fastact::")
        argument = x.view(shapes.get(name, x.shape)).clone()
        assert getattr(fastact, name)(argument).isfinite().all(), name
        count += 1
w = x.view(25, 40)
for dtype in (torch.float32, torch.bfloat16):
    y = fastact.linear_packed(w.to(dtype), fastact.pack_linear(w.to(dtype)), w.to(dtype))
    torch.testing.assert_close(y, torch.nn.functional.linear(w, w).to(dtype), rtol=0.02, atol=0.1)
assert count > 40
torch.testing.assert_close(fastact.tanh(x), torch.tanh(x))
"""


@needs_build
@only_x86
def test_processors_with_less(tmp_path):
    """The same library, told that the processor lacks something, chooses a set that it has."""
    sets = fastact.info()["instruction_sets"]
    real = sets[: sets.index(fastact.info()["instruction_set"]) + 1]
    fake, library = tmp_path / "dispatch.o", tmp_path / "_ops.so"
    compile_it = command_for("csrc/cpu/dispatch.cpp.o")
    compile_it[compile_it.index("-o") + 1] = str(fake)
    compile_it[compile_it.index("-MF") + 1] = str(tmp_path / "dispatch.d")
    output_of(*compile_it, "-include", CPP / "fake_processor.h")
    link_it = command_for("_ops.so")
    link_it[link_it.index("-o") + 1] = str(library)
    output_of(*(fake if word.endswith("/cpu/dispatch.cpp.o") else word for word in link_it))

    program = (sys.executable, "-c", LOADED, library)
    for features, chosen, refusal in PROCESSORS:
        if chosen != "baseline" and chosen not in real:
            continue  # its kernels would end in an illegal instruction here
        finished = run(*program, FAKE_PROCESSOR=features, FASTACT_ISA="")
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.strip() == chosen, features
        if refusal:
            isa, available = refusal
            refused = run(*program, FAKE_PROCESSOR=features, FASTACT_ISA=isa)
            message = refused.stderr.strip().splitlines()[-1]
            assert refused.returncode == 1, refused.stderr
            assert message == (
                "RuntimeError: fastact: FASTACT_ISA: expected one that this processor has "
                f"({available}), got {isa}"
            )
