from __future__ import annotations

import pytest
import trio
import trio.testing

from oubliette.config.server import Git
from oubliette.errors import RequestError
from oubliette.project.remote import Remote, addresses_of, check_branch, check_remote


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://github.com/o/shop", "github.com", 443),
        ("https://GitHub.com/o/shop.git", "github.com", 443),
        ("https://git.example.org:8443/a/b/c", "git.example.org", 8443),
        ("ssh://git@github.com/o/r.git", "github.com", 22),
        ("ssh://github.com:2222/o/r", "github.com", 2222),
        ("git@github.com:o/r.git", "github.com", 22),
        ("https://[2606:4700::1]/o/r", "2606:4700::1", 443),
    ],
)
def test_an_ordinary_address_is_taken_as_it_is(url: str, host: str, port: int) -> None:
    remote = check_remote(url, Git())
    assert (remote.url, remote.host, remote.port) == (url, host, port)


@pytest.mark.parametrize(
    "url",
    [
        "", "-upload-pack=x", "--help", "/srv/repo", "./repo", "file:///srv/repo", "ext::sh -c id", "http://github.com/o/r",
        "git://github.com/o/r", "https://user@github.com/o/r", "https://u:p@github.com/o/r", "https://:p@github.com/o/r",
        "ssh://git:secret@github.com/o/r", "ssh://-oProxyCommand=id/o/r", "ssh://-x@github.com/o", "-x@github.com:o/r",
        "git@-oProxyCommand=id:o/r", "https:///o/r", "https://github.com", "https://github.com/",
        "https://github.com/o r", "https://github.com/o\n/r", "https://github.com/o/r?x=1", "https://github.com/o/r#x", "https://github.com:x/o",
        "https://github.com:99999/o", "https://git hub.com/o", "https://" + "a" * 3000, "hg::https://x/y",
        "https://gith\u200bub.com/o/r", "https://github.com/\x1b[31m", "https://exa_mple.com/o/r", "https://a@b@c/o/r",
    ],
)  # fmt: skip
def test_anything_else_is_refused_before_anything_runs(url: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_remote(url, Git())
    assert (caught.value.code, caught.value.field) == ("invalid_argument", "remote_url")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["localhost", "x.localhost", "127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "[::1]",
             "[fe80::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "[64:ff9b::a00:1]", "100.64.0.1", "printer.local",
             "db.internal"],
)  # fmt: skip
def test_private_hosts_are_refused_unless_the_config_allows_them(host: str) -> None:
    with pytest.raises(RequestError, match="private network"):
        check_remote(f"https://{host}/o/r", Git())
    assert check_remote(f"https://{host}/o/r", Git(allow_private_hosts=True)).host


def test_only_listed_hosts_are_reached_when_there_is_a_list() -> None:
    rules = Git(allowed_hosts=["GitHub.com"])
    assert check_remote("https://github.com/o/r", rules)
    with pytest.raises(RequestError, match=r"gitlab\.com"):
        check_remote("https://gitlab.com/o/r", rules)


def test_a_repository_on_this_machine_needs_the_config() -> None:
    rules = Git(allow_local=True)
    assert check_remote("/srv/repo", rules) == Remote("/srv/repo", "file", "", 0)
    assert check_remote("file:///srv/repo", rules).url == "/srv/repo"
    with pytest.raises(RequestError):
        check_remote("file://host/srv/repo", rules)
    with pytest.raises(RequestError):
        check_remote("srv/repo", rules)


class Names(trio.abc.HostnameResolver):
    """A name server of the test's."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # type: ignore[no-untyped-def]  # noqa: A002
        if not self._addresses:
            raise OSError("no such host")
        return [(2, 1, 6, "", (address, port)) for address in self._addresses]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


async def test_a_public_name_that_leads_to_a_private_address_is_refused() -> None:
    remote = check_remote("https://github.com/o/r", Git())
    trio.socket.set_custom_hostname_resolver(Names("140.82.121.4", "10.0.0.1"))
    with pytest.raises(RequestError, match="private network"):
        await addresses_of(remote, Git())
    assert await addresses_of(remote, Git(allow_private_hosts=True)) == ["140.82.121.4", "10.0.0.1"]


async def test_public_addresses_are_given_back_for_pinning() -> None:
    trio.socket.set_custom_hostname_resolver(Names("140.82.121.4", "140.82.121.4", "2606:4700::1"))
    remote = check_remote("https://github.com/o/r", Git())
    assert await addresses_of(remote, Git()) == ["140.82.121.4", "2606:4700::1"]


async def test_a_host_without_an_address_is_a_failed_clone() -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    with pytest.raises(RequestError) as caught:
        await addresses_of(check_remote("https://github.com/o/r", Git()), Git())
    assert caught.value.code == "clone_failed"


@pytest.mark.parametrize("branch", ["main", "feature/x-1", "v1.2", "user@work", "a" * 200])
def test_ordinary_branches_are_taken(branch: str) -> None:
    assert check_branch(branch) == branch


@pytest.mark.parametrize(
    "branch", ["", "-b", "--upload-pack=x", "a..b", "a b", "a\n", "/a", "a/", ".a", "a.", "a@{1}", "a.lock", "a//b",
               "é", "a" * 201, "a~1", "a^", "a:b", "a\\b", "*"],
)  # fmt: skip
def test_what_git_might_take_for_something_else_is_refused(branch: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_branch(branch)
    assert caught.value.field == "branch"
