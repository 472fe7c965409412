"""The sections that say where instances come from: one model for each kind of registry, and the guard.

What the registries themselves do is in `discovery`; here is only what an operator may write.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from config import checks
from config.forms import (
    ONE_OR_MANY,
    DnsName,
    Model,
    Name,
    Positive,
    Secret,
    ServiceNames,
    Upstream,
    Url,
    sound,
)
from config.units import Address, Duration, Share


class RegistryTLS(Model):
    """TLS towards a registry, for addresses that begin with `https://`."""

    ca: str | None = None
    """Path of the CA that its certificate must come from, PEM; the system's when absent."""
    certificate: str | None = None
    """Path of the client certificate chain, PEM."""
    key: str | None = None
    """Path of the client certificate's private key, PEM."""
    server_name: str | None = None
    """Name that its certificate must have, when it is not the one in the address."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        return sound(self, checks.registry_tls(self))


class EmbeddedRegistry(Model):
    """The registry inside this process; it speaks the Consul HTTP API on `listen`."""

    kind: Literal["embedded"]
    """`embedded`."""
    listen: Address = Address("127.0.0.1", 8500)
    """Where instances register."""
    data: str | None = None
    """Directory to keep its contents in; in memory when absent."""


class ConsulRegistry(Model):
    """Consul, or a holdfast registry on another machine."""

    kind: Literal["consul"]
    """`consul`."""
    address: Url = "http://127.0.0.1:8500"
    """Base URL of the agent; credentials belong into `token`."""
    tls: RegistryTLS = RegistryTLS()
    """Certificates, for an `https://` address."""
    token: Secret | None = None
    """ACL token."""
    datacenter: str | None = None
    """Datacenter to ask, when not the agent's own."""
    stale: bool = False
    """Let any server answer, not only the leader: answers go on while there is none, and may be old."""
    tag: str | None = None
    """Only instances with this tag."""
    wait: Positive = 55.0
    """How long one blocking query may wait."""
    names: dict[Name, Name] = Field(default_factory=dict)
    """Services that are called otherwise there: name here to name in Consul."""


class EtcdRegistry(Model):
    """etcd v3. One key for each instance: `PREFIX/SERVICE/ID`, its value JSON."""

    kind: Literal["etcd"]
    """`etcd`."""
    address: Annotated[tuple[Url, ...], ONE_OR_MANY, Field(min_length=1)] = ("http://127.0.0.1:2379",)
    """Base URLs of the members; the next is asked when one fails."""
    tls: RegistryTLS = RegistryTLS()
    """Certificates, for `https://` addresses."""
    user: str | None = None
    """User name, when authentication is on; may read `prefix`, and write there to register."""
    password: Secret | None = None
    """The user's password."""
    prefix: str = "/holdfast/services"
    """Where the keys are."""
    resync: Positive = 300.0
    """Everything is read anew so often, whatever the watch says."""
    names: dict[Name, Name] = Field(default_factory=dict)
    """Services that are called otherwise there: name here to name in etcd."""

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        return sound(self, checks.credentials(self))


class NacosTransport(StrEnum):
    """How Nacos is spoken to."""

    GRPC = "grpc"
    HTTP = "http"


class NacosRegistry(Model):
    """Nacos 2 and later, by its push over gRPC; or by polling its HTTP API.

    An instance's weight is Nacos' own times 100, unless that is 1 and the metadata state another.
    """

    kind: Literal["nacos"]
    """`nacos`."""
    address: Annotated[tuple[Url, ...], ONE_OR_MANY, Field(min_length=1)] = ("http://127.0.0.1:8848/nacos",)
    """Base URLs of the servers with their context path; the next is asked when one fails."""
    tls: RegistryTLS = RegistryTLS()
    """Certificates, for `https://` addresses; of gRPC as well."""
    transport: NacosTransport = NacosTransport.GRPC
    """`grpc`: pushed, needs the extra `nacos`; `http`: polled every `poll`, and entries are kept by beats."""
    grpc_port_offset: Annotated[int, Field(ge=1, le=65534)] = 1000
    """The gRPC port is the HTTP port plus this."""
    poll: Positive = 5.0
    """Between two questions for one service when polling."""
    user: str | None = None
    """User name, when authentication is on."""
    password: Secret | None = None
    """The user's password."""
    namespace: str = ""
    """Namespace id; empty: the public one."""
    group: Annotated[str, Field(min_length=1)] = "DEFAULT_GROUP"
    """Group of the services."""
    clusters: Annotated[tuple[str, ...], ONE_OR_MANY] = ()
    """Only instances of these clusters; all when empty. An instance of ours registers in the first."""
    names: dict[Name, Name] = Field(default_factory=dict)
    """Services that are called otherwise there: name here to name in Nacos."""

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        return sound(self, checks.credentials(self))


