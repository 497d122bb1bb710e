"""What a store's URL and options say: how to reach the API server, and as whom."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyflannel.errors import ConfigError
from pyflannel.store import StoreLocation
from pyflannel_stores._options import flag

if TYPE_CHECKING:
    from pyflannel_stores._kubernetes_access import Access

__all__ = ["find_access"]


def find_access(location: StoreLocation) -> Access:
    """How to reach the API server: by the URL's address and options, a kubeconfig, or as a pod does."""
    from pyflannel_stores import _kubernetes_access as access

    options, where = location.options, str(location)
    files = {name: Path(options[name]) for name in ("token_file", "cafile", "certfile", "keyfile") if name in options}
    if (files.get("certfile") is None) != (files.get("keyfile") is None):
        raise ConfigError(f"store {location}: certfile and keyfile go together")
    kubeconfigs = [Path(options["kubeconfig"])] if options.get("kubeconfig") else []
    if not kubeconfigs and not location.hosts:
        kubeconfigs = [Path(name) for name in os.environ.get("KUBECONFIG", "").split(os.pathsep) if name]
    pod = None if location.hosts or options.get("kubeconfig") else access.in_cluster(os.environ, where)
    if pod is not None:
        found = pod
    elif kubeconfigs:
        found = access.from_kubeconfig(kubeconfigs, options.get("context"), where)
    elif location.hosts:
        found = access.Access(_endpoint(location), where)
    else:
        raise ConfigError(
            f"store {location}: where is the API server? This is not a pod (no KUBERNETES_SERVICE_HOST): give a "
            "kubeconfig (--kubeconfig-file, or the option kubeconfig), or its address (kubernetes://192.0.2.1:6443)"
        )
    if location.hosts:
        found.endpoint = _endpoint(location)
    found.token_file = files.get("token_file", found.token_file)
    found.ca_file, found.ca_data = files.get("cafile", found.ca_file), None if "cafile" in files else found.ca_data
    if "certfile" in files:
        found.cert_file, found.key_file, found.cert_data, found.key_data = (
            files["certfile"],
            files["keyfile"],
            None,
            None,
        )
    return found


def _endpoint(location: StoreLocation) -> Any:
    from pyflannel_stores._kubernetes_access import parse_endpoint

    if len(location.hosts) > 1:
        raise ConfigError(f"store {location}: one address alone; put a load balancer in front of several API servers")
    scheme = "https" if flag(location, "tls", True) else "http"
    host = location.hosts[0]
    if not re.search(r":[0-9]+$", host):
        host += ":6443"
    return parse_endpoint(f"{scheme}://{host}{location.path}", f"store {location}")
