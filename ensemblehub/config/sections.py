"""The sections of a configuration file: frozen pydantic models that refuse unknown keys."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ensemblehub import builtin, registry
from ensemblehub.schema import Cost, Sampling

LONGEST = 16384  # tokens of an answer without a limit
Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Seconds = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Amount = Annotated[float, Gt(0)]
Texts = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


def _no_url(value: Any) -> Any:
    if "://" in str(value):
        raise ValueError("expected a path, not a URL")
    return value


UserPath = Annotated[Path, BeforeValidator(_no_url), AfterValidator(Path.expanduser)]


class Section(BaseModel):
    """A part of the file that refuses unknown keys; `key:` without a value is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
    nullable: ClassVar[frozenset[str]] = frozenset()  # keys for which null is a value of its own

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        return _without_nulls(data, cls.model_fields.keys() - cls.nullable)


def _without_nulls(data: Any, keys: Set[str]) -> Any:
    """The mapping without those of `keys` that are null; anything else as it is."""
    if not isinstance(data, Mapping):
        return data
    return {key: value for key, value in data.items() if value is not None or key not in keys}


class Spec(BaseModel):
    """One model or scorer; keys besides the named ones are its own options.

    Attributes:
        name: Name in usage and events; its path, or its engine, where omitted.
        engine: Which engine runs it.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=(), allow_inf_nan=False)
    omitted_if_null: ClassVar[frozenset[str]] = frozenset(
        {"path", "device", "max_memory", "quantization", "num_gpus", "enable_thinking"}
    )  # the reference toolkit's options, which it may write as null
    name: str = ""
    engine: str = "hf"

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        return _without_nulls(data, cls.model_fields.keys() | cls.omitted_if_null)

    def model_post_init(self, _: Any) -> None:
        if not self.name:
            object.__setattr__(self, "name", str(self.extra.get("path", self.engine)))

    @property
    def extra(self) -> dict[str, Any]:
        """The remaining keys, unchanged: options of the engine or scorer."""
        return self.model_extra or {}

    @property
    def options(self) -> dict[str, Any]:
        """Its own options, with `builtin:NAME` as `path` or `tokenizer` resolved."""
        paths = {key: self.extra.get(key) for key in ("path", "tokenizer")}
        resolved = {key: builtin.resolve(path) for key, path in paths.items() if isinstance(path, str)}
        return self.extra | resolved


class ModelSpec(Spec):
    """One engine; without `engine`, it is chosen by the path: a `.gguf` file, a URL, or anything else.

    Attributes:
        swap: Whether it is loaded and unloaded by turns with the other models that swap.
    """

    swap: bool = False

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        if "engine" not in self.model_fields_set:
            object.__setattr__(self, "engine", registry.engine_for(str(self.extra.get("path", ""))))


class RewardSpec(Spec):
    """A scorer.

    Attributes:
        engine: `perplexity` (the reference's `hf_gen`), `reward_model` (`hf_rm`) or `api`.
        weight: Weight in the mean of all scorers.
    """

    engine: str = "hf_rm"
    weight: Annotated[float, Gt(0)] = 1.0


class StrategySpec(Section):
    """A strategy by name and its options."""

    method: str
    params: dict[str, Any] = Field(default_factory=dict)


class Generation(Section):
    """Defaults of a request.

    Attributes:
        max_tokens: tokens of the answer; null: half of the shortest context among the models, at most 16,384.
        fit_context: a prompt that leaves less room than `max_tokens` in a model's context gets a shorter
            answer; false refuses it.
        temperature: 0 is greedy.
        do_sample: false is greedy whatever the temperature; true draws, at temperature 1.0 where none is
            given.
        stop_strings, stop_sequences: Strings that end the answer and are not part of it.
        extract_after: Only the text after the last of these strings is kept of an answer.
    """

    nullable: ClassVar[frozenset[str]] = frozenset({"max_tokens"})

    max_tokens: Positive | None = 512
    fit_context: bool = True
    temperature: Annotated[float, Ge(0)] = 0.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    top_k: Count = 0
    min_p: Share = 0.0
    repetition_penalty: Annotated[float, Gt(0)] = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    do_sample: bool | None = None
    stop_strings: Texts = Field(default_factory=list)
    stop_sequences: Texts = Field(default_factory=list)
    extract_after: Texts = Field(default_factory=list)
    seed: int | None = None

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
        """The text of an answer after the last mark of `extract_after`; all of it if there is none."""
        ends = [at + len(mark) for mark in self.extract_after if mark and (at := text.rfind(mark)) >= 0]
        return text[max(ends) :].strip() if ends else text


class Bound(Section):
    """Values that a request may set an option to: a range, a list of choices, or mappings of such values.

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
        """Return whether a value, or every value of a mapping, is within the bound."""
        if isinstance(value, Mapping):
            return bool(value) and all(map(self.admits, value.values()))
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


class Budget(Section):
    """A limit of spending, of every model together; what is not named has no limit.

    Attributes:
        usd: US dollars, where prices are known.
        tflops: 10^12 floating-point operations.
        tokens: Tokens computed: read without a cache, or written.
    """

    usd: Amount | None = None
    tflops: Amount | None = None
    tokens: Positive | None = None

    def reached(self, spent: Cost) -> str | None:
        """The first limit that is reached, with what was spent, for a message; None if none is."""
        known = spent.prompt_tokens - spent.cached_tokens + spent.completion_tokens
        amounts = {"US dollars": spent.usd, "TFLOPs": spent.flops / 1e12, "tokens": known}
        for (unit, amount), limit in zip(amounts.items(), (self.usd, self.tflops, self.tokens), strict=True):
            if limit is not None and amount >= limit:
                return f"{amount:.6g} of {limit:.6g} {unit}"
        return None

    def within(self, other: Budget) -> Budget:
        """The lower of both limits, each."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in Budget.model_fields}
        given = {name: [limit for limit in pair if limit is not None] for name, pair in pairs.items()}
        return Budget.model_construct(**{name: min(limits, default=None) for name, limits in given.items()})


class EnsembleSection(Section):
    """Which models and strategies, and how text is generated.

    Attributes:
        models: Names of the ensemble's models, in its order; all by default.
        on_error: `fail`, or `drop` a model that fails and continue the answer with the others.
        certificate: Folder with the `certificate.json` that the ensemble is compared with (docs/judges.md),
            relative to the file's folder, else to the working directory; by default the folder of a Tandem's judge.
        request_params: Options of the aggregation that a request to a server may set, and their bounds.
        request_members: Models that a request to a server may leave out or require; all by default, [] for none.
        model_selection_method, model_selection_params: The selection strategy and its options.
        output_aggregation_method, output_aggregation_params: The aggregation strategy and its options.
        score_normalization: How the scorers' scores are scaled before their mean is taken.
    """

    models: list[str] = Field(default_factory=list)
    on_error: Literal["fail", "drop"] = "fail"
    certificate: str | None = None
    request_params: dict[str, Bound] = Field(default_factory=dict)
    request_members: list[str] | None = None
    model_selection_method: str = "all"
    model_selection_params: dict[str, Any] = Field(default_factory=dict)
    output_aggregation_method: str = "single"
    output_aggregation_params: dict[str, Any] = Field(default_factory=dict)
    score_normalization: Literal["none", "minmax", "standard"] = "none"
    generation: Generation = Field(default_factory=lambda: Generation())


class ServerSection(Section):
    """Address, access and limits of a server.

    Attributes:
        host, port: Address to listen on; without an API key only loopback addresses are served.
        api_key_file: File with one API key per line; lines that begin with # are ignored.
        api_key_env: Environment variable with an API key.
        cors_origins: Origins whose pages may send requests; none by default.
        max_body_bytes, max_head_bytes: Maximum size of a request's body, and of its URL and headers.
        max_connections: Maximum number of open connections, bounded by the file descriptors; beyond it the
            connection that has waited longest for its client is closed.
        head_timeout, body_timeout: Seconds in which a request's head and its body must arrive.
        idle_timeout: Seconds after which an unused connection is closed.
        max_prompt_tokens, max_output_tokens: Maximum number of tokens of one prompt and of one answer.
        max_answers: Maximum number of answers of one request, its prompts times `n`.
        max_stop: Maximum number of stop strings of a request.
        max_running: Maximum number of answers generated at the same time.
        max_queued, max_queued_tokens: Maximum number of waiting answers, and of the tokens of their prompts;
            more are refused.
        timeout: Seconds that a request may take, with the time in the queue.
        first_token_timeout: Seconds until its first token.
        keep_alive: Seconds of silence after which a stream sends a comment.
        drain: Seconds that running answers have to end when the server is stopped.
        stored_responses, stored_bytes: Maximum number and size of the conversations that `/v1/responses` keeps
            in memory for `previous_response_id`; 0 of them by default.
        conversations: Maximum number of conversations that are remembered with the models of their first turn.
        request_budget: What one request may spend at most; a request may ask for less.
        key_budget, key_budget_file: What each API key may spend in a day (UTC), and the SQLite file that counts it.
        on_drift: What answers where a certificate does not hold (docs/judges.md): `tandem`, the strategy all the
            same, with a warning, or its `mentor` alone (of a strategy without one, the file's largest model).
        reasoning_fields: Fields in which an insight is sent; clients that know both show it twice.
        board: Folders that `ensemblehub bench` wrote, whose results the page's board shows.
        ray: Fields of Ray Serve LLM's `LLMConfig` by model, for `serve --ray`.
        log_format: Text, or one JSON object per line.
        log_prompts: Whether logs may contain prompts and answers.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Ge(0), Le(65535)] = 8000
    api_key_file: UserPath | None = None
    api_key_env: str = "ENSEMBLEHUB_API_KEY"
    cors_origins: list[str] = Field(default_factory=list)
    max_body_bytes: Positive = 2**21
    max_head_bytes: Annotated[int, Ge(1024)] = 2**16
    max_connections: Positive = 1024
    head_timeout: Seconds = 10.0
    body_timeout: Seconds = 60.0
    idle_timeout: Seconds = 120.0
    max_prompt_tokens: Positive = 32768
    max_output_tokens: Positive = LONGEST
    max_answers: Positive = 64
    max_stop: Count = 16
    max_running: Positive = 64
    max_queued: Count = 256
    max_queued_tokens: Count = 1_000_000
    timeout: Seconds = 600.0
    first_token_timeout: Seconds = 120.0
    keep_alive: Seconds = 15.0
    drain: Annotated[float, Ge(0)] = 30.0
    stored_responses: Count = 0
    stored_bytes: Positive = 2**26
    conversations: Count = 1024
    request_budget: Budget = Field(default_factory=lambda: Budget())
    key_budget: Budget = Field(default_factory=lambda: Budget())
    key_budget_file: UserPath = Path("saves/key_budgets.sqlite")
    on_drift: Literal["tandem", "mentor"] = "tandem"
    reasoning_fields: tuple[Literal["reasoning_content", "reasoning"], ...] = ("reasoning_content",)
    board: list[UserPath] = Field(default_factory=list)
    ray: dict[str, dict[str, Any]] = Field(default_factory=dict)
    log_format: Literal["text", "json"] = "text"
    log_prompts: bool = False


class DebugSection(Section):
    """Debugging output.

    Attributes:
        show_input_details, show_output_details: Print every request, and every answer with its usage, on
            standard error.
        save_results: Append a server's answers to `saves/logs/api_session_TIME.jsonl`.
    """

    show_input_details: bool = False
    show_output_details: bool = False
    save_results: bool = False

    @property
    def shows(self) -> bool:
        """Whether requests or results are printed."""
        return self.show_input_details or self.show_output_details


class ExperimentSection(Section):
    """What the pipeline runs on (`collect | train | calibrate | evaluate | report`).

    Attributes:
        task: A benchmark (`docs/tasks.md`).
        data: A file or folder of a public benchmark, instead of `data/` or the hub.
        prompt: How its questions are put: `plain`, or a profile of `docs/tasks.md` (`official`).
        results: Folder for everything that the pipeline writes.
        judge, preset: Kind of judge, and how it is trained; the rules take the median of the training
            questions as their limit.
        aim: What the thresholds are chosen for: `max-accuracy`, `budget:AMOUNT` or `min-accuracy:SHARE`.
        concurrency: Maximum number of questions in progress.
    """

    task: str = "builtin_math"
    data: UserPath | None = None
    prompt: str = "plain"
    results: UserPath = Path("results/builtin_math")
    judge: Literal[
        "mlp", "logistic", "gb", "lstm", "gru", "cnn", "attention", "ensemble", "entropy", "perplexity"
    ] = "mlp"
    preset: Literal["default", "paper"] = "default"
    aim: str = "max-accuracy"
    concurrency: Positive = 32
