"""Which addresses the token may be sent to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.base_url import check_base_url, normalise_base_url


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        pytest.param("api.github.com", "https://api.github.com", id="host"),
        pytest.param("https://api.github.com", "https://api.github.com", id="url"),
        pytest.param("https://api.github.com/", "https://api.github.com", id="trailing-slash"),
        pytest.param("api.github.com/", "https://api.github.com", id="host-trailing-slash"),
        pytest.param("HTTPS://API.GitHub.COM", "https://api.github.com", id="case"),
        pytest.param("https://api.github.com:443", "https://api.github.com", id="own-port"),
        pytest.param("api.acme.ghe.com", "https://api.acme.ghe.com", id="data-residency"),
        pytest.param(
            "https://proxy.acme.example:8443", "https://proxy.acme.example:8443", id="port"
        ),
        pytest.param("https://10.1.2.3", "https://10.1.2.3", id="private-address"),
        pytest.param("https://[2001:db8::1]:444", "https://[2001:db8::1]:444", id="ipv6"),
        pytest.param("https://[2001:DB8::1]:443/", "https://[2001:db8::1]", id="ipv6-own-port"),
        pytest.param("https://localhost", "https://localhost", id="localhost-https"),
        pytest.param("localhost:8443", "https://localhost:8443", id="localhost-without-scheme"),
        pytest.param("http://localhost:8080", "http://localhost:8080", id="localhost"),
        pytest.param("http://localhost:80/", "http://localhost", id="localhost-own-port"),
        pytest.param("http://127.0.0.1:1234", "http://127.0.0.1:1234", id="loopback"),
        pytest.param("http://[::1]:1234", "http://[::1]:1234", id="loopback-ipv6"),
        pytest.param("http://github.tools.svc", "http://github.tools.svc", id="service"),
        pytest.param(
            "http://github.tools.svc.cluster.local:8080",
            "http://github.tools.svc.cluster.local:8080",
            id="service-full-name",
        ),
    ],
)
def test_a_good_address_is_taken_and_has_one_spelling(text: str, normalised: str) -> None:
    assert check_base_url(text) is None
    assert normalise_base_url(text) == normalised
    assert check_base_url(normalised) is None
    assert normalise_base_url(normalised) == normalised


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        # plain http
        ("http://api.github.com", "in the clear"),
        ("http://localhost.evil", "in the clear"),
        ("http://evil.localhost", "in the clear"),
        ("http://127.0.0.1.evil.example", "in the clear"),
        ("http://127.0.0.2", "in the clear"),
        ("http://10.0.0.1", "in the clear"),
        ("http://[::ffff:127.0.0.1]", "in the clear"),
        ("http://[0:0:0:0:0:0:0:1]", "in the clear"),
        ("http://svc", "in the clear"),
        ("http://evilsvc", "in the clear"),
        ("http://a.svc.evil.example", "in the clear"),
        ("http://a.svc.cluster.local.evil", "in the clear"),
        ("http://evil/.svc.cluster.local", "path"),
        ("http://evil/#.svc", "fragment"),
        ("http://evil?.svc", "query"),
        ("http://.svc", "not a host name"),
        ("http://a..svc", "not a host name"),
        # other schemes
        ("ftp://api.github.com", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("ws://localhost", "scheme"),
        ("javascript://api.github.com", "scheme"),
        ("://api.github.com", "scheme"),
        # user names and passwords
        ("https://api.github.com@evil", "user name"),
        ("https://user:secret@api.github.com", "user name"),
        ("https://@api.github.com", "user name"),
        ("api.github.com@evil", "user name"),
        ("https://api.github.com:443@evil", "user name"),
        ("https://localhost:80@evil", "user name"),
        # what stands behind the host
        ("https://api.github.com?", "query"),
        ("https://api.github.com?x=1", "query"),
        ("https://api.github.com#", "fragment"),
        ("https://api.github.com/api/v3", "path"),
        ("https://api.github.com//", "path"),
        ("https://api.github.com/../x", "path"),
        ("https://api.github.com/;x", "path"),
        # ports
        ("https://api.github.com:", "port"),
        ("https://api.github.com:0", "port 0"),
        ("https://api.github.com:99999", "port"),
        ("https://api.github.com:0443", "port"),
        ("https://api.github.com:+443", "port"),
        ("https://api.github.com:44_3", "port"),
        ("https://api.github.com:evil", "port"),
        ("http:evil", "port"),
        ("https:evil", "port"),
        # characters that parsers treat differently
        ("https://api.github.com ", "white space"),
        (" https://api.github.com", "white space"),
        ("https://api.github.com\n", "white space"),
        ("https://api.git\thub.com", "white space"),
        ("https://api.github.com\r\nHost: evil", "white space"),
        ("https://api.github.com\x00.evil", "white space"),
        ("https://evil\\.svc", "backslash"),
        ("https:\\\\api.github.com", "backslash"),
        ("https://api.github.com%2eevil", "percent"),
        ("https://[fe80::1%25eth0]", "percent"),
        # names
        ("", "no host"),
        ("https://", "no host"),
        ("https:///api.github.com", "path"),
        ("https://api.github.com.", "dot"),
        ("http://localhost.", "dot"),
        ("https://api.g\u0131thub.com", "non-ASCII"),
        ("https://api\u3002github\u3002com", "non-ASCII"),
        ("https://\uff41pi.github.com", "non-ASCII"),
        ("https://xn--api-gthub-q4a.com", "internationalised"),
        ("https://XN--80ak6aa92e.com", "internationalised"),
        ("https://api_github.com", "not a host name"),
        ("https://-api.github.com", "not a host name"),
        ("https://api.github.com,evil", "not a host name"),
        ("https://{{host}}", "not a host name"),
        ("https://" + "a" * 64 + ".com", "not a host name"),
        ("https://" + ".".join(["a" * 50] * 6), "not a host name"),
        # addresses that hand out a cloud's credentials, in every spelling
        ("https://169.254.169.254", "metadata"),
        ("https://169.254.170.2", "link-local"),
        ("http://169.254.169.254", "metadata"),
        ("https://[::ffff:169.254.169.254]", "metadata"),
        ("https://[::ffff:a9fe:a9fe]", "metadata"),
        ("https://[::169.254.169.254]", "metadata"),
        ("https://[64:ff9b::169.254.169.254]", "metadata"),
        ("https://[2002:a9fe:a9fe::1]", "metadata"),
        ("https://[2001:0:a9fe:a9fe::1]", "metadata"),
        ("https://[fe80::1]", "link-local"),
        ("https://[fd00:ec2::254]", "metadata"),
        ("https://[::ffff:100.100.100.200]", "metadata"),
        ("https://100.100.100.200", "metadata"),
        ("https://168.63.129.16", "metadata"),
        ("https://192.0.0.192", "metadata"),
        ("https://metadata.google.internal", "metadata"),
        # addresses that only some resolvers read as such
        ("https://2852039166", "four plain decimal"),
        ("https://0xa9fea9fe", "four plain decimal"),
        ("https://169.254.43518", "four plain decimal"),
        ("https://0251.0376.0251.0376", "four plain decimal"),
        ("https://0xA9.0xFE.0xA9.0xFE", "four plain decimal"),
        ("http://127.1", "four plain decimal"),
        ("https://1.2.3.4.5", "four plain decimal"),
        ("https://256.1.1.1", "four plain decimal"),
        # addresses of nobody
        ("https://0.0.0.0", "one machine"),
        ("https://[::]", "one machine"),
        ("https://224.0.0.1", "one machine"),
        ("https://[ff02::1]", "one machine"),
        # brackets
        ("https://[::1", "can't be read"),
        ("https://::1", "can't be read"),
        ("https://[::1]evil", "can't be read"),
        ("https://evil[::1]", "can't be read"),
        ("https://[v1.a]", "can't be read"),
        ("https://[localhost]", "can't be read"),
    ],
)
def test_an_address_that_is_no_safe_place_for_the_token_is_refused(text: str, reason: str) -> None:
    found = check_base_url(text)
    assert found is not None
    assert reason in found


@given(st.text(max_size=60))
def test_any_text_is_judged_without_an_exception(text: str) -> None:
    for candidate in (text, f"https://{text}", f"http://{text}", f"https://[{text}]"):
        if check_base_url(candidate) is None:
            once = normalise_base_url(candidate)
            assert check_base_url(once) is None
            assert normalise_base_url(once) == once


@given(st.text(alphabet="abc.:/@[]#?%\\0129 -", max_size=30))
def test_http_is_only_ever_taken_for_this_machine_or_a_service(text: str) -> None:
    if check_base_url(f"http://{text}") is None:
        authority = normalise_base_url(f"http://{text}").removeprefix("http://")
        host = authority.rpartition(":")[0] if authority[-1:].isdigit() else authority
        host = host or authority
        local = {"localhost", "127.0.0.1", "[::1]"}
        assert host in local or authority in local or host.endswith((".svc", ".svc.cluster.local"))
