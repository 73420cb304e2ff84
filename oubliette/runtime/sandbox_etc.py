"""A sandbox's ``/etc``: made, never the host's, which tells of its users, its network and its secrets.

Taken from the host are only facts of its ``/usr``, without which programs there do not work: the linker's cache, the
``alternatives`` links, the names of services, the certificates to trust.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from oubliette.runtime.sandbox_network import DNS_ADDRESS

ETC = Path("/etc")
CA_BUNDLES = (
    "ssl/certs/ca-certificates.crt",  # Debian, Arch, Alpine
    "pki/tls/certs/ca-bundle.crt",  # Fedora
    "ssl/ca-bundle.pem",  # SUSE
)
COPIED_FILES = ("ld.so.cache", "services", "protocols", "ssl/certs/java/cacerts")
PROGRAM_FOLDERS = "java-*-openjdk"
"""Debian's Java keeps the files without which it does not start here rather than in /usr."""

_NSSWITCH = """\
passwd: files
group: files
shadow: files
hosts: files dns
services: files
protocols: files
"""
_OPENSSL = """\
[req]
distinguished_name = req_distinguished_name
[req_distinguished_name]
"""


def make_etc(target: Path, *, uid: int, gid: int, home: str, hostname: str, bridged: bool) -> None:
    """Fill the new directory ``target``. Everything in it is readable by all and writable by its owner. Blocks."""
    target.mkdir(mode=0o755)
    shell = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
    nobody = "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
    root = "root:x:0:0:root:/:/usr/sbin/nologin\n"
    files = {
        "passwd": f"{root}agent:x:{uid}:{gid}:agent:{home}:{shell}\n{nobody}",
        "group": f"root:x:0:\nagent:x:{gid}:\nnogroup:x:65534:\n",
        "hostname": f"{hostname}\n",
        "hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {hostname}\n",
        "resolv.conf": f"nameserver {DNS_ADDRESS}\noptions edns0\n" if bridged else "# no network\n",
        "nsswitch.conf": _NSSWITCH,
        "ssl/openssl.cnf": _OPENSSL,
    }
    for name, text in files.items():
        _write(target / name, text.encode())
    for name in COPIED_FILES:
        if (ETC / name).is_file():
            _write(target / name, (ETC / name).read_bytes())
    _trust(target)
    _copy_links(ETC / "alternatives", target / "alternatives")
    for folder in ETC.glob(PROGRAM_FOLDERS):
        _copy_public(folder, target / folder.name)
    (target / "os-release").symlink_to("/usr/lib/os-release")
    (target / "localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    (target / "mtab").symlink_to("/proc/self/mounts")


def _trust(target: Path) -> None:
    """The host's certificate bundle under every name that programs of the usual systems look for."""
    bundle = next((ETC / name for name in CA_BUNDLES if (ETC / name).is_file()), None)
    if bundle is None:
        return
    first = target / CA_BUNDLES[0]
    _write(first, bundle.read_bytes())
    for name in (*CA_BUNDLES[1:], "ssl/cert.pem"):
        link = target / name
        link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        link.symlink_to(f"/etc/{CA_BUNDLES[0]}")


def _copy_links(source: Path, target: Path) -> None:
    """Links that lead into /usr, except those of manual pages. Nothing where the system has no such folder."""
    target.mkdir(mode=0o755)
    if not source.is_dir():
        return
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.is_symlink() and not entry.name.endswith(".gz"):
                aim = os.readlink(entry.path)  # noqa: PTH115  (one call less for each of hundreds)
                if aim.startswith(("/usr/", "/bin/", "/sbin/", "/lib")):
                    (target / entry.name).symlink_to(aim)


def _copy_public(source: Path, target: Path) -> None:
    """The regular files of a folder that everybody on the host may read."""
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink() and path.is_file() and path.stat().st_mode & 0o004:
                _write(target / path.relative_to(source), path.read_bytes())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)


def remove_tree(path: Path) -> None:
    """Remove a directory that this package made. Nothing inside a sandbox can write there. Blocks."""
    shutil.rmtree(path, ignore_errors=False)
