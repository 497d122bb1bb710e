"""Three source roots, one distribution: the framework (core), the in-tree backends and the in-tree stores."""

import hashlib
import os
import runpy
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOTS = {"pyflannel": "core", "pyflannel_backends": "backends", "pyflannel_stores": "stores"}

HERE = Path(__file__).resolve().parent
VERSION = runpy.run_path(str(HERE / "core" / "pyflannel" / "version.py"))["VERSION"]

EXTRAS = {
    "consul": ["py-consul>=1.6"],
    "ipsec": ["vici>=6"],
    "kubernetes": ["PyYAML>=6"],
    "udp": ["numpy>=1.24"],
    "wireguard": ["cryptography>=47", "numpy>=1.24"],
    "metrics": ["prometheus-client>=0.20"],
}
# With pytest 9.2, pytest-xdist 3.8 no longer keeps the tests of a group (xdist_group) on one worker.
TEST = [
    "hypothesis>=6.100",
    "pytest>=8.3,<9.2",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "scapy>=2.5",
    "setuptools>=77",
]
EXAMPLES = ["psycopg[binary]>=3.2"]
DEVELOPMENT = {
    "test": TEST,
    "examples": EXAMPLES,
    "bench": ["matplotlib>=3.6"],
    "dev": [*TEST, *EXAMPLES, "mypy==2.4.*", "ruff==0.17.*", "tox>=4.30", "tox-uv>=1.28"],
}

# Optional: without a compiler Python code does the same work; without OpenSSL's headers it does the encrypted part.
# Built for the stable ABI, so that one wheel serves all versions of Python.
NATIVE = "backends/pyflannel_backends/userspace/native"


def sources_digest() -> str:
    """As in pyflannel_backends/userspace/fastpath.py, which recognises an outdated extension by it."""
    files = sorted((HERE / NATIVE).glob("*.[ch]"))
    return hashlib.sha256(b"".join(each.name.encode() + b"\0" + each.read_bytes() for each in files)).hexdigest()[:16]


FAST_PATH = Extension(
    "pyflannel_backends.userspace._fastpath",
    sources=[f"{NATIVE}/{name}.c" for name in ("fastpath", "lone", "packets", "transport")],
    depends=[f"{NATIVE}/{name}.h" for name in ("lone", "lone_code", "lone_maps", "packets", "transport")],
    define_macros=[("SOURCES", f'"{sources_digest()}"')],
    extra_compile_args=["-O3", "-Wall", "-Wextra"],
    libraries=["dl"],
    py_limited_api=True,
    optional=True,
)

# A wheel without the extension runs on every architecture.
PURE = os.environ.get("PYFLANNEL_PURE", "") == "1"

setup(
    name="pyflannel",
    version=VERSION,
    description="A plugin-based overlay network daemon for Linux, wire-compatible with flannel",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    package_dir={package: f"{root}/{package}" for package, root in ROOTS.items()},
    packages=[package for root in ROOTS.values() for package in find_packages(root, include=["pyflannel*"])],
    ext_modules=[] if PURE else [FAST_PATH],
    options={} if PURE else {"bdist_wheel": {"py_limited_api": "cp310"}},
    package_data={
        **{package: ["py.typed", "**/*.pyi"] for package in ROOTS},
        "pyflannel.skeleton": ["**/*.tmpl", "README.md"],
    },
    install_requires=[
        "click>=8.1",
        "cryptography>=41",
        "etcd3>=0.12.0",
        "grpcio>=1.60",
        "protobuf>=3.20.3",
        "pyroute2>=0.9.1",
        "rich>=13",
        "stevedore>=5.1",
        "tomli>=2; python_version < '3.11'",
    ],
    extras_require={**EXTRAS, "all": sorted({item for items in EXTRAS.values() for item in items}), **DEVELOPMENT},
    entry_points={
        "console_scripts": ["pyflannel = pyflannel.cli:main"],
        "pyflannel.backends": [
            "alloc = pyflannel_backends.alloc:AllocBackend",
            "extension = pyflannel_backends.extension:ExtensionBackend",
            "gre = pyflannel_backends.gre:GreBackend",
            "host-gw = pyflannel_backends.host_gw:HostGatewayBackend",
            "ipip = pyflannel_backends.ipip:IpipBackend",
            "ipsec = pyflannel_backends.ipsec:IpsecBackend",
            "udp = pyflannel_backends.udp:UdpBackend",
            "vxlan = pyflannel_backends.vxlan:VxlanBackend",
            "wireguard = pyflannel_backends.wireguard:WireguardBackend",
        ],
        "pyflannel.stores": [
            "consul = pyflannel_stores.consul:ConsulStore",
            "etcd = pyflannel_stores.etcd:EtcdStore",
            "file = pyflannel_stores.file:FileStore",
            "kubernetes = pyflannel_stores.kubernetes:KubernetesStore",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: System :: Networking",
        "Typing :: Typed",
    ],
)
