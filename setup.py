"""Builds fastact's two shared libraries in one ninja graph.

fastact/_ops.so      csrc/**/*.cpp and, with CUDA, csrc/cuda/*.cu: operators, autograd, kernels.
                     No Python symbol. Without CUDA csrc/ops/*/cuda.cpp is left out.
fastact/_C.<abi>.so  csrc/bindings/**/*.cpp: the Python module that calls them.

csrc/cpu/isa/*.cpp holds the kernels, free of PyTorch. Each file is compiled once per instruction
set, with -DFASTACT_ISA=<set> and the flags of that set. A file that only some sets need names them
in a comment line of its own:

    // isa: avx512 avx512_bf16

csrc/cuda/*.cu are compiled once per dtype, with -DFASTACT_TYPE=<type>.

Environment: FASTACT_BUILD_CUDA=auto|0|1, FASTACT_WERROR=1 (more warnings, and as errors: for a
compiler that is known, as CI's), TORCH_CUDA_ARCH_LIST, CXX, CXXFLAGS, LDFLAGS, MAX_JOBS.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from setuptools import Extension, setup

# The graph holds relative paths: messages name a source file, not somebody's folder.
os.chdir(Path(__file__).resolve().parent)
TORCH_RANGE = "torch>={},<{}".format(
    *tomllib.loads(Path("pyproject.toml").read_text())["tool"]["fastact"]["torch"]
)

# A source distribution fits every supported PyTorch and is made without one.
if {"sdist", "egg_info"} & set(sys.argv):
    setup(install_requires=[TORCH_RANGE])
    sys.exit()

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    sys.exit(f"fastact: the build needs PyTorch: pip install '{TORCH_RANGE}' ({error})")

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
# Narrowest first: the linker keeps the first copy of a function that several objects define, and
# that copy must run on every processor.
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
}
BUILT_SETS = tuple(INSTRUCTION_SETS) if platform.machine() in ("x86_64", "AMD64") else ("baseline",)

COMMON = ["-Icsrc", "-fPIC", "-fvisibility=hidden", "-Wall", "-DNDEBUG"]
COMMON += ["-Wextra", "-Werror"] if os.environ.get("FASTACT_WERROR") == "1" else []
KERNEL = [*COMMON, "-O3", "-ffp-contract=off", "-fno-math-errno"]
# Without -fopenmp at::parallel_for, a template in PyTorch's headers, is compiled to a serial loop.
# The linker does not get it: the library uses whichever OpenMP runtime PyTorch itself brought.
SHIM = [*COMMON, "-O2", "-fopenmp", f"-ffile-prefix-map={Path(torch.__file__).parent}=torch"]
NVCC = ["-Icsrc", "-O3", "-DNDEBUG", "--compiler-options=-fvisibility=hidden"]
NVCC += ["-DFASTACT_ISA=cuda", "--fmad=false"]  # fma stands where it is meant
CUDA_TYPES = ("float", "double", "BFloat16", "Half")
CXX = shlex.split(cpp_extension.get_cxx_compiler())
CXXFLAGS = shlex.split(os.environ.get("CXXFLAGS", ""))
LDFLAGS = shlex.split(os.environ.get("LDFLAGS", ""))
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX")  # else PyTorch asks the devices

CUDA_KERNELS = [*Path("csrc/cuda").glob("*.cu")]

RULES = """
rule compile
  command = $cmd
  description = compile $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cmd
  description = link $out
