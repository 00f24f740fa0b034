"""Who is measured: one row each, how to set it up in its own process and how it does a case."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .conv import LAYOUTS
from .models import LAYOUTS as MODELS
from .operations import OPERATIONS, Problem, module_problem, problem
from .recurrent import FORMS
from .suites import Case


@dataclass(frozen=True)
class Contender:
    name: str
    setup: Callable[[], dict[str, Any]]  # imports it, returns facts; ImportError means absent
    build: Callable[[Case], Problem]
    modes: tuple[str, ...] = ("infer", "train")
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    operations: tuple[str, ...] = tuple(OPERATIONS)
    forms: tuple[str, ...] = ("functional", "module")
    ours: bool = False

    def covers(self, case, mode):
        return (
            mode in self.modes
            and case.dtype in self.dtypes
            and case.operation in self.operations
            and case.form in self.forms
        )


def setup_torch():
    import torch

    return {"version": torch.__version__}


def build_eager(case):
    import torch

    return problem(case, torch.nn.functional, torch.nn)


def build_compiled(case):
    import torch

    eager = build_eager(case)
    return eager.through(torch.compile(eager.function(), dynamic=False))


def constant_weights(case):
    """The case as a torch module: these contenders treat weights as constants."""
    import torch

    return module_problem(case, torch.nn)


def setup_freezing():
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return setup_torch()


def build_frozen(case, backend="inductor"):
    import torch

    eager = constant_weights(case)
    return eager.through(torch.compile(eager.function(), dynamic=False, backend=backend))


def setup_zentorch():
    import zentorch

    return {**setup_freezing(), "version": zentorch.__version__}


def setup_openvino():
    import openvino

    return {"version": openvino.__version__}


def build_openvino(case):
    import openvino
    import torch

    eager = constant_weights(case)
    x = eager.tensors["x"]
    model = openvino.convert_model(eager.function(), example_input=x, input=[list(x.shape)])
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
    return Problem(
        "request.infer(share_outputs=True)",
        eager.tensors,
        {"request": request},
        read=lambda result: torch.from_numpy(result[0]),
    )


def setup_onnxruntime():
    import onnxruntime
    import onnxscript  # noqa: F401  (torch.onnx.export needs it)

    return {"version": onnxruntime.__version__}


def build_onnxruntime(case):
    import onnxruntime
    import torch

    eager = constant_weights(case)
    x, y = eager.tensors["x"], eager.run()
    model = torch.onnx.export(eager.function(), (x,), dynamo=True, verbose=False).model_proto
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    binding = session.io_binding()
    binding.bind_ortvalue_input(
        session.get_inputs()[0].name, onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy())
    )
    output = onnxruntime.OrtValue.ortvalue_from_numpy(y.numpy())
    binding.bind_ortvalue_output(session.get_outputs()[0].name, output)
    return Problem(
        "session.run_with_iobinding(binding)",
        eager.tensors,
        {"session": session, "binding": binding},
        read=lambda _: torch.from_numpy(output.numpy()),
    )


def setup_fastact():
    import fastact

    info = fastact.info()
    return {name: info[name] for name in ("version", "instruction_set", "enabled")}


def build_fastact(case):
    import fastact.functional
    import fastact.nn

    return problem(case, fastact.functional, fastact.nn)


def build_converted(case):
    import torch

    import fastact

    eager = constant_weights(case)
    mode = "training" if torch.is_grad_enabled() else "inference"  # the worker follows --mode
    # No model of the suite minds how its images lie; peers lay them as they like, too.
    layout = torch.channels_last if case.operation in MODELS else None
    return eager.through(fastact.convert(eager.function(), mode=mode, memory_format=layout))


INFERENCE = ("infer",)
FP32 = ("fp32",)
# Of a whole model fastact is the conversion.
PARTS = tuple(name for name in OPERATIONS if name not in MODELS)
MODULES = tuple(name for name, operation in OPERATIONS.items() if operation.module)
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("eager", setup_torch, build_eager),
        Contender("compile", setup_torch, build_compiled),
        Contender("compile_freezing", setup_freezing, build_frozen, INFERENCE, operations=MODULES),
        Contender(
            "zentorch",
            setup_zentorch,
            lambda case: build_frozen(case, backend="zentorch"),
            INFERENCE,
            FP32,
            MODULES,
        ),
        Contender("openvino", setup_openvino, build_openvino, INFERENCE, FP32, MODULES),
        Contender("onnxruntime", setup_onnxruntime, build_onnxruntime, INFERENCE, FP32, MODULES),
        Contender("fastact", setup_fastact, build_fastact, operations=PARTS, ours=True),
        # A converted activation is fastact's module, which "fastact" measures.
        Contender(
            "fastact_converted",
            setup_fastact,
            build_converted,
            operations=("linear", "network_nested", "network_residual", *LAYOUTS, *FORMS, *MODELS),
            forms=("module",),
            ours=True,
        ),
    )
}
DEFAULT_CONTENDERS = ("eager", "compile", "fastact", "fastact_converted")
