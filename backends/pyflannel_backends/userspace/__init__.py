"""What every data plane of our own shares: packets between a TUN device and an underlay, moved by worker processes.

The idea: one router, whatever carries its packets. :class:`.forward.Forwarder` reads packets from the TUN device,
finds the peer that holds the destination and hands packets of one size for that peer to an underlay port; what the
port says a peer has sent it checks and hands to the kernel. What a peer *is*, where it is, and what a packet looks like
on the wire is the port's business alone. Both sides move up to 64 KB of packets a call, and what lies between is
vectorised (:mod:`.offload`).

========================  ============================================================================================
:mod:`.vnet`              the virtio header before each packet on the TUN device
:mod:`.packet`            reading and answering single packets: what is common, and IPv4
:mod:`.ipv6`              the same for IPv6
:mod:`.offload`           cutting and joining super-packets, with numpy
:mod:`.table`             which peer holds a subnet
:mod:`.ports`             what forwarding needs of its two sides; the TUN queue and the UDP socket
:mod:`.forward`           the router
:mod:`.fastpath`          a short cut past it for whole bursts, in C (``native/``); compiled where there is a compiler
:mod:`.control`           what daemon and worker say to each other
:mod:`.worker`            the worker's process
:mod:`.dataplane`         the daemon's side: workers kept alive and fed
========================  ============================================================================================

How to add a data plane (:mod:`pyflannel_backends.udp` is the smallest example):

1. A module with a config type (a frozen, ``kw_only`` dataclass derived from :class:`.control.WorkerConfig`, with fields
   of JSON's types), an :class:`.ports.UnderlayPort`, and at its end, since it is run as a program,
   ``work(ConfigType, make_port)`` (:func:`.worker.work`), where ``make_port(config, secrets)`` makes the port.
2. In the backend's plan: the device, ``Link(name, tun_info(offload=...), mtu)``, and, for our ICMP errors to get
   through, the sysctl ``accept_local``, as udp has it.
3. In the backend's ``start``: ``UserspaceDataPlane(WorkerKind(name, module, config, rows, secrets), state_dir, 1)``.
   ``rows`` turns a peer's lease into rows of the table, ``(subnet, peer, *details)``: ``peer`` is a text that names it
   for good (udp: its public address; wireguard: its public key), ``details`` whatever the port wants to know of it.
   Two leases with one ``peer`` are one peer with two subnets. The config is told to whoever may connect to the worker
   and decides, by comparing equal, whether an earlier daemon's worker is kept; ``secrets`` are told once, to a worker
   that is started. So what a changed secret must replace has to show in the config as something that isn't secret.

What the port has to know of its life:

* It is made once per worker and keeps what it knows of peers. ``put`` comes for every row, so more than once for a
  peer, and must cost little when nothing changed; ``remove`` comes when a peer lost its last subnet. Both come also
  while the port is closed.
* ``open`` returns the sockets to wait for, as many as there are (say, IPv4 and IPv6), each with a ``receive`` of its
  own. ``receive`` may return ``None`` as the sender: handled, nothing to deliver. It decrypts or copies into the buffer
  that it is given, whose start is even; packets lie back to back there, all of one size but the last.
* ``size`` may be larger than the packets in the rows (padding): a row's packet ends where its IP header says.
* ``send`` gets up to ``rows(size)`` packets, whose memory is reused as soon as it returns. What can't be sent yet (no
  session) the port copies, or drops and counts. The error numbers ``EMSGSIZE`` and ``EINVAL`` make forwarding ask
  ``path_mtu`` and send smaller packets; any other is a failure that ``status`` shows for this peer until a send
  succeeds.
* ``deadline`` is read before every wait and may be changed at any time; ``expire`` is called once it has passed.
* ``WorkerConfig.realtime`` is worth having; set it where :func:`leaves_a_cpu` says so.
* ``fast_path``, ``way`` and ``settle`` are for ports whose packets are bare datagrams over IPv4, or WireGuard's
  messages; others leave them alone.
* Everything runs in one thread, and nothing may raise for what a packet contains.

IPv6 inside needs nothing but a subnet of that family in the config's ``own`` (its network address answers with ICMPv6
errors) and rows with the peers' IPv6 subnets; both families share one TUN device. A family without a subnet in ``own``
is dropped and counted. That is the inside only: the port may reach its peers over either family.
"""

from __future__ import annotations

import os

from pyflannel.backend import TunInfo

__all__ = ["leaves_a_cpu", "tun_info"]


def leaves_a_cpu(workers: int) -> bool:
    """Whether so many workers may be scheduled before ordinary programs (``SCHED_RR``), since a CPU is left to those.

    The kernel's own forwarding goes before programs, too: on a busy node a worker that waits for its turn carries a
    fraction of what it could, and a ping takes milliseconds.
    """
    return workers < len(os.sched_getaffinity(0))


def tun_info(*, offload: bool) -> TunInfo:
    """The TUN device that a worker attaches to.

    Multi-queue for one worker, too: its successor attaches while it still forwards. The queue takes what TCP sends at
    once when it has found a fast path. Single packets are many; a super-packet may hold 64 KB of the host's memory.
    """
    return TunInfo(vnet_hdr=True, multi_queue=True, queue_length=1000 if offload else 2000)
