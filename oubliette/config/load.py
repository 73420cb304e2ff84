"""From the file to a ``Config``: parse, expand, modernise, validate, and check what one section says of another."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from oubliette.config.document import Document, Location, dotted, expand, read_document
from oubliette.config.legacy import modernise
from oubliette.config.models import BUILT_IN_MODELS, PROVIDER_KINDS
from oubliette.config.root import Config, RuntimeChoice, config_directory
from oubliette.errors import ConfigError

BUILT_IN_CONTAINER_TYPES = ("base",)

_LATER: dict[Location, str] = {
    ("telemetry",): "sends no traces",
    ("retention", "sessions_days"): "keeps all sessions",
    ("retention", "audit_days"): "keeps all of the audit log",
    ("server", "elicitation"): "asks no human through a client",
    ("defaults", "backup", "enabled"): "makes no backups",
    ("defaults", "container", "disk"): "does not bound a container's disk",
}
"""Keys whose part of the house is not built yet; setting one is said, not ignored in silence."""


def load_config(path: Path, env: Mapping[str, str]) -> tuple[Config, list[str]]:
    """The configuration and its warnings. Raises ConfigError about the first mistake; ``check_config`` has them all."""
    config, problems, warnings = check_config(path, env)
    if config is None:
        first = problems[0]
        if len(problems) > 1:
            first.hint = f"{first.hint} oubliette config check lists {len(problems) - 1} more.".strip()
        raise first
    return config, warnings


def check_config(path: Path, env: Mapping[str, str]) -> tuple[Config | None, list[ConfigError], list[str]]:
    """Everything that is wrong (then there is no Config) and everything that deserves a warning."""
    warnings: list[str] = []
    try:
        document = read_document(path)
        expand(document, env)
        warnings += modernise(document)
        config = Config.model_validate(document.tree, context={"home": config_directory(path)})
        config = apply_environment(config, env)
    except ConfigError as error:
        return None, [error], warnings
    except ValidationError as error:
        problems = [_explain(document, item) for item in error.errors(include_url=False, include_context=False)]
        return None, sorted(problems, key=lambda problem: problem.line), warnings
    problems = list(_dangling(document, config))
    warnings += _advice(document, config)
    return (None if problems else config), sorted(problems, key=lambda problem: problem.line), warnings


def apply_environment(config: Config, env: Mapping[str, str]) -> Config:
    """``CONTAINER_RUNTIME`` wins over the file. Raises ConfigError when it names no runtime."""
    chosen = env.get("CONTAINER_RUNTIME", "")
    if not chosen:
        return config
    known = get_args(RuntimeChoice)
    if chosen not in known:
        raise ConfigError(
            f'the environment variable CONTAINER_RUNTIME is "{chosen}", which is no runtime',
            hint=f"Use one of {', '.join(known)}.",
        )
    return config.model_copy(update={"runtime": chosen})


def schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors."""
    made = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "Oubliette configuration"}


def _explain(document: Document, item: Any) -> ConfigError:
    """One finding of pydantic as a sentence with a line. Values are not repeated: they may be secrets."""
    where: Location = tuple(item["loc"])
    kind = item["type"]
    if kind == "extra_forbidden":
        key = str(where[-1])
        parent = f"in {dotted(where[:-1])}" if len(where) > 1 else "at the top"
        return document.error(where, f'there is no key "{key}" {parent}', hint=_nearest(where))
    if kind == "missing":
        return document.error(where[:-1], f'{dotted(where[:-1])} needs a key "{where[-1]}"')
    if where and where[-1] == "[key]":
        where = where[:-1]
    text = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    found = {bool: "a switch", int: "a number", float: "a fraction", str: "text", list: "a list", dict: "an object"}
    given = "" if kind == "value_error" else f", not {found.get(type(item['input']), 'null')}"
    if kind in {"literal_error", "enum"} and isinstance(item["input"], str):
        given = f', not "{item["input"][:40]}"'
    elif not kind.endswith(("_type", "literal_error", "enum")):
        given = ""
    return document.error(where, f"{dotted(where)}: {text[0].lower()}{text[1:]}{given}")


def _fields_at(where: Location) -> dict[str, Any]:
    """The keys that may stand at ``where``, as the file spells them, with their types."""
    current: Any = Config
    for part in where:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = next((t for name, t in _fields(current).items() if name == part), None)
        else:  # a dict or a list: step to its values
            current = (get_args(current) or (None,))[-1]
        models = [c for c in (current, *get_args(current)) if isinstance(c, type) and issubclass(c, BaseModel)]
        current = models[0] if models else current
    return _fields(current) if isinstance(current, type) and issubclass(current, BaseModel) else {}


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _nearest(where: Location) -> str:
    """What was meant by an unknown key: one like it here, the same one elsewhere, or what there is here."""
    key, here = str(where[-1]), _fields_at(where[:-1])
    close = difflib.get_close_matches(key, here, 1, 0.6)
    if close:
        return f'Did you mean "{close[0]}"?'
    elsewhere = [path for path in _all_paths(Config, ()) if path[-1] == key]
    if elsewhere:
        return f'There is "{dotted(elsewhere[0])}".'
    return f"Known keys there: {', '.join(here)}." if here else ""


