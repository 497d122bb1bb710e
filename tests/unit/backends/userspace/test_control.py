"""Messages between daemon and worker: cut as they like, they arrive whole; nonsense is refused."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel_backends.userspace import control
from pyflannel_backends.userspace.control import Frames

MESSAGES = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=3), max_size=5)


@given(MESSAGES, st.integers(1, 50))
def test_messages_survive_any_cutting(messages: list[dict[str, object]], step: int) -> None:
    stream = b"".join(control.encode(message) for message in messages)
    frames = Frames()
    received = [
        message for start in range(0, len(stream), step) for message in frames.feed(stream[start : start + step])
    ]
    assert received == messages


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\1[", b"\0\0\0\2[]", struct.pack("!I", 3) + b'"x"'])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own messages are not ours to match
        Frames().feed(data)


def test_a_later_listener_takes_the_path_over_and_nobody_else_may_connect(tmp_path: Path) -> None:
    path = tmp_path / ("deep" * 30) / "worker.sock"
    assert control.connect(path) is None
    with control.listen(path) as first:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with control.listen(path) as second:
            connection = control.connect(path)
            assert connection is not None
            with connection:
                accepted, _ = second.accept()
                assert control.trusted(accepted)
                accepted.close()
                with pytest.raises(BlockingIOError):
                    first.accept()
    assert control.connect(path) is None
