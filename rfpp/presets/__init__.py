"""Presets: everything that sets the scale of a run, in one typed object read from a YAML file beside this module.

``load("laptop")``, ``load("my.yaml")``, ``load("laptop", {"training.steps": 800})``. A setting with a wrong
name, type or range raises an error that says what is allowed, before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rfpp.base.checks import counts, nearest
from rfpp.base.files import digest
from rfpp.engine import Machinery

FOLDER = Path(__file__).parent
DEFAULT = "laptop"

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class PresetError(ValueError):
    """A preset or override that does not exist or does not fit; the message says what is allowed."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(_Settings):
    """Which images: the digits, CIFAR-10, ``photos`` (patches of two photographs), ``images`` (a folder or archive of
    images at ``path``), or ``custom`` ones.

    ``custom`` ones come from ``function``, the import path of a function ``module:name`` that returns a
    :class:`rfpp.data.Dataset`, or are given to :class:`rfpp.experiment.Experiment`.

    A relative ``path`` is within ``RFPP_DATA``, else ``datasets/`` of the checkout. ``resolution`` and ``held_out``
    are for ``images`` and ``photos``, and ``crop`` for ``images``, as for :func:`rfpp.data.load`, but 0.05 are held out
    by default; with ``crop: null``, whole images are resized. ``count``: how many images there are, for plans that are
    made before they are fetched.
    """

    name: Literal["digits", "photos", "cifar10", "images", "custom"]
    path: str | None = None
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    resolution: Count | None = None
    crop: Literal["center", "dhariwal"] | None = "center"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    count: Count | None = None


class _Recipe(_Settings):
    """The training of a network that everything else starts from; its learning rate falls along a cosine."""

    batch: Count
    steps: Count
    lr: Positive
    warmup: Annotated[int, Field(ge=0)]
    ema: Share
    seed: Annotated[int, Field(ge=0)] = 0


class TeacherRecipe(_Recipe):
    """EDM's training of a :class:`rfpp.networks.SongUNet`, given by its arguments; the data set size and classes."""

    network: dict[str, Any]
    sigma_data: Positive = 0.5
    log_mean: Annotated[float, Field(allow_inf_nan=False)] = -1.2
    log_std: Positive = 1.2
    flip: bool = False


class FeatureRecipe(_Recipe):
    """Two small classifiers: one grades samples, the other, three quarters as wide, is the trunk of LPIPS."""

    widths: list[Count]
    dropout: Share = 0.0
    shift: Annotated[int, Field(ge=0)] = 4
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    flip: bool = False


class Teacher(_Settings):
    """Which denoiser makes the pairs: one that ships (``name``), a published one (``file``), or one trained here.

    ``file``: EDM's pickle, a file of this library or a diffusers model, by path or URL; ``sha256``: of a URL's file.
    ``network``: which of :data:`rfpp.networks.PAPER` it contains, for plans that are made before it is fetched.
    """

    name: Literal["digits-teacher"] | None = None
    file: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    network: Literal["cifar10", "afhq", "ffhq", "imagenet64"] | None = None
    train: TeacherRecipe | None = None

    @model_validator(mode="after")
    def _one(self) -> Teacher:
        if sum(value is not None for value in (self.name, self.file, self.train)) != 1:
            raise ValueError("a teacher needs exactly one of name, file, train")
        return self


class Features(_Settings):
    """The networks that images are compared in: ``shipped`` ones for digits, ones ``trained`` here, or the
    ``standard`` ones: Inception for grades and VGG-16 for LPIPS, whose weights are downloaded or come from
    ``inception`` and ``vgg`` (paths, or mirrors' addresses).
    """

    kind: Literal["shipped", "trained", "standard"] = "shipped"
    train: FeatureRecipe | None = None
    inception: str | None = None
    vgg: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Features:
        if (self.kind == "trained") != (self.train is not None):
            raise ValueError(f"kind={self.kind!r} {'needs' if self.kind == 'trained' else 'does not take'} train")
        return self


