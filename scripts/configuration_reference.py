"""Prints docs/configuration.md: the reference of every key, out of the schema itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from config.descriptions import descriptions
from config.plan import effects
from config.schema import Address, Config, Model
from config.shape import Kind, Shape, choices, shape_of_field
from config.written import value_written

HEAD = """\
# Configuration

<!-- Made by scripts/configuration_reference.py (`make docs`); change config/schema.py instead. -->

`holdfast run -c holdfast.yaml` reads one file, YAML or JSON. `holdfast check -c holdfast.yaml` says
everything that is wrong with it, each mistake on a line of its own, and exits with 2:

```text
holdfast.yaml:7:14: services.chat.balance: 'leastconn' is not one of … (did you mean 'least_conn'?)
holdfast.yaml:12:14: routes[0].service: there is no service 'chta' (did you mean 'chat'?)
env HOLDFAST_SHUTDOWN: shutdown: 'soon' is not a duration; write it as 250ms, 30s, 5m or 1h
```

`holdfast schema` prints the JSON Schema, which editors use to complete and to check.
[deploy/holdfast.example.yaml](../deploy/holdfast.example.yaml) is a whole file to start from; the
smallest one that does something is

```yaml
services: {shop: {instances: ["10.0.0.1:80", "10.0.0.2:80"]}}
routes: [{service: shop}]
```

## How values are written

| kind | written as | |
|---|---|---|
| duration | `250ms` `30s` `5m` `1h30m` `7d` | a plain number is seconds |
| size | `512` `16KiB` `1MiB` `10MB` | a plain number is bytes; `kB`, `MB`, `GB` count in thousands |
| share | `20%` `0.2` | from 0 to 1 |
| rate | `100/s` `30/m` `5/h` | a plain number is per second |
| address | `:8080` `127.0.0.1:9900` `[::1]:80` `name:80` `unix:/run/x.sock` | no host: all interfaces |

Values need no quotes unless YAML itself wants them: what looks like a number or like `yes` is text
where text is wanted (`version: 1.10` stays `1.10`). A key without value keeps its default. `none`
switches off what can be off. Unknown keys, keys given twice and YAML tags are errors. Anchors,
aliases and `<<` work.

## Variables

| in a value | becomes |
|---|---|
| `${NAME}` | the environment variable; an error when it is not set |
| `${NAME:-default}` | the default when it is not set or empty; it may contain variables |
| `$${` | the characters `${` |

A value that is nothing but a variable and turns out empty counts as not given. Messages show
`${NAME}`, never what was in it.

## Where values come from

The command line wins over the environment, the environment over the file, the file over the
defaults.

Every key can be set by an environment variable: `HOLDFAST_`, then the path in capitals with `__`
between its parts, for example `HOLDFAST_ADMIN__ADDRESS=:9900`,
`HOLDFAST_SERVICES__CHAT__DRAIN__TIMEOUT=10s` or `HOLDFAST_LISTEN__0__ADDRESS=:80` (entries of lists
count from 0; the next number adds one). `_` also stands for `-` and `.` in names that the file has.
Lists of plain values are separated by commas
(`HOLDFAST_TRUSTED_PROXIES=10.0.0.0/8,192.168.0.0/16`); whole lists and sections may be given in
brackets or braces as in YAML. `${…}` means nothing in these values. An unknown name is an error;
`HOLDFAST_ADMIN` and `HOLDFAST_ADMIN_TOKEN` belong to the command line, `HOLDFAST_AGENT_TOKEN` to
the chat, and the variables that Kubernetes makes for a Service called `holdfast` are left alone.

## Reload

A changed file, SIGHUP or `holdfast reload` loads everything again. With any mistake nothing changes
and the reason is logged; with no difference nothing happens. `holdfast plan -c FILE` says
beforehand what would change, and what each change does to a running proxy. No reload closes a
connection whose route, service and instance still exist. The first row that fits decides:

| key | a change |
|---|---|
"""

EXAMPLES = """\
## Examples

A sidecar beside one application, which clients reach through the PROXY protocol:

```yaml
listen: [{address: ":8080", proxy_protocol: true}]
services:
  app:
    instances: ["unix:/run/app.sock"]
    health: {path: /readyz}
routes: [{service: app}]
```

A canary that gets five of a hundred clients, and a mirror for a tenth of the reads:

