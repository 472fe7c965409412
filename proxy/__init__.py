"""The proxy: data plane, policies, and the administrative face."""
