"""The administrative face: the API, the metrics and the dashboard. Imported after the proxy forwards."""

from proxy.admin.server import make_app

__all__ = ["make_app"]
