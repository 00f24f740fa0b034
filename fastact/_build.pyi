# What setup.py writes down of a build, as _build.py.
TORCH_VERSION: str
TORCH_MINOR: str
INSTRUCTION_SETS: tuple[str, ...]
CUDA: str | None
COMPILER: str