class Pairs(_Settings):
    """How many pairs the 1-rectified flow makes, and how accurately its ODE is solved: ``2 num_steps - 1`` evaluations.

    ``per_seed``: each training seed has its own training pairs, so that variation over seeds includes theirs.
    """

    train: Count
    held_out: Count
    num_steps: Annotated[int, Field(ge=2)]
    batch_size: Count
    seed: Annotated[int, Field(ge=0)]
    per_seed: bool = False


class Training(_Settings):
    """Table 7 at this scale. Configuration A trains with ``small_batch``, the others with ``large_batch``.

    ``ema_growing``: the average's decay grows up to ``ema``; in the paper it is constant.
    """

    steps: Count
    small_batch: Count
    large_batch: Count
    lr: Positive
    warmup: Annotated[int, Field(ge=0)]
    ema: Share
    ema_growing: bool = True
    dropout: Share


class RealData(_Settings):
    """Configuration G: real images inverted with ``nfe`` evaluations each, and how F is fine-tuned on them."""

    nfe: Count
    steps: Count
    lr: Positive
    warmup: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]


class ThirdRound(_Settings):
    """Another round of reflow: how many pairs the 2-rectified flow makes, with ``nfe`` Euler steps each, and for how
    many ``steps`` it is trained on them."""

    pairs: Count
    nfe: Count
    steps: Count


class Evaluation(_Settings):
    """How many samples a distance is computed from, the seed of their noise, and the time where generation starts.

    ``first_time`` is ``1 - 1e-5`` in the paper (Appendix E). A short training hardly ever draws a time that close to 1,
    so the network would have to extrapolate there; a small scale starts where the network has been trained.
    """

    samples: Annotated[int, Field(ge=2)]
    seed: Annotated[int, Field(ge=0)]
    first_time: Annotated[float, Field(ge=0.9, le=1 - 1e-5)]


