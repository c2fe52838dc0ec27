"""Which addresses can be reached, and which hosts are this machine."""

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.providers import addresses

HOSTS = st.one_of(
    st.sampled_from(["h", "a.b-c", "[::1]", "[::1", "::1", "127.1", "256.1.1.1", "\u201ch\u201d", "https://h", ""]),
    st.text(alphabet="a1.-_:[]%@/ \u00e9\u201c", max_size=12),
)
ADDRESSES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["http://", "https://", "HTTP://", "http:", "ftp://", "//", ""]),
        HOSTS,
        st.sampled_from(["", ":", ":80", ":0", ":65535", ":65536", ":abc", ":-1", ":80:80"]),
        st.sampled_from(["", "/", "/v1", "/v 1", "/v1/../x", "?a=b", "#a", "/\u201c", "/%2f", "\\x"]),
    ),
)


@given(st.one_of(ADDRESSES, st.text()))
def test_what_is_taken_every_library_can_ask(address: str) -> None:
    if not addresses.is_address(address):
        return
    for url in (httpx.URL(address + "/chat"), httpx2.URL(address + "/chat")):
        assert url.scheme in ("http", "https")
        assert url.host
        assert url.port is None or 0 < url.port < 2**16
        url.host.encode("idna")  # as the resolver does
        assert not url.userinfo
        assert not url.query


@pytest.mark.parametrize(
    "address",
    [
        *("http://h", "https://h/", "http://h:80/v1", "https://a.b-c.example./v1", "http://127.0.0.1:8080/v1"),
        *("http://[::1]:80/v1", "http://[::1]", "http://my_host/v1", "https://xn--mnchen-3ya.de/%20", "HTTPS://H"),
    ],
)
def test_an_address_is_taken(address: str) -> None:
    assert addresses.is_address(address)


LOCAL = [
    *("localhost", "LOCALHOST", "localhost.", "foo.localhost", "foo.localhost.", "127.0.0.1", "127.0.0.2"),
    *("127.1", "0x7f.1", "2130706433", "0.0.0.0", "[::]", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"),
    "[::FFFF:7f00:2]",
]
"""Hosts that are this machine."""

FAR = ["h", "127.example", "localhost.example", "notlocalhost", "10.0.0.1", "[fe80::1]", "1271", "[::ffff:10.0.0.1]"]


@pytest.mark.parametrize("host", LOCAL)
def test_a_host_of_this_machine_is_told_however_it_is_written(host: str) -> None:
    for address in (f"http://{host}", f"http://{host}:80/v1", f"{host}:80", f"http://{host}/a]b:c"):
        assert addresses.is_local(addresses.host_in(address))


@pytest.mark.parametrize("host", FAR)
def test_a_host_elsewhere_is_not_taken_for_this_machine(host: str) -> None:
    for address in (f"http://{host}", f"https://{host}:80/v1", f"{host}:80"):
        assert not addresses.is_local(addresses.host_in(address))