class KubernetesRegistry(Model):
    """EndpointSlices of Kubernetes, by default of the cluster around us; Services' labels are metadata."""

    kind: Literal["kubernetes"]
    """`kubernetes`."""
    address: Url | None = None
    """Base URL of the API server; in a cluster found by itself. With it nothing is taken from the pod."""
    tls: RegistryTLS = RegistryTLS()
    """Certificates; in a cluster `ca` is the service account's."""
    token: Secret | None = None
    """Bearer token, when it is not in a file."""
    token_file: str | None = None
    """File with the bearer token, read again as it rotates; in a cluster the service account's."""
    namespace: str | None = None
    """Namespace of the services; in a cluster the process's own when absent, else `default`."""
    port: str | None = None
    """Name or number of the endpoints' port; needed only where a service has several."""
    wait: Positive = 120.0
    """How long one watch may last; a frozen API server is noticed so much later, and 10 s."""
    names: dict[Name, ServiceNames] = Field(default_factory=dict)
    """Services that are called otherwise there: name here to `NAME[.NAMESPACE][:PORT]` there. Several, joined
    by commas, are one service here, as one Service for each version."""

    @model_validator(mode="after")
    def _token(self) -> Self:
        return sound(self, checks.kubernetes(self))


class DnsRecord(StrEnum):
    """What is asked for."""

    SRV = "srv"
    ADDRESS = "address"


def _with_host(address: Address) -> Address:
    if address.path:
        raise ValueError(f"'{address}' is a unix socket; a name server has a host and a port")
    return address


class DnsRegistry(Model):
    """DNS over TCP: SRV records, or A and AAAA with a port. Instances have no metadata there."""

    kind: Literal["dns"]
    """`dns`."""
    server: Annotated[tuple[Annotated[Upstream, AfterValidator(_with_host)], ...], ONE_OR_MANY] = ()
    """Name servers as `host:port`; the next is asked when one does not answer; the system's when empty."""
    record: DnsRecord = DnsRecord.SRV
    """`srv`, of which all but the lowest priority number are backups; or `address`: every A and AAAA."""
    domain: DnsName = ""
    """Appended to each service's name: `service.consul` asks for `chat.service.consul`."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of every instance, for `address`."""
    ttl_min: Positive = 1.0
    """Asked again no sooner, whatever the TTL says."""
    ttl_max: Positive = 30.0
    """Asked again no later."""
    timeout: Positive = 2.0
    """For one answer. One holds 64 KiB: some 900 instances."""
    names: dict[Name, DnsName] = Field(default_factory=dict)
    """Services whose record has a name of its own: name here to the whole name of the record."""

    @model_validator(mode="after")
    def _port(self) -> Self:
        return sound(self, checks.dns(self))


class FileRegistry(Model):
    """A watched YAML or JSON file: `services: {NAME: [instances]}`."""

    kind: Literal["file"]
    """`file`."""
    path: str
    """The file; replaced atomically or through a ConfigMap's symlink."""


RemoteRegistry = (
    ConsulRegistry | EtcdRegistry | NacosRegistry | KubernetesRegistry | DnsRegistry | FileRegistry
)
Registry = Annotated[
    EmbeddedRegistry
    | ConsulRegistry
    | EtcdRegistry
    | NacosRegistry
    | KubernetesRegistry
    | DnsRegistry
    | FileRegistry,
    Field(discriminator="kind"),
]


class Guard(Model):
    """When registries are not believed at once that instances are gone. One that leaves alone always is."""

    share: Share = 0.5
    """A larger share of a service's instances lost in one answer is held back until the instances' own
    health, a repeated answer or `hold` decides."""
    hold: Duration = 30.0
    """An instance held back leaves after so long; 0: no guard."""
    repeat: Duration = 5.0
    """The same answer again after so long is believed; longer than instances need to register anew."""
    flaps: Annotated[int, Field(ge=0)] = 3
    """An instance that vanished so often, each time soon after it came back, is used only while no other can
    be; 0: no limit."""
    calm: Duration = 30.0
    """Such an instance is relied on again when it has stayed for so long."""
