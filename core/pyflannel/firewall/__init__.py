"""The firewall: what lets the overlay's packets pass, and what masquerades those that leave it.

The idea: a packet passes only if *no* chain on its way drops it; an accept ends one base chain, not the others. So
there are two kinds of work. The masquerade rules live in one place, the *port* (an nftables table of our own, or
flannel's chains in iptables). The accepts live wherever something drops: in every base chain of the forward hook
whose policy or last rule drops what nobody wanted, in nftables as in both kinds of iptables.

:mod:`~pyflannel.firewall.model` says which rules a network needs; :mod:`~pyflannel.firewall.nftables` and
:mod:`~pyflannel.firewall.iptables` compute the difference from what is there and write it; ``chains`` and ``foreign``
find who drops; ``choose`` picks the port; ``monitor`` hears of changes; ``keeper`` is the thread that does it all.
"""
