"""Which addresses are public: no way around it by another spelling of an inner one."""

from __future__ import annotations

import pytest

from oubliette.core.addresses import all_public


@pytest.mark.parametrize(
    "address", ["140.82.121.4", "8.8.8.8", "2606:4700::1", "2002:8c52:7904::1", "64:ff9b::808:808"]
)
def test_public_addresses_are_public(address: str) -> None:
    assert all_public([address])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "192.0.0.192",
        "192.88.99.1",
        "168.63.129.16",
        "100.64.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "::",
        "::1",
        "ff02::1",
        "fe80::1%eth0",
        "fec0::1",
        "fd00::1",
        "2001:db8::1",
        "100::1",
        "5f00::1",
        "::ffff:10.0.0.1",
        "::ffff:0:10.0.0.1",
        "::10.0.0.1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
    ],
)
def test_everything_else_is_not_in_whatever_way_it_is_carried(address: str) -> None:
    assert not all_public([address])
    assert not all_public(["140.82.121.4", address]), "one of them is enough"


def test_what_is_no_address_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not appear"):
        all_public(["localhost"])