```yaml
registry: {kind: consul, address: "http://127.0.0.1:8500", token: ${CONSUL_TOKEN:-}}
services:
  shop: {health: {path: /healthz}, slow_start: 30s}
routes:
  - {name: reads, match: {path: /api, method: GET}, service: shop, mirror: {to: canary, share: 10%}}
  - {name: shop, service: shop, split: {stable: 95, canary: 5}}
```

Sticky WebSockets that survive the restart of what is behind them:

```yaml
registry: {kind: embedded}
services:
  chat:
    sticky: {by: cookie, name: hf_chat, key: ${STICKY_KEY}}
    websocket: {on_drain: migrate, replay: true, ping: 20s}
    drain: {timeout: 30s, jitter: 5s}
routes: [{match: {path: /ws}, service: chat}]
```
"""


_PLAIN_TYPES = {int: "whole number", bool: "`true` · `false`", Address: "address"}


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the reference."""

    path: str
    model: type[Model]


def sections() -> Iterator[Section]:
    """Every section of the configuration, each before those inside it."""
    waiting = [Section("", Config)]
    while waiting:
        section = waiting.pop(0)
        yield section
        below = []
        for name, field in section.model.model_fields.items():
            shape, path = shape_of_field(field), f"{section.path}.{name}".lstrip(".")
            while shape.kind in (Kind.LIST, Kind.MAP):
                path += "[]" if shape.kind is Kind.LIST else ".NAME"
                shape = shape.entry
            below += [Section(path, model) for model in shape.models]
        waiting[:0] = below


def type_text(shape: Shape, field: FieldInfo | None = None) -> str:
    """How the type of a value reads in a table."""
    words = choices(shape)
    match shape.kind:
        case Kind.SECTION:
            return "section"
        case Kind.LIST:
            return f"list of {plural(type_text(shape.entry))}"
        case Kind.MAP:
            return f"name: {type_text(shape.entry)}"
    if words:
        return " · ".join(f"`{word}`" for word in words)
    if shape.quantity is not None:
        return shape.quantity.name + bounds(field)
    if shape.secret:
        return "text, secret"
    return {int: "whole number", bool: "`true` · `false`", Address: "address"}.get(
        shape.type, "text"
    ) + bounds(field)


def plural(text: str) -> str:
    """`sections`, `texts`; words to choose from stay as they are."""
    return text if text.startswith("`") or text == "text" else f"{text}s"


def bounds(field: FieldInfo | None) -> str:
    """` from 1`, ` from 0 to 65535`, ` above 0`, or nothing."""
    text = ""
    for limit in () if field is None else field.metadata:
        match limit:
            case Ge(ge=least):
                text += f" from {least}"
            case Gt(gt=least):
                text += f" above {least}"
            case Le(le=most):
                text += f" to {most}"
    return text


def default_text(field: FieldInfo) -> str:
    """The default as people would write it."""
    shape = shape_of_field(field)
    if field.is_required():
        return "required"
    value = value_written(field.get_default(call_default_factory=True), shape, brief=True)
    if value is None:
        return "none"
    if shape.kind is Kind.SECTION:
        return ""
    if isinstance(value, list) and shape.entry.kind is Kind.SECTION and value:
        return "; ".join(
            f"`{{{', '.join(f'{key}: {item}' for key, item in entry.items())}}}`" for entry in value
        )
    if isinstance(value, (list, dict)):
        return f"`[{', '.join(map(str, value))}]`" if value else "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


def table(section: Section) -> Iterator[str]:
    """The lines of one section's table."""
    texts = descriptions()[section.model.__name__]
    if section.path:
        kind = section.model.model_fields.get("kind")
        tag = f", `kind: {choices(shape_of_field(kind))[0]}`" if kind is not None else ""
        yield f"### `{section.path}`{tag}\n\n{section.model.__doc__}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in section.model.model_fields.items():
        meaning = texts[name].replace("|", "\\|")
        yield f"| `{name}` | {type_text(shape_of_field(field), field)} | {default_text(field)} | {meaning} |"
    yield ""


def reference() -> str:
    """The whole document."""
    lines = [HEAD.removesuffix("\n")]
    lines += [
        f"| {'`' + path + '`' if path else 'everything else'} | {effect} |" for path, effect in effects()
    ]
    lines += ["", "## Keys", ""]
    for section in sections():
        lines += table(section)
    return "\n".join([*lines, EXAMPLES])


if __name__ == "__main__":
    sys.stdout.write(reference())