class Preset(_Settings):
    """One scale of the whole book."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    summary: str
    data: Data
    teacher: Teacher
    pairs: Pairs
    training: Training
    real_data: RealData
    third_round: ThirdRound
    evaluation: Evaluation
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    features: Features = Features()
    machinery: Machinery = Machinery()

    @model_validator(mode="after")
    def _fits(self) -> Preset:
        counts("seeds", self.seeds, 0)  # a seed given twice would count as two trainings
        if self.data.function is not None and self.data.name != "custom":
            raise ValueError(f"data.function works only with data.name='custom', not with data.name={self.data.name!r}")
        takes = {"images": ("crop", "held_out"), "photos": ("held_out",)}.get(self.data.name, ())
        for name in ("crop", "held_out"):
            value, default = getattr(self.data, name), Data.model_fields[name].default
            if name not in takes and value != default:
                raise ValueError(
                    f"data.{name}={value!r}, but data.name={self.data.name!r} does not take it; leave it out"
                )
        digits = self.data.name == "digits"
        if self.data.name == "custom":  # whether a teacher fits is checked once the images exist
            return self
        if not digits and (self.teacher.name is not None or self.features.kind == "shipped"):
            raise ValueError(
                "the shipped teacher and features are for digits: other data need teacher.file or teacher.train, and "
                "features.kind trained or standard"
            )
        return self

    @property
    def option(self) -> str:
        """The option of the command line that leads to this preset; of a reader's or a changed one, what it must be."""
        return f"--preset {self.name}" if self.name in names() else "<the same --preset and --set>"

    @property
    def origin(self) -> str:
        """The preset that this one modifies: they share finished steps, which are distinguished by their inputs."""
        return self.name.partition("+")[0]


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-3`` is a number, as everywhere else."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse(text: str) -> Any:
    """The value of a piece of YAML, e.g. of ``--set training.lr=1e-3``; raises :class:`PresetError` for other text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # PyYAML raises the latter for a date such as 2024-13-01
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise PresetError(f"{text!r} is not YAML ({why}); a value such as 800, 1e-3 or [0, 1] is needed") from error


def names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All settings as dotted names."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = next((kind for kind in (field.annotation, *get_args(field.annotation)) if _is_settings(kind)), None)
        found += [prefix + name] if inner is None else _fields(inner, f"{prefix}{name}.")
    return found


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for entry in error.errors():
        name = ".".join(str(part) for part in entry["loc"])
        if entry["type"] == "extra_forbidden":
            allowed = _fields(Preset)
            close = nearest(name, allowed)
            lines.append(f"{name} is unknown{close or '; allowed: ' + ', '.join(allowed)}")
        elif entry["type"] == "missing":
            lines.append(f"{name} is missing")
        elif entry["type"] == "literal_error":
            options = entry["ctx"]["expected"]
            close = nearest(entry["input"], re.findall(r"[\w-]+", options))
            lines.append(f"{name}={entry['input']!r} is unknown; allowed: {options}{close}")
        elif entry["type"] == "value_error":  # several settings that do not fit together
            lines.append((f"{name}: " if name else "") + str(entry["ctx"]["error"]))
        else:
            lines.append(f"{name}={entry['input']!r}: {entry['msg'][0].lower()}{entry['msg'][1:]}")
    return f"{source}: " + "; ".join(lines)


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    allowed = _fields(Preset)
    if name not in allowed and not any(field.startswith(f"{name}.") for field in allowed):
        close = nearest(name, allowed)
        raise PresetError(f"setting {name!r} is unknown{close or '; allowed: ' + ', '.join(allowed)}")
    *path, last = name.split(".")
    for place, part in enumerate(path, start=1):
        values = values[part]
        if values is None:
            raise PresetError(f"setting {name!r} does not apply: {'.'.join(path[:place])} is not set in this preset")
    values[last] = value


def _read(preset: str | Path) -> Preset:
    text = str(preset)
    path = Path(text) if text.endswith((".yaml", ".yml")) else FOLDER / f"{text}.yaml"
    if path.parent == FOLDER and path.stem not in names():
        raise PresetError(
            f"preset={text!r} is unknown; allowed: {', '.join(names())}, or a .yaml file{nearest(text, names())}"
        )
    if not path.is_file():
        raise PresetError(f"preset={text!r}: there is no such file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise PresetError(f"{path} is not YAML in UTF-8: {error}") from error
    if not isinstance(values, dict):
        raise PresetError(f"{path} holds a {type(values).__name__}; a mapping of settings is needed")
    try:
        original = Preset.model_validate(values)
    except ValidationError as error:
        raise PresetError(_explain(error, str(path))) from None
    if path.parent != FOLDER and original.name in names() and original != load(original.name):
        raise PresetError(
            f"{path}: name={original.name!r} belongs to a preset of this library, whose settings are others; choose "
            "another name, because results and claims are kept under it"
        )
    return original


def load(preset: str | Path | Preset = DEFAULT, overrides: Mapping[str, Any] | None = None) -> Preset:
    """A preset by name, from a YAML file or as it is, with settings such as ``{"training.steps": 800}`` replaced.

    A changed preset is named after its origin and its changes (``laptop+3fa2b1``), so that its notebooks and claims
    are kept apart.
    Raises :class:`PresetError` for an unknown preset or setting, a value of the wrong type or range, or a file that has
    the name of a shipped preset but other settings.
    """
    original = preset if isinstance(preset, Preset) else _read(preset)
    if not overrides:
        return original
    values = {**original.model_dump(), "name": original.origin}
    for name, value in overrides.items():
        _set(values, name, value)
    try:
        changed = Preset.model_validate(values)
    except ValidationError as error:
        raise PresetError(_explain(error, f"preset {original.name!r} as changed")) from None
    if changed.model_dump(exclude={"name"}) == original.model_dump(exclude={"name"}):
        return original
    return changed.model_copy(update={"name": f"{original.origin}+{digest(changed.model_dump())[:6]}"})
