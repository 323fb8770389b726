"""The configuration of training: its single source, without importing torch.

The command line, recipes (recipe.py), resolved ``config.yaml`` files and Python all build these frozen dataclasses; the
text under a field is its help on the command line. Every check that needs no torch happens here, on construction.
Option names of data, models and methods are checked when training starts, against the functions that accept them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from nmlearn.errors import ConfigError, PatternError, settle
from nmlearn.maths.pattern import Pattern

# How pydantic (recipe.py) validates the dataclass and those nested in it.
STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False, "use_attribute_docstrings": True}
_MOST = 2**31 - 1  # epochs, steps, examples: what is computed from them has 64 bits
_MOST_THREADS = 4096  # more fail to start, within the library that starts them


@dataclass(frozen=True)
class DataConfig:
    """Data."""

    name: str = "fashion-mnist"
    """Data set; `nmlearn doctor` lists the names, their options and what is installed."""
    path: str | None = None
    """File or folder of a data set that does not come with nmlearn."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of this data set, e.g. train_limit, augment, mixup; `nmlearn doctor` lists them."""

    def __post_init__(self) -> None:
        settle(self, "data.")


@dataclass(frozen=True)
class ModelConfig:
    """Model."""

    name: str = "resnet8"
    """Model, e.g. resnet20, vit, gpt, timm:NAME; `nmlearn doctor` lists the names and their options."""
    weights: str | None = None
    """Safetensors file with initial weights, e.g. the model of an earlier run."""
    backbone: str | None = None
    """Safetensors file of a classifier with the initial weights of a detector's backbone, whose norms are frozen."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of this model, e.g. width; `nmlearn doctor` lists them."""

    def __post_init__(self) -> None:
        settle(self, "model.")


@dataclass(frozen=True)
class MethodConfig:
    """Sparsity."""

    name: str = "lbc"
    """Method, e.g. lbc, srste, dense; `nmlearn doctor` lists the names and their options."""
    pattern: str = "2:4"
    """N:M, N of M kept."""
    rules: dict[str, str | None] = field(default_factory=dict)
    """Glob on a module or weight -> a pattern, or null for dense; the last match wins."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of this method, e.g. end; `nmlearn doctor` lists them."""
    calibrate: int = 256
    """Training examples whose inputs a one-shot method sees, where it needs any."""

    def __post_init__(self) -> None:
        check_pattern("method.pattern", self.pattern)
        settle(self, "method.")
        _at_least("method.calibrate", self.calibrate, 1)
        for glob, pattern in self.rules.items():
            if pattern is not None:
                check_pattern(f"method.rules[{glob!r}]", pattern)


