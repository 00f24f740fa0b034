"""Converts models of torchvision, timm and transformers, and writes docs/models.md: which sites
were found, what they fused, why not more, the error and the time. Weights are random.

    python tools/models.py [--only NAME] [--out docs/models.md]

Needs torchvision, timm and transformers: pip install torchvision timm transformers
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import gc
import io
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fastact
from benchmarks.machine import cpu_model
from fastact.conversion import site
from fastact.conversion.convert import survey as survey_of
from fastact.conversion.links import LAYER_TYPES

ROUNDS = 5

TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3
maxvit_t mnasnet1_0 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18
resnet50 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn
vit_b_16 wide_resnet50_2
""".split()  # noqa: SIM905

TIMM = """
beit_base_patch16_224 cait_xxs24_224 coat_lite_tiny convit_tiny convmixer_768_32
crossvit_tiny_240 cspdarknet53 darknet53 deit_tiny_patch16_224 dla34 dm_nfnet_f0
edgenext_xx_small efficientvit_b0 eva02_tiny_patch14_224 fastvit_t8 focalnet_tiny_srf
gcvit_xxtiny ghostnet_100 hardcorenas_a hrnet_w18_small inception_next_tiny levit_128s lcnet_050
mixer_s16_224 mobileone_s0 mobilevit_xxs nest_tiny pit_ti_224 poolformer_s12 pvt_v2_b0 repvgg_a0
res2net50_14w_8s resmlp_12_224 rexnet_100 seresnet18 swin_tiny_patch4_window7_224
tf_efficientnet_lite0 tnt_s_patch16_224 twins_pcpvt_small visformer_tiny xcit_nano_12_p16_224
""".split()  # noqa: SIM905

# Class and configuration, with what makes it small.
_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 500,
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Albert": {"embedding_size": 32},
    "Bert": {},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "CodeGen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_ctx": 64},
    "ConvBert": {"embedding_size": 64},
    "DebertaV2": {},
    "DistilBert": {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
    "Electra": {"embedding_size": 32},
    "Falcon": {},
    "GPTBigCode": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "GPTNeo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "GPTNeoX": {},
    "Gemma": {"num_key_value_heads": 4, "head_dim": 16},
    "IBert": {},
    "Llama": {},
    "MPNet": {},
    "Mamba": {},
    "MegatronBert": {},
    "Mistral": {"num_key_value_heads": 2},
    "MobileBert": {"embedding_size": 32},
    "OPT": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "Phi": {},
    "Qwen2": {"num_key_value_heads": 2},
    "Roberta": {},
    "Splinter": {},
    "SqueezeBert": {"embedding_size": 64},
    "XLNet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
}


@dataclasses.dataclass
class Result:
    """One model.

    Attributes:
        layers: calls of Linear and convolutions in one forward, as the original makes them.
        fused: by what ran in the operator of a site, how many calls.
        left: why sites called a layer as written, how often.
        more: why a site fused no more than it did, how often.
        sites: chains in the source with a layer.
        methods: what was left as it is.
        error: the largest difference, relative to the largest value.
        speed: how many times as long the original takes, median of the rounds.
    """

    library: str
    name: str
    layers: int
    fused: Counter[str]
    left: Counter[str]
    more: Counter[str]
    sites: int
    methods: list[str]
    seconds: float
    error: float
    speed: float