def _all_paths(model: type[BaseModel], prefix: Location) -> Iterator[Location]:
    for name, annotation in _fields(model).items():
        yield (*prefix, name)
        arguments = get_args(annotation)
        inner = [a for a in (annotation, *arguments) if isinstance(a, type) and issubclass(a, BaseModel)]
        named = ("<name>",) if getattr(annotation, "__origin__", None) is dict else ()
        for section in inner:
            yield from _all_paths(section, (*prefix, name, *named))


def _dangling(document: Document, config: Config) -> Iterator[ConfigError]:
    """Names that name nothing."""

    def wrong(where: Location, name: str, what: str, known: Mapping[str, Any] | tuple[str, ...]) -> ConfigError:
        close = difflib.get_close_matches(name, list(known), 1, 0.6)
        hint = (
            f'Did you mean "{close[0]}"?' if close else f"There is {', '.join(known)}." if known else "There is none."
        )
        return document.error(where, f'{dotted(where)}: "{name}" is {what}', hint=hint)

    models = {**config.models.models, **dict.fromkeys(BUILT_IN_MODELS)}
    for kind in ("providers", "github"):
        section = getattr(config.credentials, kind)
        if section.default is not None and section.default not in section.credentials:
            where: Location = ("credentials", kind, "default")
            yield wrong(where, section.default, f"none of credentials.{kind}.credentials", section.credentials)
    for where, alias in (
        (("models", "defaults", "session_model"), config.models.defaults.session_model),
        (("defaults", "agent", "model"), config.defaults.agent.model),
    ):
        if alias is not None and alias not in models:
            yield wrong(where, alias, "none of models.models", models)
    providers = config.credentials.providers.credentials
    for name, credential in providers.items():
        users = [model for model in config.models.models.values() if model.provider == name]
        needs_url = credential.provider == "openai-compatible" and not credential.base_url
        if needs_url and not (users and all(user.base_url for user in users)):
            where = ("credentials", "providers", "credentials", name)
            yield document.error(where, f'{dotted(where)}: an openai-compatible provider needs a "base_url"')
    for alias, model in config.models.models.items():
        where = ("models", "models", alias)
        if alias in BUILT_IN_MODELS:
            yield document.error(where, f'{dotted(where)}: the alias "{alias}" is built in; choose another')
        if model.provider not in providers and model.provider not in PROVIDER_KINDS:
            known = (*providers, *(kind for kind in PROVIDER_KINDS if kind not in providers))
            yield wrong((*where, "provider"), model.provider, "neither a credential nor a provider kind", known)
    types = {*config.containers, *BUILT_IN_CONTAINER_TYPES}
    if (chosen := config.defaults.container.type) not in types:
        where = ("defaults", "container", "type")
        yield wrong(where, chosen, "none of containers", tuple(sorted(types)))


def _advice(document: Document, config: Config) -> Iterator[str]:
    def at(where: Location, text: str) -> str:
        return f"{document.path}:{document.line(where)}: {dotted(where)}: {text}"

    if not config.server.loopback:
        who = "every network interface" if config.server.host in {"0.0.0.0", "::"} else config.server.host  # noqa: S104
        plain = "" if config.server.tls else ", without TLS: tokens travel readable unless a proxy encrypts"
        yield at(("server", "address"), f"listens on {who}{plain}")
    for alias, model in config.models.models.items():
        where: Location = ("models", "models", alias, "provider")
        if (model.provider in PROVIDER_KINDS or model.provider in config.credentials.providers.credentials) and (
            config.resolve_provider(model) is None
        ):
            several = [k for k, c in config.credentials.providers.credentials.items() if c.provider == model.provider]
            fix = f"name one of {', '.join(several)}" if several else "add one under credentials.providers.credentials"
            yield at(where, f'"{alias}" cannot be used: no one credential of kind {model.provider}; {fix}')
    limits: Location = ("defaults", "limits")
    for name in ("max_cost_usd", "max_cost_usd_per_day"):
        free = [alias for alias in config.usable_models() if not config.has_price(alias)]
        if free and (*limits, name) in document.lines:
            fix = f'add "cost" to {", ".join(f"models.models.{alias}" for alias in free[:5])}'
            yield at((*limits, name), f"cannot be kept for models of unknown price; {fix}")
    for where, what in _LATER.items():
        if where in document.lines and _set(document.tree, where):
            yield at(where, f"is accepted, but this version {what}")


def _set(tree: Any, where: Location) -> bool:
    for key in where:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return bool(tree)