@dataclass(frozen=True)
class DistillationConfig:
    """Distillation from a teacher."""

    teacher: str | None = None
    """start for the model as it is when training begins; or the folder of a finished run, whose model may be another;
    or a safetensors file of this model. Unset: none."""
    hidden: dict[str, float] = field(default_factory=dict)
    """Glob on modules -> weight of the error of their outputs, relative to the variance of the teacher's."""
    logits: float = 0.0
    """Weight of the divergence of the logits from the teacher's."""
    temperature: float = 2.0
    """Temperature of the logits."""

    def __post_init__(self) -> None:
        settle(self, "distillation.")
        for name, value in {"logits": self.logits, **self.hidden}.items():
            _at_least(f"distillation.{name}" if name == "logits" else f"distillation.hidden[{name!r}]", value, 0)
        if not self.temperature > 0:
            where, fix = "distillation.temperature", "give a temperature, e.g. 2.0"
            raise ConfigError(where=where, given=self.temperature, wrong="must be more than 0", fix=fix)
        compares = bool(self.hidden or self.logits)
        if compares != (self.teacher is not None):
            given = (
                "hidden or logits without a teacher" if compares else f"{self.teacher} with neither hidden nor logits"
            )
            wrong = "a teacher needs something to compare, and a comparison a teacher"
            fix = "set distillation.teacher, e.g. to start, and distillation.hidden or distillation.logits, or neither"
            where = "distillation.teacher" if self.teacher is not None else "distillation.logits"
            raise ConfigError(where=where, given=given, wrong=wrong, fix=fix)


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd; first beta of adamw."""
    nesterov: bool = False
    """Nesterov momentum (sgd)."""
    weight_decay: float = 5e-4
    """Weight decay."""
    decay_norms_and_biases: bool = False
    """Also apply weight decay to vectors (norms, biases)."""
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    """Learning rate schedule after the warm-up, per step."""
    milestones: tuple[float, ...] = ()
    """Epochs at which `step` divides the learning rate by ten."""
    warmup_epochs: float = 0.5
    """Epochs of linear warm-up from 0."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy."""
    clip_norm: float | None = None
    """Maximum total gradient norm, for clipping."""

    def __post_init__(self) -> None:
        settle(self, "optim.")
        _at_least("optim.lr", self.lr, 0)
        _at_least("optim.weight_decay", self.weight_decay, 0)
        _at_least("optim.warmup_epochs", self.warmup_epochs, 0)
        _between("optim.momentum", self.momentum, 0, 1)
        _between("optim.label_smoothing", self.label_smoothing, 0, 1)
        for epoch in self.milestones:
            _at_least("optim.milestones", epoch, 0)
        if self.clip_norm is not None and not self.clip_norm > 0:
            wrong, fix = "must be above 0: by no other norm can a gradient be clipped", "give null for no clipping"
            raise ConfigError(where="optim.clip_norm", given=self.clip_norm, wrong=wrong, fix=fix)
        if (self.schedule == "step") != bool(self.milestones):
            raise ConfigError(
                where="optim.milestones",
                given=f"{list(self.milestones)} with optim.schedule {self.schedule}",
                wrong="milestones belong to the schedule step, and only to it",
                fix="set both optim.schedule to step and optim.milestones, e.g. to [8, 11], or neither",
            )
        if self.nesterov and self.momentum == 0:
            raise ConfigError(
                where="optim.nesterov",
                given="true with optim.momentum 0",
                wrong="Nesterov momentum needs a momentum",
                fix="set optim.momentum, e.g. to 0.9, or optim.nesterov to false",
            )


@dataclass(frozen=True)
class TrainConfig:
    """Training run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int = 8
    """Passes over the training data."""
    batch_size: int = 128
    """Examples per optimizer step, over all processes and accumulated parts."""
    accumulate: int = 1
    """Number of parts in which a batch is computed, to save memory."""
    eval_batch_size: int = 512
    """Examples per batch in evaluation, per process."""
    seed: int = 0
    """Determines initial weights, batches, augmentation and dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast; the weights stay float32."""
    channels_last: bool = False
    """Use the channels_last memory format for images and convolutions; faster on most machines."""
    compile: bool = False
    """Use torch.compile for the forward and backward passes of training."""
    ema: float = 0.0
    """Decay of an exponential moving average of the model, e.g. 0.999; 0 turns it off."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on."""
    threads: int = 0
    """Number of torch threads; 0 leaves it to torch."""
    log_every: int = 20
    """Steps between records in the metrics."""
    eval_every: int = 1
    """Epochs between evaluations."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 means once an epoch."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the tensorboard package)."""
    out: str | None = None
    """Run folder. The default name contains only data.name, model.name, method.name, method.pattern and seed:
    runs/DATA-MODEL-METHOD-PATTERN-sSEED. Set it for runs that differ in other settings."""
    resume: str = "auto"
    """auto resumes from the folder's checkpoint, none starts over, PATH starts from that checkpoint or run (and resumes
    from the folder's own once that is later)."""

    def __post_init__(self) -> None:
        settle(self, "")
        for name in ("epochs", "batch_size", "accumulate", "eval_batch_size", "log_every", "eval_every"):
            _between(name, getattr(self, name), 1, _MOST)
        _at_least("seed", self.seed, 0)
        _between("threads", self.threads, 0, _MOST_THREADS)
        _between("checkpoint_every", self.checkpoint_every, 0, _MOST)
        _between("ema", self.ema, 0, 1)

    @property
    def folder(self) -> str:
        """The run folder: ``out``, or a name built from what distinguishes runs."""
        if self.out is not None:
            return self.out
        pattern = "" if self.method.name == "dense" else "-" + self.method.pattern.replace(":", "of")
        model = self.model.name.replace(":", "-").replace("/", "-")
        return f"runs/{self.data.name}-{model}-{self.method.name}{pattern}-s{self.seed}"