def models() -> dict[tuple[str, str], Callable[[], tuple[torch.nn.Module, dict[str, Any]]]]:
    import timm
    import torchvision
    import transformers

    def of_torchvision(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, **options)
        size = 299 if name == "inception_v3" else 224
        return model, {"": torch.randn(1, 3, size, size)}

    def of_timm(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
        model = timm.create_model(name, pretrained=False)
        return model, {"": torch.randn(1, *model.default_cfg["input_size"])}

    def of_transformers(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
        kind = getattr(transformers, f"{name}Config")
        config = kind(**_SMALL | TRANSFORMERS[name])
        model = getattr(transformers, f"{name}Model")(config)
        return model, {"input_ids": torch.randint(0, 400, (2, 16))}

    table = {("torchvision", n): lambda n=n: of_torchvision(n) for n in TORCHVISION}
    table |= {("timm", n): lambda n=n: of_timm(n) for n in TIMM if timm.is_model(n)}
    return table | {("transformers", n): lambda n=n: of_transformers(n) for n in TRANSFORMERS}


def run(model: torch.nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(inputs[""]) if "" in inputs else model(**inputs)
    output = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]


def calls_of_layers(model: torch.nn.Module, inputs: dict[str, Any]) -> int:
    calls: list[int] = []
    hooks = [
        module.register_forward_hook(lambda *args: calls.append(1))
        for module in model.modules()
        if type(module) in LAYER_TYPES
    ]
    run(model, inputs)
    for hook in hooks:
        hook.remove()
    return len(calls)


def _randomize(model: torch.nn.Module) -> None:
    """Gives constant tensors values: a head of zeros, or statistics of 0 and 1, hide errors."""
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.is_floating_point() and tensor.numel() > 1 and tensor.min() == tensor.max():
                tensor.copy_(0.02 * torch.randn_like(tensor) if tensor.min() == 0 else tensor)
                tensor.mul_(torch.empty_like(tensor).uniform_(0.5, 1.5))
        for module in model.modules():
            running = getattr(module, "running_mean", None)
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and running is not None:
                running.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.8, 1.2)


def measure(library: str, name: str, make: Callable[[], Any]) -> Result:
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    _randomize(model)
    layers = calls_of_layers(model, inputs)
    start = time.perf_counter()
    converted = fastact.convert(model)
    seconds = time.perf_counter() - start
    survey = survey_of(copy.copy(model), True, lambda name: True)
    found = [
        one
        for entry in survey.classes
        for rewritten in entry.found.values()
        for one in rewritten.plans.values()
    ]
    fused, left, more = Counter(), Counter(), Counter()

    def note(plan: Any, layer: Any, taken: list[str] | None, reason: str | None) -> None:
        if type(layer) not in LAYER_TYPES:
            return
        if taken is None:
            left[reason or ""] += 1
        else:
            fused[" + ".join([type(layer).__name__, *taken])] += 1
            if reason:
                more[reason] += 1

    with site.observing(note):
        actual = run(converted, inputs)
    expected = run(model, inputs)
    again = run(converted, inputs)  # without anybody who observes
    error = max(
        (
            ((a - e).abs().max() / e.abs().max().clamp_min(1e-30)).item()
            for result in (actual, again)
            for a, e in zip(result, expected, strict=True)
            if e.numel()
        ),
        default=0.0,
    )
    ratios = []
    for _ in range(ROUNDS):
        times = []
        for one in (model, converted):
            start = time.perf_counter()
            run(one, inputs)
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    methods = [
        f"{method.owner.__name__}.{method.name}: {reason}"
        for entry in survey.classes
        for method, reason in entry.left.items()
    ]
    return Result(
        library,
        name,
        layers,
        fused,
        left,
        more,
        len(found),
        methods,
        seconds,
        error,
        statistics.median(ratios),
    )


def _counted(counter: Counter[str]) -> str:
    return "; ".join(f"{count} {what}" for what, count in counter.most_common()) or "-"


def report(results: list[Result], failures: dict[str, str]) -> str:
    lines = [
        "# Models converted",
        "",
        "Written by `make models` (`tools/models.py`): random weights, evaluation, a forward each;",
        "transformers' models in small configurations. Calls: of Linear and convolutions in the",
        "original's forward. The error is the largest difference of an output, relative to its",
        "largest value.",
        f"PyTorch {torch.__version__}, {cpu_model()}, {torch.get_num_threads()} threads. The ratio",
        f"is the median of {ROUNDS} rounds of a forward each, in one process and one run.",
        "",
        "| library | model | calls | fused, and with what | called as written, and why | sites |"
        " convert, s | error | eager / converted |",
        "|---|---|---:|---|---|---:|---:|---:|---:|",
    ]
    for r in results:
        lines.append(
            f"| {r.library} | {r.name} | {r.layers} | {_counted(r.fused)} | {_counted(r.left)} | "
            f"{r.sites} | {r.seconds:.2f} | {r.error:.1e} | {r.speed:.2f} |"
        )
    total = sum((r.fused for r in results), Counter())
    more = sum((r.more for r in results), Counter())
    calls, fused = sum(r.layers for r in results), sum(total.values())
    lines += [
        "",
        f"{len(results)} models; {fused} of {calls} calls ran as an operator of fastact:",
        f"{_counted(total)}.",
        "",
        f"Why no more was fused where something followed: {_counted(more)}.",
        "",
        "Methods left as they are: "
        + (
            "; ".join(sorted({f"{method} ({r.library})" for r in results for method in r.methods}))
            or "none"
        )
        + ".",
    ]
    if failures:
        lines += ["", "Models that could not be made or run, as they are: "]
        lines += [f"- {name}: {why}" for name, why in failures.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="models with this in their name")
    parser.add_argument("--out", type=Path, default=Path("docs/models.md"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results, failures = [], {}
    for (library, name), make in models().items():
        if arguments.only not in name:
            continue
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                results.append(measure(library, name, make))
            r = results[-1]
            done = f"{sum(r.fused.values())} of {r.layers}"
            print(f"{library} {name}: {done}, {r.error:.1e}, {r.speed:.2f}", flush=True)
        except Exception as error:
            failures[f"{library} {name}"] = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
            print(f"{library} {name}: {failures[f'{library} {name}']}", flush=True)
        gc.collect()
    arguments.out.write_text(report(results, failures))


if __name__ == "__main__":
    main()
