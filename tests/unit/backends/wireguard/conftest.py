"""Both ways to seal and open packets: by the fast path's extension, and by Python alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyflannel_backends.userspace.fastpath import load_transport


@pytest.fixture(scope="module", params=["native", "python"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whole files run with and without the extension: ``pytestmark = pytest.mark.usefixtures("path")``."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("PYFLANNEL_NO_EXTENSIONS", raising=False)
        if request.param == "python":
            environment.setenv("PYFLANNEL_NO_EXTENSIONS", "1")
        elif load_transport() is None:
            pytest.skip("the extension was not compiled, or without OpenSSL")
        yield request.param