@dataclass(frozen=True)
class SparsifyConfig:
    """From a pretrained model to a sparse one."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pattern: str = "2:4"
    """N:M, N of M kept."""
    speedup: float | None = None
    """Instead of one pattern: choose one for each layer, for this speedup of the whole model on this machine."""
    rules: dict[str, str | None] = field(default_factory=dict)
    """Glob on a module or weight -> a pattern, or null for dense; the last match wins."""
    steps: int = 200
    """Optimizer steps of fine-tuning; 0 stops after pruning and compensation."""
    lr: float = 1e-3
    """Peak learning rate of AdamW. Sparse models want more than dense ones, about three times at 1:4."""
    batch_size: int = 32
    """Examples per optimizer step."""
    dense: bool = False
    """Also fine-tune the dense model in the same way, and tell the difference."""
    accelerate: bool = True
    """Measure how much faster the packed kernels are."""
    seed: int = 0
    """Determines batches and a new classifier."""
    threads: int = 0
    """Number of torch threads; 0 leaves it to torch."""
    out: str = "sparse"
    """Folder for the sparse model."""

    def __post_init__(self) -> None:
        check_pattern("pattern", self.pattern)
        for name, least in (("steps", 0), ("batch_size", 1), ("threads", 0)):
            if getattr(self, name) < least:
                given, fix = getattr(self, name), f"give at least {least}"
                raise ConfigError(where=name, given=given, wrong=f"less than {least}", fix=fix)


@dataclass(frozen=True)
class CompareConfig:
    """Comparison of methods x patterns x seeds under one protocol."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    name: str = "compare"
    """Name of the results file."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Settings that all runs share; method name, pattern and seed are replaced."""
    methods: tuple[str, ...] = ("dense", "oneshot", "srste", "lbc")
    """Methods; dense runs once per seed."""
    patterns: tuple[str, ...] = ("2:4",)
    """Patterns."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; runs of one seed share initial weights and batches."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method -> its options, which override train.method.options."""
    jobs: int = 2
    """Number of runs in parallel, each in a process with one thread."""
    out: str | None = None
    """Folder for runs and report; default: runs/NAME, where NAME is --name."""
    results: str = "results"
    """Folder for the results file NAME.json."""

    def __post_init__(self) -> None:
        for pattern in self.patterns if isinstance(self.patterns, list | tuple) else ():
            check_pattern("patterns", pattern)
        settle(self, "")
        _at_least("jobs", self.jobs, 1)
        for seed in self.seeds:
            _at_least("seeds", seed, 0)
        for name in ("methods", "patterns", "seeds"):
            _some_once(name, getattr(self, name))
        for method in self.options:
            if method not in self.methods:
                raise ConfigError(
                    where="options",
                    given=method,
                    wrong="not one of the methods compared",
                    fix=f"name one of {', '.join(self.methods)}, or add it to methods",
                )

    @property
    def folder(self) -> str:
        """Where the comparison is written: results.json, report.html and the folders in runs/."""
        return self.out if self.out is not None else f"runs/{self.name}"


def check_pattern(where: str, given: object) -> None:
    """Refuse what is not a pattern; YAML 1.1 readers turn an unquoted ``2:4`` into a number (2 * 60 + 4).

    Raises:
        ConfigError: not text.
        PatternError: text that is not N:M with 1 <= N <= M <= 64.
    """
    if not isinstance(given, str):
        raise ConfigError(
            where=where,
            given=repr(given),
            wrong="a pattern is text of the form N:M; some YAML readers turn an unquoted 2:4 into the number 124",
            fix='quote the pattern: "2:4"',
        )
    try:
        Pattern(given)
    except PatternError as error:
        raise PatternError(where=where, given=given, wrong=error.wrong, fix=error.fix) from None


def _at_least(where: str, given: float, low: float) -> None:
    if given < low:
        raise ConfigError(where=where, given=given, wrong=f"must be at least {low}", fix="give another value")


def _between(where: str, given: float, low: float, high: float) -> None:
    if not low <= given < high:
        raise ConfigError(
            where=where, given=given, wrong=f"must be at least {low} and below {high}", fix="give another value"
        )


def _some_once(where: str, given: tuple[object, ...]) -> None:
    if not given or len(set(given)) != len(given):
        raise ConfigError(
            where=where, given=list(given), wrong="must have one entry or more, all different", fix="correct the list"
        )
