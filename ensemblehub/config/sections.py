"""The sections of a configuration file, each a frozen pydantic model whose keys are all known.

Knows what may stand in a file, the reference toolkit's own keys included; `config.Config` is the whole of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ensemblehub import builtin, registry
from ensemblehub.schema import Sampling

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
LONGEST = 16384  # tokens of an answer whose length nobody limits
NO_EFFECT = {"padding_side": "nothing is padded", "low_cpu_mem": "weights are always loaded so"}


class Section(BaseModel):
    """A part of the file whose keys are all known; `key:` without a value is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    nullable: ClassVar[frozenset[str]] = frozenset()  # keys whose null is not their default

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {
            key: data[key]
            for key in data
            if data[key] is not None or key not in cls.model_fields.keys() - cls.nullable
        }


class _Spec(BaseModel):
    """One model or scorer; keys besides the named ones are its own options.

    Attributes:
        name: how bills and choices call it; its path, or its kind, where omitted.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
    name: str = ""
    engine: str = "hf"

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        """Keys of the reference are as if omitted where they are null."""
        keys = {
            "name",
            "engine",
            "weight",
            "path",
            "device",
            "max_memory",
            "quantization",
            "num_gpus",
            "enable_thinking",
        }
        if not isinstance(data, Mapping):
            return data
        return {key: data[key] for key in data if data[key] is not None or key not in keys}

    def model_post_init(self, _: Any) -> None:
        if not self.name:
            object.__setattr__(self, "name", str(self.extra.get("path", self.engine)))

    @property
    def extra(self) -> dict[str, Any]:
        """The keys besides the named ones, as they were given."""
        return self.model_extra or {}

    @property
    def options(self) -> dict[str, Any]:
        """Its own options; `builtin:NAME` as `path` or `tokenizer` stands for a model that ships."""
        options = {key: value for key, value in self.extra.items() if key not in NO_EFFECT}
        named = {
            key: builtin.resolve(options[key])
            for key in ("path", "tokenizer")
            if isinstance(options.get(key), str)
        }
        return options | named


class ModelSpec(_Spec):
    """One engine; without `engine`, it is chosen by the path: a `.gguf` file, a URL, or anything else."""

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        if "engine" not in self.model_fields_set:
            object.__setattr__(self, "engine", registry.engine_for(str(self.extra.get("path", ""))))


class RewardSpec(_Spec):
    """One scorer.

    Attributes:
        engine: its kind: `perplexity` (the reference's `hf_gen`), `reward_model` (`hf_rm`) or `api`.
        weight: its share in the weighted mean.
    """

    engine: str = "hf_rm"
    weight: float = Field(default=1.0, gt=0)


SpecT = TypeVar("SpecT", bound=_Spec)


def named(specs: Sequence[SpecT], what: str) -> list[SpecT]:
    """The specs, those without a name of their own numbered where they would share one."""
    taken = [spec.name for spec in specs if "name" in spec.model_fields_set]
    if len(set(taken)) < len(taken):
        raise ValueError(f"two {what} share a name: {', '.join(taken)}")
    named: list[SpecT] = []
    for spec in specs:
        name, number = spec.name, 1
        while "name" not in spec.model_fields_set and name in taken:
            number += 1
            name = f"{spec.name}-{number}"
        taken.append(name)
        named.append(spec if name == spec.name else spec.model_copy(update={"name": name}))
    return named


class StrategySpec(Section):
    """A strategy by name and its options."""

    method: str
    params: dict[str, Any] = Field(default_factory=dict)


class Generation(Section):
    """Defaults of a request.

    Attributes:
        max_tokens: tokens of the answer; null: half of the shortest context among the models, at most 16,384.
        fit_context: a prompt that leaves less room than `max_tokens` in a model's context gets a shorter answer; false
            refuses it.
        temperature: 0 is greedy.
        do_sample: false is greedy whatever the temperature; true draws, at temperature 1.0 where none is given.
        stop_strings, stop_sequences: strings that end the answer and are not part of it.
        extract_after: what is kept of the answer is the text behind the last of these marks.
    """

    nullable: ClassVar[frozenset[str]] = frozenset({"max_tokens"})

    max_tokens: int | None = Field(default=512, ge=1)
    fit_context: bool = True
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    do_sample: bool | None = None
    stop_strings: list[str] = Field(default_factory=list)
    stop_sequences: list[str] = Field(default_factory=list)
    extract_after: list[str] = Field(default_factory=list)
    seed: int | None = None

    @field_validator("stop_strings", "stop_sequences", "extract_after", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _draws(self) -> Generation:
        if self.do_sample and "temperature" in self.model_fields_set and self.temperature == 0:
            raise ValueError("do_sample: true draws tokens, which needs a temperature above 0")
        return self

    def sampling(self, context: int = 0) -> Sampling:
        """The request's sampling.

        Args:
            context: the shortest among the models, in tokens; 0 where unknown.
        """
        warm = 1.0 if self.do_sample and "temperature" not in self.model_fields_set else self.temperature
        return Sampling(
            max_tokens=self.max_tokens or min(LONGEST, max(1, context // 2) if context else LONGEST),
            fit_context=self.fit_context,
            temperature=0.0 if self.do_sample is False else warm,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            stop=(*self.stop_strings, *self.stop_sequences),
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
        )

    def extracted(self, text: str) -> str:
        """What is kept of an answer: the text behind the last mark of `extract_after`; all of it without one."""
        ends = [at + len(mark) for mark in self.extract_after if mark and (at := text.rfind(mark)) >= 0]
        return text[max(ends) :].strip() if ends else text


class Bound(Section):
    """What a request may set an option to: a number in a range, one of several values, or a mapping of such.

    Attributes:
        minimum, maximum: inclusive.
    """

    minimum: float | None = None
    maximum: float | None = None
    choices: list[str | int | float | bool] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Bound:
        if (self.choices is None) == (self.minimum is None and self.maximum is None):
            raise ValueError("give `choices`, or `minimum` and `maximum`")
        return self

    def admits(self, value: Any) -> bool:
        """Whether a value, or every value of a mapping, is within the bound."""
        if isinstance(value, Mapping):
            return bool(value) and all(self.admits(one) for one in value.values())
        if self.choices is not None:
            return isinstance(value, str | int | float) and value in self.choices
        low, high = self.minimum, self.maximum
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (low is None or value >= low) and (high is None or value <= high)

    def __str__(self) -> str:
        """For a message."""
        if self.choices is not None:
            return f"one of {', '.join(map(str, self.choices))}"
        ends = [f"at least {self.minimum:g}"] if self.minimum is not None else []
        ends += [f"at most {self.maximum:g}"] if self.maximum is not None else []
        return " and ".join(ends)


class EnsembleSection(Section):
    """Which strategies, and how text is generated.

    Attributes:
        models: names of the models that belong to it, the first one first; all by default.
        on_error: what becomes of an answer when a model fails: `fail`, or `drop` the model and go on with the others,
            behind what is already written.
        request_params: options of the aggregation that a request to a server may set, and their bounds.
        max_rounds, score_threshold, progressive: options of the aggregation that the reference writes here; those
            among `output_aggregation_params` go before them.
        reward_specs: scorers, as at top level.
    """

    models: list[str] = Field(default_factory=list)
    on_error: Literal["fail", "drop"] = "fail"
    request_params: dict[str, Bound] = Field(default_factory=dict)
    model_selection_method: str = "all"
    model_selection_params: dict[str, Any] = Field(default_factory=dict)
    output_aggregation_method: str = "single"
    output_aggregation_params: dict[str, Any] = Field(default_factory=dict)
    score_normalization: Literal["none", "minmax", "standard"] = "none"
    reward_specs: list[RewardSpec] = Field(default_factory=list)
    max_rounds: int | None = None
    score_threshold: float | None = None
    progressive: dict[str, Any] = Field(default_factory=dict)
    generation: Generation = Field(default_factory=lambda: Generation())


class ServerSection(Section):
    """Where a server listens, who may ask, and how much at a time.

    Attributes:
        host, port: loopback by default; without an API key nothing but loopback is served.
        api_key_file: API keys, one a line; a line that begins with # is none.
        api_key_env: environment variable with an API key.
        cors_origins: origins whose pages may ask; none by default.
        max_body_bytes, max_head_bytes: of a request; its head is the URL and the headers.
        max_connections: that are open at the same time, as far as there are file descriptors; beyond it the
            connection that has waited longest for its client is closed.
        head_timeout, body_timeout: seconds in which a request's head and its body must have come.
        idle_timeout: seconds after which a connection that nobody uses is closed.
        max_prompt_tokens, max_output_tokens: of one answer.
        max_answers: answers that one request may ask for, its prompts times `n`.
        max_stop: stop strings of a request.
        max_running: answers that are written at the same time.
        max_queued, max_queued_tokens: answers, and tokens of their prompts, that may wait; more are refused.
        timeout: seconds that a request may take, waiting included.
        first_token_timeout: seconds until its first token.
        keep_alive: seconds of silence after which a stream sends a comment.
        drain: seconds that answers in flight are given to end when the server is stopped.
        reasoning_fields: names under which an insight is sent; clients that know both show it twice.
        log_format: lines for a person, or one JSON object a line.
        log_prompts: whether logs may hold what was asked and answered.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key_file: UserPath | None = None
    api_key_env: str = "ENSEMBLEHUB_API_KEY"
    cors_origins: list[str] = Field(default_factory=list)
    max_body_bytes: int = Field(default=2**21, ge=1)
    max_head_bytes: int = Field(default=2**16, ge=1024)
    max_connections: int = Field(default=1024, ge=1)
    head_timeout: float = Field(default=10.0, gt=0)
    body_timeout: float = Field(default=60.0, gt=0)
    idle_timeout: float = Field(default=120.0, gt=0)
    max_prompt_tokens: int = Field(default=32768, ge=1)
    max_output_tokens: int = Field(default=LONGEST, ge=1)
    max_answers: int = Field(default=64, ge=1)
    max_stop: int = Field(default=16, ge=0)
    max_running: int = Field(default=64, ge=1)
    max_queued: int = Field(default=256, ge=0)
    max_queued_tokens: int = Field(default=1_000_000, ge=0)
    timeout: float = Field(default=600.0, gt=0)
    first_token_timeout: float = Field(default=120.0, gt=0)
    keep_alive: float = Field(default=15.0, gt=0)
    drain: float = Field(default=30.0, ge=0)
    reasoning_fields: tuple[Literal["reasoning_content", "reasoning"], ...] = ("reasoning_content",)
    log_format: Literal["text", "json"] = "text"
    log_prompts: bool = False


class DebugSection(Section):
    """What to watch.

    Attributes:
        show_input_details, show_output_details: print every request, and every answer with its bill, on standard
            error.
        enable_thinking: of the chat template, for `hf` models that do not say themselves.
        save_results: keep what a server answers, in `saves/logs/api_session_TIME.jsonl`.
    """

    show_input_details: bool = False
    show_output_details: bool = False
    enable_thinking: bool | None = None
    save_results: bool = False

    @property
    def shows(self) -> bool:
        """Whether requests or results are printed."""
        return self.show_input_details or self.show_output_details


class ModelStats(Section):
    """Statistics of the models, for a selection that uses them and names none."""

    stats_file: str | None = None
    stats: dict[str, Any] | None = None


class ExperimentSection(Section):
    """What the pipeline runs on (`collect | train | calibrate | evaluate | report`).

    Attributes:
        task: a benchmark (`docs/tasks.md`).
        data: a file or folder of a public benchmark, instead of `data/` or the hub.
    """

    task: str = "builtin_math"
    data: UserPath | None = None
    results: UserPath = Path("results/builtin_math")
    judge: Literal["mlp", "logistic", "gb", "lstm", "gru", "cnn", "attention", "ensemble"] = "mlp"
    preset: Literal["default", "paper"] = "default"
    aim: str = "max-accuracy"
    concurrency: int = Field(default=32, ge=1)
