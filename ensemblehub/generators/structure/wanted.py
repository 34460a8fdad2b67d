"""What a request's `tools` and `response_format` ask for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator

ANY_OBJECT: dict[str, Any] = {"type": "object"}
FunctionName = Annotated[str, StringConstraints(pattern=r"^[\w.:/-]{1,128}$")]


class FunctionSpec(BaseModel):
    """A function that may be called.

    Attributes:
        parameters: JSON schema of its arguments, which are an object.
        strict: whether a schema that cannot be enforced is refused; otherwise such arguments are any object.
    """

    name: FunctionName
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _takes_an_object(self) -> FunctionSpec:
        if (self.parameters or ANY_OBJECT).get("type", "object") != "object":
            raise ValueError("the arguments of a function are an object")
        return self

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """JSON schema of its arguments."""
        return ANY_OBJECT | (self.parameters or {})


class ToolSpec(BaseModel):
    """A tool: functions are the only ones."""

    type: Literal["function"]
    function: FunctionSpec


class FunctionRef(BaseModel):
    """A function by its name."""

    name: str


class ForcedTool(BaseModel):
    """The function that has to be called."""

    type: Literal["function"]
    function: FunctionRef


class NamedSchema(BaseModel):
    """A JSON schema of the answer."""

    schema_: dict[str, Any] = Field(alias="schema")


class AnswerFormat(BaseModel):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> AnswerFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("'json_schema' field must be provided")
        return self


class WantedStructure(BaseModel):
    """Tools and response format of a request, in the names of OpenAI's API."""

    tools: list[ToolSpec] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | ForcedTool = "auto"
    parallel_tool_calls: bool = True
    response_format: AnswerFormat | None = None

    @model_validator(mode="after")
    def _names_fit(self) -> WantedStructure:
        names = [tool.function.name for tool in self.tools]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two tools are called {twice[0]!r}")
        if self.named and self.named not in names:
            raise ValueError(f"tool_choice does not match any of the tools: there is no {self.named!r}")
        return self

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> WantedStructure:
        """Read the fields of a request.

        Raises:
            ValidationError: they are not understood.
        """
        return cls(**{name: value for name, value in extra.items() if value is not None})

    @property
    def free(self) -> bool:
        """Whether any text is an answer."""
        return not self.callable and self.schema_of_text is None

    @property
    def named(self) -> str:
        """The function that has to be called; empty where none is named."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, ForcedTool) else ""

    @property
    def callable(self) -> list[FunctionSpec]:
        """The functions that may be called."""
        functions = [tool.function for tool in self.tools]
        if self.named:
            return [function for function in functions if function.name == self.named]
        return [] if self.tool_choice == "none" else functions

    @property
    def several(self) -> bool:
        """Whether several functions may be called together."""
        return self.parallel_tool_calls and not self.named

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        return bool(self.callable) and self.tool_choice != "auto"

    @property
    def schema_of_text(self) -> dict[str, Any] | None:
        """JSON schema of the answer; None where any text may be."""
        given = self.response_format
        if given is None or given.type == "text":
            return None
        return given.json_schema.schema_ if given.json_schema else ANY_OBJECT