"""


def find_cuda() -> str | None:
    """The release of nvcc to build with, or None for a CPU build. No device is asked."""
    wish = os.environ.get("FASTACT_BUILD_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"fastact: FASTACT_BUILD_CUDA must be auto, 0 or 1, not {wish!r}")
    if wish == "0":
        return None
    wanted, release, missing = torch.version.cuda, None, None
    home = Path(cpp_extension.CUDA_HOME or os.devnull)
    if (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists():
        command = [home / "bin/nvcc", "--version"]
        text = subprocess.run(command, capture_output=True, text=True).stdout
        release = re.search(r"release (\d+\.\d+)|$", text)[1]
    if not wanted:
        missing = f"PyTorch {torch.__version__} is built without CUDA: install a build with CUDA"
    elif not release:
        missing = f"no CUDA toolkit: install {wanted} and set CUDA_HOME to its folder"
    elif release.split(".")[0] != wanted.split(".")[0]:
        missing = f"nvcc is {release}, PyTorch's CUDA {wanted}: set CUDA_HOME to a matching toolkit"
    elif not CUDA_KERNELS:
        missing = "csrc/cuda holds no .cu file: use a complete checkout"
    if missing and wish == "1":
        sys.exit(f"fastact: FASTACT_BUILD_CUDA=1, but {missing}.")
    if missing:
        print(f"fastact: building without CUDA ({missing}).")
    return None if missing else release


def sets_of(kernel: Path) -> list[str]:
    """The instruction sets of one kernel file: all, or those that its `// isa:` line names."""
    line = re.search(r"^// isa: (.+)$", kernel.read_text(), re.MULTILINE)
    chosen = line[1].split() if line else BUILT_SETS
    if unknown := set(chosen) - set(INSTRUCTION_SETS):
        sys.exit(f"{kernel}: '// isa:' names {sorted(unknown)}, known are {list(INSTRUCTION_SETS)}")
    return [name for name in BUILT_SETS if name in chosen]


class Build(cpp_extension.BuildExtension):
    """Gathers every command in one ninja graph, runs it, writes fastact/_build.py."""

    def build_extensions(self):
        # One folder per PyTorch, and one that lasts: pip would bring a new one each time.
        self.folder = Path("build", f"torch-{torch.__version__}-{sys.implementation.cache_tag}")
        self.graph = [f"builddir = {self.folder}", RULES]
        # PyTorch's helper wraps _compile: it adds the C++ standard and the GPU architectures, then
        # calls the function that it found there. Ours only notes the command.
        self.compiler._compile = self.note_compile
        super().build_extensions()  # calls build_extension for each library
        self.run_graph()
        for ext in self.extensions:
            target = self.get_ext_fullpath(ext.name)
            self.mkpath(os.path.dirname(target))
            # Not into the old file: a process that runs from it would crash.
            shutil.copyfile(self.folder / os.path.basename(target), target + ".new")
            os.replace(target + ".new", target)

    def build_extension(self, ext):
        objects = [self.compile("torch", source, ext.extra_compile_args) for source in ext.sources]
        if ext.name == "fastact._ops":
            kernels = {path: sets_of(path) for path in sorted(Path("csrc/cpu/isa").glob("*.cpp"))}
            for name in BUILT_SETS:
                flags = {"cxx": [*KERNEL, f"-DFASTACT_ISA={name}", *INSTRUCTION_SETS[name]]}
                objects += [
                    self.compile(name, k, flags) for k, sets in kernels.items() if name in sets
                ]
            for name in CUDA_TYPES if CUDA else ():
                flags = {"nvcc": [*NVCC, f"-DFASTACT_TYPE={name}"]}
                objects += [self.compile(name, k, flags) for k in sorted(CUDA_KERNELS)]
        library = self.folder / os.path.basename(self.get_ext_filename(ext.name))
        needs = [f"-L{path}" for path in ext.library_dirs] + [f"-l{name}" for name in ext.libraries]
        command = [*CXX, "-shared", "-o", library, *objects, *needs, *LDFLAGS]
        self.note("link", library, objects, command)

    def compile(self, subfolder, source, flags):
        obj = f"{self.folder}/{subfolder}/{source}.o"
        self.compiler._compile(obj, str(source), Path(source).suffix, [], flags, [])
        return obj

    def note_compile(self, obj, source, suffix, cc_args, flags, pp_opts):
        if suffix == ".cu":  # the helper has put nvcc in the compiler's place
            command = [*self.compiler.compiler_so, *flags]
        else:
            command = [*CXX, *flags, *CXXFLAGS]
        command += ["-MMD", "-MF", f"{obj}.d", "-c", source, "-o", obj]
        self.note("compile", obj, [source], command)

    def note(self, rule, output, inputs, command):
        cmd = shlex.join(map(str, command)).replace("$", "$$")
        self.graph.append(f"build {output}: {rule} {' '.join(inputs)}\n  cmd = {cmd}")

    def run_graph(self):
        self.mkpath(str(self.folder))
        graph = self.folder / "build.ninja"
        graph.write_text("\n".join(self.graph) + "\n")
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        if subprocess.run([sys.executable, "-m", "ninja", "-f", graph, *jobs]).returncode:
            sys.exit("fastact: the build failed; the compiler's message is above.")

    def get_ext_filename(self, name):
        # The operators serve every Python, and C++: no Python version in that library's name.
        self.no_python_abi_suffix = name.endswith("_ops")
        return super().get_ext_filename(name)

    def run(self):
        super().run()
        compiler = subprocess.run([*CXX, "--version"], capture_output=True, text=True).stdout
        facts = {
            "TORCH_VERSION": str(torch.__version__),
            "TORCH_MINOR": f"{MAJOR}.{MINOR}",
            "INSTRUCTION_SETS": BUILT_SETS,
            "CUDA": CUDA,
            "COMPILER": compiler.partition("\n")[0],
        }
        stamp = Path(self.get_ext_fullpath("fastact._ops")).with_name("_build.py")
        lines = [f"{name} = {value!r}" for name, value in facts.items()]
        stamp.write_text("\n".join(['"""Written by setup.py."""', "", *lines, ""]))


def extension(name, sources, headers, libraries):
    """One library. PyTorch's headers are system headers: their warnings are not ours."""
    flags = [flag for path in headers for flag in ("-isystem", path)]
    return Extension(
        name,
        [str(path) for path in sources],
        extra_compile_args={"cxx": [*SHIM, *flags]},
        library_dirs=cpp_extension.library_paths(DEVICE),
        libraries=libraries,
        language="c++",
    )


MAJOR, MINOR = map(int, torch.__version__.split(".")[:2])
CUDA = find_cuda()
DEVICE = "cuda" if CUDA else "cpu"
SHIM += ["-DFASTACT_CUDA"] if CUDA else []

bindings = sorted(Path("csrc/bindings").rglob("*.cpp"))
apart = [Path("csrc/cpu/isa"), Path("csrc/bindings")]
apart += [] if CUDA else Path("csrc/ops").glob("*/cuda.cpp")
sources = [p for p in sorted(Path("csrc").rglob("*.cpp")) if not {p, *p.parents} & {*apart}]
libraries = ["c10", "torch_cpu", "torch"]
if CUDA:
    libraries += ["c10_cuda", "torch_cuda", "cudart"]
headers = cpp_extension.include_paths(DEVICE)
python = sysconfig.get_path("include")
if not shutil.which(CXX[0]):
    sys.exit(f"fastact: there is no C++ compiler {CXX[0]!r}: install g++, or set CXX")
if not Path(python, "Python.h").exists():
    sys.exit("fastact: Python's C headers are missing: install python3-dev")

setup(
    install_requires=[f"torch>={MAJOR}.{MINOR},<{MAJOR}.{MINOR + 1}"],
    ext_modules=[
        extension("fastact._ops", sources, headers, libraries),
        extension("fastact._C", bindings, [*headers, python], [*libraries, "torch_python"]),
    ],
    cmdclass={"build_ext": Build.with_options(use_ninja=False)},
)
