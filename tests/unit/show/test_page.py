"""The status page as text: complete, escaped, without anything from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.show import page
from pyflannel.show.page import render
from pyflannel.show.reachability import RoundTrips
from pyflannel.show.status import (
    BackendStatus,
    FailureStatus,
    LeaseStatus,
    ObjectCounts,
    ObjectsStatus,
    ObjectStatus,
    PeerState,
    PeerStatus,
    State,
    Status,
    StoreStatus,
    UnderlayStatus,
)

NOW = 1_704_103_200.0  # 2024-01-01T10:00:00Z
THEN = "2024-01-01T09:57:00Z"
VOID = {"meta", "br"}


def status(text: str = "text", peers: int = 3, state: State = State.READY) -> Status:
    states = list(PeerState)
    return Status(
        version=text,
        pid=7,
        started=THEN,
        state=state,
        message=text,
        node_id=text,
        backend=BackendStatus(text),
        store=StoreStatus(text, False),
        network=text,
        underlay=UnderlayStatus(text, 1500, public_ipv4=text),
        lease=LeaseStatus(text, (text,), 3600.0, False, THEN),
        peers=tuple(
            PeerStatus(f"{text}{number}", (f"10.1.{number}.0/24",), states[number % 4], text, text, None, text)
            for number in range(peers)
        ),
        objects=ObjectsStatus({text: ObjectCounts(1, 2, 3)}, (ObjectStatus(text, text, "failed", THEN, text),)),
        last_error=FailureStatus(THEN, text),
        repaired=7,
        data_plane={text: 5},
    )


class Checker(HTMLParser):
    """Collects tags and texts, and minds that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


TEXTS = st.text(st.sampled_from("<>&\"'=/ abscript!-") | st.characters(codec="utf-8", exclude_characters="\0\r"))


@given(TEXTS, st.sampled_from(State), st.booleans(), st.integers(0, 12))
def test_what_comes_from_outside_is_only_ever_text(text: str, state: State, ready: bool, peers: int) -> None:
    plain = Checker(render(status("x", peers, state), (ready, "x"), NOW))
    hostile = Checker(render(status(text or "x", peers, state), (ready, text), NOW))
    assert hostile.tags == plain.tags
    assert hostile.attributes == plain.attributes


def test_everything_is_told() -> None:
    text = " ".join(Checker(render(status("word", 4), (True, "degraded: word"), NOW)).texts)
    for expected in ("10.1.0.0/24", "skipped", "failed", "pending", "60 min left", "7 objects", "5 nodes", "3 min ago"):
        assert expected in text


def test_trouble_stands_first_and_only_when_there_is_some() -> None:
    html = render(status(state=State.WAITING), (False, "waiting: the store is away"), NOW)
    assert html.index("What is wrong") < html.index("This node")
    assert "waiting: the store is away" in html
    well = Status(version="1", pid=1, started=THEN, state=State.READY, message="", node_id="n")
    assert "What is wrong" not in render(well, (True, "ready"), NOW)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    found = Checker(render(status(), (True, ""), NOW))
    assert not {"script", "img", "link", "iframe", "form"} & set(found.tags)
    assert not {"src", "href", "style", "onload"} & found.attributes
    assert re.search(r'http-equiv="refresh" content="\d+"', render(status(), (True, ""), NOW))
    assert "url(" not in page._STYLE
    assert "@import" not in page._STYLE


def test_a_page_of_thousands_stays_small() -> None:
    html = render(status(peers=5000), (True, ""), NOW)
    assert len(html) < 400_000
    assert "and 4800 more" in html


def test_a_node_that_has_just_started_has_a_page() -> None:
    empty = Status(version="1", pid=1, started=THEN, state=State.STARTING, message="looking", node_id="n")
    html = render(empty, (False, "starting: looking"), NOW)
    assert "none yet" in html
    assert "not ready" in html


def test_dark_and_light_define_the_same_colours() -> None:
    light, dark = re.findall(r":root\{([^}]*)\}", page._STYLE)
    names = [set(re.findall(r"--\w+(?=:)", block)) for block in (light, dark)]
    assert names[0] == names[1]


def test_a_peer_that_does_not_answer_is_wrong_whatever_the_kernel_holds() -> None:
    peers = status(peers=3).peers
    answers = {
        peers[0].key: RoundTrips(0.00025, 0.0002, True),
        peers[1].key: RoundTrips(None, 0.0002, True),
        peers[2].key: RoundTrips(None, None, False),
    }
    usable = replace(status(), peers=tuple(replace(peer, state=PeerState.OK, reason="") for peer in peers))
    found = Checker(render(usable, (True, "ready"), NOW, answers))
    text = " ".join(found.texts)
    assert "answers in 0.25 ms" in text
    assert text.count("the node answers, the overlay does not") == 2, "in its row and in what is wrong"
    assert "does not answer" in text
    assert "2 silent" in text
    assert "1 ok" in text


def test_without_an_address_on_its_device_a_peer_whose_node_answers_is_well() -> None:
    assert RoundTrips(None, 0.001, False).good
    assert str(RoundTrips(None, 0.001, False)) == "the node answers"


def test_it_comes_back_soon_for_the_first_answers() -> None:
    asked = {peer.key: RoundTrips(0.1, 0.1, True) for peer in status().peers}
    soon, later = (
        re.search(r'http-equiv="refresh" content="(\d+)"', render(status(), (True, ""), NOW, answers))
        for answers in ({}, asked)
    )
    assert soon is not None
    assert later is not None
    assert int(soon[1]) < int(later[1])
