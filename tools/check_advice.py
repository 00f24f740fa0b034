"""``python tools/check_advice.py`` runs fastact.advise on public architectures.

They come from torchvision, timm and transformers (``pip install torchvision timm transformers``),
with random weights; images are smaller than usual. All of them train well, so an alarm is either
the rule's mistake or a property of the architecture, for which EXPLAINED says why it is right.
Fails where an alarm is not explained, or an explanation explains nothing. ``--write`` puts the
result into docs/advice.md.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fastact
from fastact.advice import Advice

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "advice.md"
BATCH = 4


@dataclass(frozen=True)
class Architecture:
    """A network and what it is called with."""

    library: str
    name: str
    build: Callable[[], Callable[..., Any]]
    inputs: Callable[[], tuple[Any, ...]]
    loss: Any = None
    trains: bool = True

    def __str__(self) -> str:
        return f"{self.library}: {self.name}"


@dataclass
class Outcome:
    """What was advised in one mode."""

    architecture: Architecture
    training: bool
    advice: list[Advice]
    operations: int
    seconds: float


@dataclass(frozen=True)
class Explained:
    """Why findings of a rule are right."""

    rule: str
    architectures: frozenset[str]
    why: str


EXPLAINED = [
    Explained(
        "softmax-over-one-element",
        frozenset({"SwiftFormerForImageClassification"}),
        "its attention has one weight for each position, in a last dimension of size 1, over which "
        "softmax runs: as this implementation computes them, all are 1.",
    ),
    Explained(
        "batch-norm-without-activation",
        frozenset({"mobilevitv2_050"}),
        "each of its transformer stages ends in a 1x1 convolution and a BatchNorm, which the next "
        "stage's 1x1 convolution, or the classifier behind the mean, reads as they are.",
    ),
    Explained(
        "bias-before-batch-norm",
        frozenset(
            {"vgg16_bn", "efficientformer_l1", "hrnet_w18_small", "resnest14d"}
            | {"efficientformerv2_s0", "inception_next_atto", "rexnet_100", "starnet_s1"}
            | {"swiftformer_xs", "visformer_tiny", "SwiftFormerForImageClassification"}
        ),
        "these layers keep PyTorch's default bias before their BatchNorm, which subtracts it.",
    ),
    Explained(
        "activation-before-batch-norm",
        frozenset({"convmixer_768_32", "xcit_nano_12_p16_224"}),
        "both were published with the activation before the BatchNorm, and train well so; their "
        "BatchNorm cannot be folded into the layer before it.",
    ),
    Explained(
        "collapsing-linear-maps",
        frozenset({"retinanet_resnet50_fpn"}),
        "a feature pyramid has no activations: its 3x3 convolutions feed the heads' first 3x3 "
        "convolutions as they are. Two 3x3 convolutions are one of 5x5 with more weights, and each "
        "level is shared by two heads, so this is a choice of cost.",
    ),
    Explained(
        "collapsing-linear-maps",
        frozenset({"MobileBertForSequenceClassification"}),
        "its NoNorm layers are a scaling, so the bottleneck's dense layer and the query and key "
        "behind it are one linear map of 512 to 128.",
    ),
    Explained(
        "collapsing-linear-maps",
        frozenset({"DPTForDepthEstimation"}),
        "its reassembly stage and its head project, resample and project again with convolutions "
        "and no activation between them: a factorisation of wider ones.",
    ),
]


# ---- the architectures -------------------------------------------------------------------------

_TORCHVISION = {
    "alexnet": 96,
    "vgg11": 64,
    "vgg16_bn": 64,
    "resnet18": 96,
    "resnet50": 96,
    "resnext50_32x4d": 96,
    "wide_resnet50_2": 64,
    "densenet121": 96,
    "googlenet": 96,
    "inception_v3": 299,
    "squeezenet1_1": 96,
    "shufflenet_v2_x1_0": 96,
    "mobilenet_v2": 96,
    "mobilenet_v3_small": 96,
    "mnasnet1_0": 96,
    "efficientnet_b0": 96,
    "efficientnet_v2_s": 96,
    "regnet_y_400mf": 96,
    "convnext_tiny": 96,
    "vit_b_32": 224,
    "swin_t": 64,
    "swin_v2_t": 64,
    "maxvit_t": 224,
}
_TORCHVISION_SEGMENTATION = (
    "fcn_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)
_TORCHVISION_DETECTION = ("retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn")

_TIMM = {
    "beit_base_patch16_224": 224,
    "caformer_s18": 96,
    "coatnet_0_224": 224,
    "convnextv2_atto": 96,
    "davit_tiny": 96,
    "efficientformerv2_s0": 224,
    "eva02_tiny_patch14_224": 224,
    "fasternet_t0": 96,
    "focalnet_tiny_srf": 96,
    "inception_next_atto": 96,
    "lambda_resnet26t": 128,
    "mobilenetv4_conv_small": 96,
    "mobilevitv2_050": 128,
    "mvitv2_tiny": 224,
    "nasnetalarge": 96,
    "repvit_m0_9": 96,
    "rexnet_100": 96,
    "sequencer2d_s": 224,
    "starnet_s1": 96,
    "swiftformer_xs": 224,
    "visformer_tiny": 224,
    "cait_xxs24_224": 224,
    "coat_tiny": 224,
    "convit_tiny": 224,
    "convmixer_768_32": 64,
    "cspdarknet53": 96,
    "deit_tiny_patch16_224": 224,
    "dla34": 96,
    "dpn68": 96,
    "edgenext_xx_small": 96,
    "efficientformer_l1": 224,
    "efficientvit_b0": 96,
    "fastvit_t8": 96,
    "ghostnet_100": 96,
    "hrnet_w18_small": 96,
    "levit_128s": 224,
    "mixer_s32_224": 224,
    "mobilevit_xxs": 128,
    "nfnet_l0": 96,
    "pit_ti_224": 224,
    "poolformer_s12": 96,
    "pvt_v2_b0": 96,
    "repvgg_a0": 96,
    "res2net50_26w_4s": 96,
    "resnest14d": 96,
    "resnetv2_50": 96,
    "seresnet50": 64,
    "skresnet18": 96,
    "tf_mixnet_s": 96,
    "tinynet_e": 96,
    "vovnet39a": 96,
    "xception41": 96,
    "xcit_nano_12_p16_224": 224,
    "volo_d1_224": 224,
}

# Settings that make a network of transformers small.
_WIDTH = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
_ENCODER = {**_WIDTH, "intermediate_size": 128, "vocab_size": 200}
_DECODER = {**_ENCODER, "num_key_value_heads": 2}
_GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 200}
_T5 = {"d_model": 64, "d_ff": 128, "num_layers": 3, "num_heads": 4, "d_kv": 16, "vocab_size": 200}
_BART = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (
    ("layers", 2), ("attention_heads", 4), ("ffn_dim", 128),
)}  # fmt: skip
_DISTIL = {"dim": 64, "hidden_dim": 128, "n_layers": 3, "n_heads": 4, "vocab_size": 200}
_OPT = {**_WIDTH, "word_embed_proj_dim": 64, "ffn_dim": 128, "vocab_size": 200}
_MAMBA = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 200, "state_size": 8}
_WAV2VEC2 = {**_ENCODER, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_DPT = {**_WIDTH, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "image_size": 64}
_DEEPSEEK = {
    **_ENCODER,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
_XLNET = {"d_model": 64, "n_layer": 3, "n_head": 4, "d_inner": 128, "vocab_size": 200}
_PATCH = {"patch_size": 8}


def _tokens() -> tuple[Any, ...]:
    ids = torch.randint(3, 200, (BATCH, 24))
    ids[:, -1] = 2  # the end of a sentence, which some classifiers look for
    return (ids,)


def _tokens_to_tokens() -> tuple[Any, ...]:
    return (*_tokens(), None, *_tokens())


def _sound() -> tuple[Any, ...]:
    return (torch.randn(BATCH, 8000),)


def _image(size: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.randn(BATCH, 3, size, size),)


def _list_of_images() -> tuple[Any, ...]:
    return ([torch.rand(3, 128, 128) for _ in range(2)],)


_TRANSFORMERS: list[tuple[str, dict[str, Any], Callable[[], tuple[Any, ...]]]] = [
    ("BertForSequenceClassification", _ENCODER, _tokens),
    ("RobertaForMaskedLM", _ENCODER, _tokens),
    ("AlbertForSequenceClassification", {**_ENCODER, "embedding_size": 32}, _tokens),
    ("ElectraForSequenceClassification", {**_ENCODER, "embedding_size": 32}, _tokens),
    ("DebertaV2ForSequenceClassification", _ENCODER, _tokens),
    ("MobileBertForSequenceClassification", {"num_hidden_layers": 3, "vocab_size": 200}, _tokens),
    ("DistilBertForSequenceClassification", _DISTIL, _tokens),
    ("GPT2LMHeadModel", _GPT, _tokens),
    ("GPTNeoXForCausalLM", _ENCODER, _tokens),
    ("OPTForCausalLM", _OPT, _tokens),
    ("BloomForCausalLM", {**_GPT, "hidden_size": 64}, _tokens),
    ("LlamaForCausalLM", _DECODER, _tokens),
    ("MistralForCausalLM", _DECODER, _tokens),
    ("Qwen2ForCausalLM", _DECODER, _tokens),
    ("Gemma2ForCausalLM", {**_DECODER, "head_dim": 16}, _tokens),
    ("PhiForCausalLM", _ENCODER, _tokens),
    ("MixtralForCausalLM", {**_DECODER, "num_local_experts": 4}, _tokens),
    ("MambaForCausalLM", _MAMBA, _tokens),
    ("T5ForConditionalGeneration", _T5, _tokens_to_tokens),
    ("BartForSequenceClassification", {**_BART, "d_model": 64, "vocab_size": 200}, _tokens),
    ("DeepseekV3ForCausalLM", _DEEPSEEK, _tokens),
    ("RwkvForCausalLM", {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 200}, _tokens),
    ("FNetForSequenceClassification", _ENCODER, _tokens),
    ("LongformerForSequenceClassification", {**_ENCODER, "attention_window": 8}, _tokens),
    ("XLNetForSequenceClassification", _XLNET, _tokens),
    ("CvtForImageClassification", {}, _image(64)),
    ("SwiftFormerForImageClassification", {}, _image(224)),
    ("ViTForImageClassification", {**_WIDTH, **_PATCH, "image_size": 64}, _image(64)),
    ("Dinov2ForImageClassification", {**_WIDTH, "image_size": 56}, _image(56)),
    ("SegformerForSemanticSegmentation", {}, _image(64)),
    ("DPTForDepthEstimation", {**_DPT, **_PATCH}, _image(64)),
    ("MobileViTForImageClassification", {"image_size": 128}, _image(128)),
    ("Wav2Vec2ForCTC", _WAV2VEC2, _sound),
]


def architectures() -> Iterator[Architecture]:
    """All of them."""
    import timm
    import torchvision

    build = torchvision.models.get_model
    cross_entropy = torch.nn.CrossEntropyLoss()
    for name, size in _TORCHVISION.items():
        keywords = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        yield Architecture(
            "torchvision",
            name,
            functools.partial(build, name, **keywords),
            _image(size),
            # In training these two return more than the logits.
            loss=None if keywords else cross_entropy,
        )
    for name in _TORCHVISION_SEGMENTATION:
        backbone = functools.partial(build, name, weights_backbone=None)
        yield Architecture("torchvision", name, backbone, _image(96), loss=cross_entropy)
    for name in _TORCHVISION_DETECTION:
        detector = functools.partial(build, name, weights_backbone=None, min_size=128, max_size=160)
        yield Architecture("torchvision", name, detector, _list_of_images, trains=False)
    for name, size in _TIMM.items():
        yield Architecture(
            "timm",
            name,
            functools.partial(timm.create_model, name),
            _image(size),
            loss=cross_entropy,
        )
    for name, settings, inputs in _TRANSFORMERS:
        classifies = name.endswith("Classification")
        yield Architecture(
            "transformers",
            name,
            functools.partial(_transformer, name, settings),
            inputs,
            loss=torch.nn.CrossEntropyLoss() if classifies else None,
        )


def _transformer(name: str, settings: dict[str, Any]) -> torch.nn.Module:
    import transformers

    kind = getattr(transformers, name)
    return kind(kind.config_class(**settings))


# ---- running them ------------------------------------------------------------------------------


def advise(architecture: Architecture, training: bool) -> Outcome:
    """Builds it with random weights, and advises in one of its modes."""
    torch.manual_seed(0)
    model = architecture.build().train(training)
    start = time.perf_counter()
    with torch.no_grad():
        found = fastact.advise(model, *architecture.inputs(), loss=architecture.loss)
    seconds = time.perf_counter() - start
    return Outcome(architecture, training, list(found), found.operations, seconds)


def advise_all(chosen: Sequence[Architecture]) -> Iterator[Outcome]:
    """In evaluation mode, and in training mode where the model needs nothing more for that."""
    for architecture in chosen:
        for training in (False, True) if architecture.trains else (False,):
            outcome = advise(architecture, training)
            mode = "training" if training else "evaluation"
            print(
                f"{architecture} in {mode} mode: {outcome.operations} operations, "
                f"{len(outcome.advice)} findings, {outcome.seconds:.1f} s",
                flush=True,
            )
            yield outcome


def summary(outcomes: Sequence[Outcome]) -> dict[Architecture, Counter[str]]:
    """How many findings each rule has, by architecture; of two modes the larger number."""
    found: dict[Architecture, Counter[str]] = {}
    for outcome in outcomes:
        counts = Counter(advice.rule for advice in outcome.advice)
        found[outcome.architecture] = found.get(outcome.architecture, Counter()) | counts
    return found


def unexplained(found: Mapping[Architecture, Counter[str]]) -> list[str]:
    """Findings without an explanation, and explanations without a finding."""
    seen = {(a.name, rule) for a, counts in found.items() for rule in counts}
    known = {(name, e.rule) for e in EXPLAINED for name in e.architectures}
    known = {key for key in known if any(key[0] == a.name for a in found)}
    return [f"{name}: {rule}: not explained" for name, rule in sorted(seen - known)] + [
        f"{name}: {rule}: explained, but not found" for name, rule in sorted(known - seen)
    ]


def document(outcomes: Sequence[Outcome]) -> str:
    """docs/advice.md."""
    found = summary(outcomes)
    operations: dict[Architecture, int] = {}
    for outcome in outcomes:
        most = max(operations.get(outcome.architecture, 0), outcome.operations)
        operations[outcome.architecture] = most
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("torch", "torchvision", "timm", "transformers")
    )
    lines = [
        "# What advise says about public architectures",
        "",
        "Made by `python tools/check_advice.py --write` (`make architectures`); do not edit.",
        f"{len(found)} architectures of {versions}, with random weights, each in evaluation mode "
        "and, where it needs no targets for that, in training mode.",
        "They train well, so every finding is either a mistake of its rule, which the check",
        "refuses, or a property that the architecture has, which is explained below the table.",
        "",
        "| library | architecture | operations watched | findings |",
        "| --- | --- | ---: | --- |",
    ]
    for architecture, counts in found.items():
        listed = ", ".join(f"{rule} ({n})" for rule, n in counts.items())
        row = (architecture.library, architecture.name, str(operations[architecture]), listed)
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "## Why these are right", ""]
    lines += [f"- **{e.rule}**, {', '.join(sorted(e.architectures))}: {e.why}" for e in EXPLAINED]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2].partition(".")[0])
    parser.add_argument("names", nargs="*", help="only architectures whose name contains one")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    parser.add_argument("--verbose", action="store_true", help="print every finding")
    arguments = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
    warnings.simplefilter("ignore")
    chosen = [
        architecture
        for architecture in architectures()
        if not arguments.names or any(name in architecture.name for name in arguments.names)
    ]
    outcomes = list(advise_all(chosen))
    if arguments.verbose:
        for outcome in outcomes:
            for advice in outcome.advice:
                print(f"{outcome.architecture}: {advice.rule}: {advice.place}: {advice.message}")
    problems = unexplained(summary(outcomes))
    print(*problems, sep="\n")
    print(f"{len(chosen)} architectures, {len(problems)} findings not explained")
    if arguments.write and not problems and not arguments.names:
        DOCUMENT.write_text(document(outcomes))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
