"""`HOLDFAST_…` variables as configuration."""

from __future__ import annotations

import pytest

from config.load import ConfigError, read
from config.schema import Config, EmbeddedRegistry

FILE = """\
registry: {kind: embedded}
trusted_proxies: [10.0.0.0/8]
services:
  my-shop:
    sticky: none
    instances: [10.0.0.1:80, {address: "10.0.0.2:80", id: b}]
routes:
  - {service: my-shop}
"""


def config(text: str = "", **environ: str) -> Config:
    return read(
        text.encode(), source="f.yaml", environ={f"HOLDFAST_{name}": value for name, value in environ.items()}
    )


def wrong(text: str = "", **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(text, **environ)
    return str(caught.value).splitlines()


def test_a_variable_sets_a_key_and_a_nested_key() -> None:
    made = config(
        SHUTDOWN="5s", ADMIN__ADDRESS="127.0.0.1:1", LIMITS__CONNECTIONS="7", ACCESS_LOG__PATH="none"
    )
    assert (made.shutdown, str(made.admin.address), made.limits.connections) == (5, "127.0.0.1:1", 7)
    assert made.access_log.path is None


def test_names_of_the_file_are_found_whatever_their_case_and_dashes() -> None:
    made = config(FILE, SERVICES__MY_SHOP__BALANCE="p2c", SERVICES__OTHER__BALANCE="ewma")
    assert {name: service.balance for name, service in made.services.items()} == {
        "my-shop": "p2c",
        "other": "ewma",
    }


def test_a_section_that_the_file_switched_off_can_be_given() -> None:
    made = config(FILE, SERVICES__MY_SHOP__STICKY__BY="ip")
    assert made.services["my-shop"].sticky is not None


def test_entries_of_lists_are_changed_and_added_by_number() -> None:
    made = config(
        FILE,
        SERVICES__MY_SHOP__INSTANCES__0="[::1]:81",
        SERVICES__MY_SHOP__INSTANCES__1__WEIGHT="3",
        SERVICES__MY_SHOP__INSTANCES__2__ADDRESS="10.0.0.3:80",
        LISTEN__0__ADDRESS=":1",
        LISTEN__1__ADDRESS=":2",
    )
    instances = made.services["my-shop"].instances
    assert instances is not None
    assert [(str(each.address), each.id, each.weight) for each in instances] == [
        ("[::1]:81", "[::1]:81", 100),
        ("10.0.0.2:80", "b", 3),
        ("10.0.0.3:80", "10.0.0.3:80", 100),
    ]
    assert [str(each.address) for each in made.listen] == [":1", ":2"]


def test_an_instance_written_as_its_address_can_get_a_weight() -> None:
    instances = config(FILE, SERVICES__MY_SHOP__INSTANCES__0__WEIGHT="3").services["my-shop"].instances
    assert instances is not None
    assert (str(instances[0].address), instances[0].weight) == ("10.0.0.1:80", 3)


def test_the_tenth_entry_comes_after_the_second() -> None:
    made = config(**{f"LISTEN__{number}__ADDRESS": f":{number + 1}" for number in range(12)})
    assert [each.address.port for each in made.listen] == list(range(1, 13))


@pytest.mark.parametrize("text", ["10.0.0.0/8,::1", "[10.0.0.0/8, '::1']", " 10.0.0.0/8 , ::1 "])
def test_lists_of_values_are_separated_by_commas_or_in_brackets(text: str) -> None:
    assert config(FILE, TRUSTED_PROXIES=text).trusted_proxies == ("10.0.0.0/8", "::1")


def test_whole_sections_may_be_given_as_yaml() -> None:
    made = config(SERVICES="{a: {instances: ['a:1']}}", ROUTES="[{service: a}]", TIMEOUT="{header: 1s}")
    assert (list(made.services), made.routes[0].service, made.timeout.header) == (["a"], "a", 1)


def test_a_single_registry_is_reached_with_and_without_a_number() -> None:
    for name in ("REGISTRY__LISTEN", "REGISTRY__0__LISTEN"):
        registry = config(FILE, **{name: ":7"}).registry[0]
        assert isinstance(registry, EmbeddedRegistry)
        assert str(registry.listen) == ":7"
    assert config(REGISTRY__KIND="consul").registry[0].kind == "consul"
    two = config(FILE, REGISTRY__1__KIND="consul")
    assert [registry.kind for registry in two.registry] == ["embedded", "consul"]


@pytest.mark.parametrize("token", ["{a", "[x]", "a: b #c", "*x", "${HOME}", "007", "'q'", "@"])
def test_a_secret_is_taken_as_it_is(token: str) -> None:
    secret = config(ADMIN__TOKEN=token).admin.token
    assert secret is not None
    assert secret.get_secret_value() == token


@pytest.mark.parametrize("empty", ["", " ", "null", "~"])
def test_an_empty_variable_keeps_the_default(empty: str) -> None:
    assert config("shutdown: 9s", SHUTDOWN=empty, ADMIN=empty) == Config()


@pytest.mark.parametrize(
    "name",
    [
        "ADMIN",
        "ADMIN_TOKEN",
        "AGENT_TOKEN",
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_8080_TCP",
        "PORT_8080_TCP_ADDR",
        "ADMIN_SERVICE_HOST",
        "ADMIN_PORT_9900_TCP_PROTO",
        "EDGE_EU_PORT_443_UDP_PORT",
    ],
)
def test_variables_of_the_command_line_and_of_kubernetes_are_no_keys(name: str) -> None:
    assert config(**{name: "tcp://10.0.0.1:80"}) == Config()


def test_variables_of_others_are_no_keys() -> None:
    assert (
        read(b"", source="f", environ={"HOLDFASTX": "1", "PATH": "/bin", "holdfast_shutdown": "1s"})
        == Config()
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SHUTDWON", "1s", "shutdwon: is not a known key (did you mean 'shutdown'?)"),
        ("SHUTDOWN", "soon", "shutdown: 'soon' is not a duration; write it as 250ms, 30s, 5m or 1h"),
        ("ADMIN__ADRESS", ":1", "admin.adress: is not a known key (did you mean 'address'?)"),
        ("ADMN__ADDRESS", ":1", "admn: is not a known key (did you mean 'admin'?)"),
        ("ADMIN__ADDRESS", ":1", "admin.address: an admin address beyond loopback needs a token"),
        ("LISTEN__ADDRESS", ":1", "ADDRESS must be a number: which entry of the list, from 0"),
        ("LISTEN__2__ADDRESS", ":1", "there is no entry 1 yet, so there can be no entry 2"),
        ("TRUSTED_PROXIES__X", "::1", "X must be a number: which entry of the list, from 0"),
        ("SHUTDOWN__X", "1s", "there is no key X below a single value"),
        ("ADMIN__", "1s", "does not name a key; write it as HOLDFAST_SECTION__KEY"),
        ("__X", "1s", "does not name a key; write it as HOLDFAST_SECTION__KEY"),
        (
            "TRUSTED_PROXIES",
            "10.0.0.0/8,x",
            "trusted_proxies[1]: 'x' is not an address or a network such as 10.0.0.0/8",
        ),
        (
            "ROUTES",
            "[{service: nix}]",
            "routes[0].service: there is no service 'nix' (did you mean 'my-nix'?)",
        ),
        ("LIMITS", "5", "limits: must be a section (key: value), not a single value"),
        (
            "LIMITS",
            "{connections: 1, connections: 2}",
            "limits.connections: is given twice; the first is at the beginning",
        ),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(name: str, value: str, message: str) -> None:
    text = "listen: [{address: ':8080'}]\nservices: {my-nix: {instances: [a:1]}}\n"
    assert wrong(text, **{name: value}) == [f"env HOLDFAST_{name}: {message}"]


def test_yaml_that_cannot_be_read_is_a_mistake_of_the_variable_and_shows_no_content() -> None:
    lines = wrong(SERVICES="{a: {sticky: {key: s3cr3t")
    assert len(lines) == 1
    assert lines[0].startswith("env HOLDFAST_SERVICES: services: not valid YAML")
    assert "s3cr3t" not in lines[0]


def test_mistakes_of_the_file_come_first_then_those_of_the_environment() -> None:
    lines = wrong("shutdown: x\nzz: 1", LIMITS__CONNECTIONS="x", ADMIN__X="1")
    assert [line.split(": ")[0] for line in lines] == [
        "f.yaml:1:11",
        "f.yaml:2:1",
        "env HOLDFAST_ADMIN__X",
        "env HOLDFAST_LIMITS__CONNECTIONS",
    ]
