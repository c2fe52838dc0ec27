"""Settings: flags, variables, defaults, and what is said of those that can't be taken."""

from dataclasses import fields
from urllib.parse import quote

import pytest

from service.providers.spec import Offer
from service.settings import SettingError, Settings, source

PROG = "tokenwire serve"


def load(*argv: str, **environ: str) -> Settings:
    return Settings.load(argv, environ, prog=PROG)


def test_nothing_need_be_set() -> None:
    assert load() == Settings()


def test_a_variable_is_read() -> None:
    settings = load(TOKENWIRE_PORT="1234", TOKENWIRE_REFLECTION="off", TOKENWIRE_MODELS="a, b,", TOKENWIRE_GRACE="1.5")
    assert (settings.port, settings.reflection, settings.grace) == (1234, False, 1.5)
    assert settings.models == (Offer("a"), Offer("b"))


def test_a_flag_wins_over_its_variable() -> None:
    assert load("--port", "2", TOKENWIRE_PORT="1").port == 2


def test_an_empty_variable_is_unset() -> None:
    assert load(TOKENWIRE_PORT="").port == Settings().port


@pytest.mark.parametrize("one", fields(Settings), ids=lambda one: one.name)
def test_every_setting_can_be_set_by_its_variable_and_by_its_flag(one) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 - Field is generic in a way nobody writes
    other = {
        "reflection": "false",
        "langsmith": "true",
        "log_upstream_text": "true",
        "log_level": "error",
        "log_format": "json",
        "models": "x,y",
        "max_deadline": "500",
        "host": "::1",
        "insecure": "true",
        "behind_proxy": "true",
        "redis_url": "redis://h",
        "redis_away": "closed",
        "scheduling": "normal",
    }
    other |= {"emulator": "h:1", "emulator_rest": "h:1"}
    value = other.get(one.name, "7")
    flag = "--" + one.name.replace("_", "-")
    beside = {
        "redis_url": {"TOKENWIRE_API_KEYS": "7"},
        "redis_password_file": {"TOKENWIRE_REDIS_URL": "redis://h", "TOKENWIRE_API_KEYS": "7"},
        "tls_certificate": {"TOKENWIRE_TLS_KEY": "7"},
        "tls_key": {"TOKENWIRE_TLS_CERTIFICATE": "7"},
        "tls_client_ca": {"TOKENWIRE_TLS_CERTIFICATE": "7", "TOKENWIRE_TLS_KEY": "7"},
    }.get(one.name, {})
    by_flag, by_variable = load(flag, value, **beside), load(**{source(one).variable: value, **beside})
    assert getattr(by_flag, one.name) == getattr(by_variable, one.name) != one.default


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("TOKENWIRE_PORT", "http", "a whole number from 0 to 65535 is wanted"),
        ("TOKENWIRE_PORT", "65536", "a whole number from 0 to 65535 is wanted"),
        ("TOKENWIRE_REFLECTION", "perhaps", "true or false is wanted"),
        ("TOKENWIRE_GRACE", "-1", "seconds, from 0 to 3600 is wanted"),
        ("TOKENWIRE_GRACE", "nan", "seconds, from 0 to 3600 is wanted"),
        ("TOKENWIRE_LOG_LEVEL", "loud", "one of debug, info, warning, error is wanted"),
        ("TOKENWIRE_MODELS", ",", "a comma-separated list of models is wanted"),
        ("TOKENWIRE_MODELS", "a,a", "a list that has each name once is wanted"),
    ],
)
def test_a_value_that_cannot_be_taken_is_named_with_what_is_wanted(name: str, value: str, wanted: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(**{name: value})
    assert str(caught.value) == f"{name} is {value!r}: {wanted}"


def test_a_flag_that_cannot_be_taken_is_named_as_a_flag() -> None:
    with pytest.raises(SettingError, match=r"^--port is 'x': a whole number"):
        load("--port", "x")


def test_the_default_deadline_is_within_the_maximum() -> None:
    with pytest.raises(SettingError, match="TOKENWIRE_DEFAULT_DEADLINE is 700: at most TOKENWIRE_MAX_DEADLINE"):
        load(TOKENWIRE_DEFAULT_DEADLINE="700")


@pytest.mark.parametrize(
    ("flags", "environ", "told"),
    [
        (
            ["--max-deadline", "5"],
            {},
            "--max-deadline is 5: at least TOKENWIRE_DEFAULT_DEADLINE, which is unset and so 120",
        ),
        (
            [],
            {"TOKENWIRE_MAX_DEADLINE": "5"},
            "TOKENWIRE_MAX_DEADLINE is 5: at least TOKENWIRE_DEFAULT_DEADLINE, which",
        ),
        (["--default-deadline", "700"], {}, "--default-deadline is 700: at most TOKENWIRE_MAX_DEADLINE (600, which is"),
        (
            ["--default-deadline", "9"],
            {"TOKENWIRE_MAX_DEADLINE": "5"},
            "--default-deadline is 9: at most TOKENWIRE_MAX_DEADLINE (5) is wanted",
        ),
    ],
)
def test_deadlines_that_do_not_fit_are_told_by_what_set_them_with_all_else(
    flags: list[str], environ: dict[str, str], told: str
) -> None:
    with pytest.raises(SettingError) as caught:
        load(*flags, "--grace", "x", **environ)
    first, second = str(caught.value).splitlines()
    assert first.startswith("--grace is 'x'")
    assert second.startswith(told)
    with pytest.raises(SettingError, match=r"^--max-deadline is 'x': seconds[^\n]*$"):
        load("--max-deadline", "x", "--default-deadline", "700")  # it can't be told whether that fits


def test_flags_that_there_are_not_are_told_with_all_else() -> None:
    with pytest.raises(SettingError) as caught:
        load("--grcae", "5", "--port", "x", "stray", "--nonsense=1", TOKENWIRE_QUEUE="x")
    assert str(caught.value).splitlines() == [
        "--grcae is no flag: --grace is wanted",
        "'stray' belongs to no flag: flags and their values are wanted",
        "--nonsense is no flag: one that --help tells is wanted",
        "--port is 'x': a whole number from 0 to 65535 is wanted",
        "TOKENWIRE_QUEUE is 'x': a whole number from 0 to 100000 is wanted",
    ]
    with pytest.raises(SettingError) as caught:
        load("--port", TOKENWIRE_QUEUE="x")
    assert str(caught.value).splitlines()[0] == "--port has no value: PORT is wanted"
    assert str(caught.value).splitlines()[1].startswith("TOKENWIRE_QUEUE is 'x'")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("PROJECT", "GOOGLE_CLOUD_PROJECT"),
        ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_PROJECT"),
        ("LOCATION", "GOOGLE_CLOUD_LOCATION"),
        ("EMULATOR", "VERTEX_EMULATOR_HOST"),
        ("EMULATOR_REST", "VERTEX_EMULATOR_REST_HOST"),
        ("LOG", "one that --help tells"),
        ("RETRIES", "one that --help tells"),
        ("API_KEY", "TOKENWIRE_API_KEYS"),
        ("port", "one that --help tells"),
        ("PORT_", "TOKENWIRE_PORT"),
    ],
)
def test_a_variable_of_our_prefix_that_is_no_setting_is_refused(name: str, wanted: str) -> None:
    with pytest.raises(SettingError) as caught:
        Settings.load([], {f"TOKENWIRE_{name}": "x"}, prog="p")
    assert str(caught.value) == f"TOKENWIRE_{name} is set, and is no setting: {wanted} is wanted"
    assert Settings.load([], {f"TOKENWIRE_{name}": ""}, prog="p") == Settings()


def test_help_tells_every_flag_with_its_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for one in fields(Settings):
        assert f"--{one.name.replace('_', '-')} " in told
        assert f"[{source(one).variable}; " in told


@pytest.mark.parametrize(
    "flag",
    [
        "--port PORT",
        "--max-deadline SECONDS",
        "--max-prompt-bytes BYTES",
        "--slots-per-caller COUNT",
        "--emulator HOST:PORT",
        "--reflection true|false",
        "--fallback-model MODEL",
        "--tls-certificate FILE",
    ],
)
def test_help_tells_what_kind_of_value_a_flag_wants(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--help")
    assert f" {flag} " in capsys.readouterr().out.replace("\n", " ")


def test_the_default_model_comes_first_and_once() -> None:
    assert Settings(model="b", models=(Offer("a"), Offer("b"), Offer("c"))).offered == ("b", "a", "c")


def test_an_ipv6_host_is_bracketed() -> None:
    assert Settings(host="::1", port=1).address == "[::1]:1"


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("[::1]", "[::1]:1"),
        ("::1", "[::1]:1"),
        ("localhost", "localhost:1"),
        ("127.0.0.1", "127.0.0.1:1"),
        ("127.8.9.1", "127.8.9.1:1"),
        ("unix:/run/tokenwire.socket", "unix:/run/tokenwire.socket"),
        ("unix:///run/tokenwire.socket", "unix:/run/tokenwire.socket"),
    ],
)
def test_what_only_this_machine_can_reach_needs_no_tls(value: str, address: str) -> None:
    assert load("--host", value, "--port", "1").address == address
    assert not load("--host", value).exposed


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "10.0.0.1", "gateway.example", "0", "localhost.example"])
def test_what_others_can_reach_needs_tls_or_a_switch(host: str) -> None:
    with pytest.raises(SettingError) as caught:
        load("--host", host)
    plain = host.strip("[]")
    tls, proofs = (
        "TLS (TOKENWIRE_TLS_CERTIFICATE, TOKENWIRE_TLS_KEY)",
        "proofs of who calls (TOKENWIRE_API_KEYS or TOKENWIRE_CALLERS)",
    )
    start = f"--host is {plain!r}, which others than this machine can reach: "
    assert str(caught.value) == f"{start}{tls} and {proofs} are wanted, or --insecure true"
    with_tls = {"TOKENWIRE_TLS_CERTIFICATE": "a", "TOKENWIRE_TLS_KEY": "b"}
    for beside, lacks in ((with_tls, proofs), ({"TOKENWIRE_API_KEYS": "c"}, tls)):
        with pytest.raises(SettingError) as caught:
            load("--host", host, **beside)
        assert str(caught.value) == f"{start}{lacks} are wanted, or --insecure true"
    assert load("--host", host, "--insecure", "true").exposed
    for proof in ("API_KEYS", "CALLERS", "TLS_CLIENT_CA"):
        assert load("--host", host, **with_tls, **{f"TOKENWIRE_{proof}": "c"}).host == plain


@pytest.mark.parametrize(
    "host", ["a b", "[::1", "1.2.3.400", "h:1", "unix:", "unix:run/a", "unix:/" + "a" * 107, "http://h"]
)
def test_a_host_that_nothing_can_listen_on_is_refused(host: str) -> None:
    with pytest.raises(SettingError, match=r"^--host is .*unix:/PATH"):
        load("--host", host)


def test_settings_of_tls_stand_together() -> None:
    with pytest.raises(SettingError) as caught:
        load("--tls-key", "k", TOKENWIRE_TLS_CLIENT_CA="c")
    assert str(caught.value).splitlines() == [
        "--tls-key is set: TOKENWIRE_TLS_CERTIFICATE is wanted beside it",
        "TOKENWIRE_TLS_CLIENT_CA is set: TOKENWIRE_TLS_CERTIFICATE is wanted beside it",
    ]
    with pytest.raises(
        SettingError, match=r"^TOKENWIRE_TLS_CERTIFICATE is set: TOKENWIRE_TLS_KEY is wanted beside it$"
    ):
        load(TOKENWIRE_TLS_CERTIFICATE="c")


@pytest.mark.parametrize(
    "url",
    [
        *("redis://h", "redis://h:6380", "redis://h/3", "redis://:p%2Fq@h:6380/", "rediss://user:p@[::1]:6380/0"),
        *("rediss://h?ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem", "unix:///run/redis.sock?db=1"),
    ],
)
def test_the_address_of_a_redis(url: str) -> None:
    settings = load(TOKENWIRE_REDIS_URL=url, TOKENWIRE_CALLERS="c")
    assert settings.redis_url == url
    assert url not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        *("secret", "h:secret", "http://secret@h", "redis://", "redis://:secret@", "redis://:sec/ret@h"),
        *("redis://h:0/secret", "redis://h:secret", "redis://:secret@h:99999", "redis://h/secret", "redis://h#secret"),
        *("redis://h?ssl_ca_certs=secret", "redis://h?password=secret", "rediss://h?secret", "redis://[secret"),
        *("unix://secret/run/redis.sock", "unix:secret", "unix:///run/a?secret=1", "redis://:secret\n@h"),
    ],
)
def test_what_is_no_address_of_a_redis_is_refused_and_not_told(url: str) -> None:
    for flags, environ in ((["--redis-url", url], {}), ([], {"TOKENWIRE_REDIS_URL": url})):
        with pytest.raises(SettingError) as caught:
            Settings.load([*flags, "--api-keys", "k"], environ, prog="p")
        assert str(caught.value).partition(":")[0] in ("--redis-url", "TOKENWIRE_REDIS_URL")
        assert str(caught.value).endswith("or unix:///PATH[?db=DATABASE], is wanted")
        assert "secret" not in str(caught.value)


def test_what_does_not_fit_a_redis_is_told_at_once_without_its_password() -> None:
    with pytest.raises(SettingError) as caught:
        load("--redis-url", "redis://:secret@h", "--redis-password-file", "f", "--redis-away", "ajar")
    told = str(caught.value).splitlines()
    assert [line.partition(",")[0] for line in told] == [
        "--redis-away is 'ajar': one of open",
        "--redis-url is set: proofs of who calls (TOKENWIRE_API_KEYS or TOKENWIRE_CALLERS) are wanted beside it",
        "--redis-url has a password",
        "--redis-url has a password: none is wanted beside TOKENWIRE_REDIS_PASSWORD_FILE",
    ]
    assert told[2].endswith("TOKENWIRE_REDIS_URL or TOKENWIRE_REDIS_PASSWORD_FILE is wanted for it")
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingError, match=r"^--redis-password-file is set: TOKENWIRE_REDIS_URL is wanted beside it$"):
        load("--redis-password-file", "f")
    load("--api-keys", "k", TOKENWIRE_REDIS_URL="redis://:secret@h")


def test_processes_cannot_share_a_unix_domain_socket() -> None:
    with pytest.raises(SettingError, match=r"^TOKENWIRE_WORKERS is 2: 1 is wanted, since processes can't share"):
        load("--host", "unix:/run/a", TOKENWIRE_WORKERS="2")


def test_all_that_is_wrong_is_told_at_once() -> None:
    environ = {
        "TOKENWIRE_GRACEE": "5",
        "TOKENWIRE_LOGLEVEL": "debug",
        "VERTEX_EMULATOR_HOST": "nonsense",
        "TOKENWIRE_MODELS": "a=openai:m?base_url=http://x, b=openai:m",
        "OPENAI_API_KEY": "key\n",
    }
    with pytest.raises(SettingError) as caught:
        Settings.load(["--port", "x"], environ, prog="p")
    assert str(caught.value).splitlines() == [
        "--port is 'x': a whole number from 0 to 65535 is wanted",
        "VERTEX_EMULATOR_HOST is 'nonsense': HOST:PORT, such as 127.0.0.1:8080, is wanted",
        "TOKENWIRE_MODELS: 'a' with an API key in OPENAI_API_KEY of plain letters and signs, without spaces, is wanted",
        "TOKENWIRE_MODELS: 'b' with an API key in OPENAI_API_KEY of plain letters and signs, without spaces, is wanted",
        "TOKENWIRE_GRACEE is set, and is no setting: TOKENWIRE_GRACE is wanted",
        "TOKENWIRE_LOGLEVEL is set, and is no setting: TOKENWIRE_LOG_LEVEL is wanted",
    ]


@pytest.mark.parametrize("key", ["a b", "a\n", "\u201ckey\u201d", "a\x00", "\ufeffkey"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_told(key: str) -> None:
    with pytest.raises(SettingError, match="OPENAI_API_KEY") as caught:
        Settings.load([], {"TOKENWIRE_MODELS": "a=openai:m", "OPENAI_API_KEY": key}, prog="p")
    assert "key" not in str(caught.value).replace("API key", "")


@pytest.mark.parametrize("address", ["api.openai.com/v1", "https://", "ftp://h/v1", "https://user@h/v1", "https://h v"])
def test_an_address_without_a_scheme_or_host_is_refused(address: str) -> None:
    refuse_address(address)


@pytest.mark.parametrize(
    "address",
    [
        *("http://h:abc", "http://h:99999", "http://h:0", "http://h:", "http://:80", "https://https://h"),
        *("http://\u201ch\u201d", "http://[::1/v1", "http://[::1", "http://::1/v1", "http://[fe80::1%eth0]/v1"),
        *("http://h/v 1", "http://h\\x", "http://256.1.1.1", "http://a..b", "http://-h", "http:///v1", "http:h"),
    ],
)
def test_an_address_that_no_call_could_reach_is_refused(address: str) -> None:
    refuse_address(address)
    with pytest.raises(SettingError, match=r"TOKENWIRE_MODELS is .*endpoint as https"):
        load(TOKENWIRE_MODELS=f"a=azure:m?api_version=v&endpoint={address}", AZURE_OPENAI_API_KEY="k")
    with pytest.raises(SettingError, match="endpoint in AZURE_OPENAI_ENDPOINT as https"):
        load(TOKENWIRE_MODELS="a=azure:m?api_version=v", AZURE_OPENAI_ENDPOINT=address, AZURE_OPENAI_API_KEY="k")


def refuse_address(address: str) -> None:
    for provider in ("openai", "genai"):
        with pytest.raises(SettingError, match=r"^--models is .*base_url as https"):
            Settings.load(["--models", f"a={provider}:m?base_url={address}"], {"OPENAI_API_KEY": "k"}, prog="p")


@pytest.mark.parametrize("value", ["a\nb", "\u201ca\u201d", "a b", "a\x00"])
@pytest.mark.parametrize(
    ("provider", "option"),
    [
        *(("vertex", "project"), ("vertex", "location"), ("genai", "project"), ("genai", "location")),
        *(("openai", "organization"), ("azure", "api_version")),
    ],
)
def test_an_option_that_no_header_or_path_can_hold_is_refused(provider: str, option: str, value: str) -> None:
    with pytest.raises(SettingError, match=r"^TOKENWIRE_MODELS is .* wanted$"):
        load(TOKENWIRE_MODELS=f"a={provider}:m?{option}={quote(value)}", OPENAI_API_KEY="k")


@pytest.mark.parametrize("value", ["a\nb", "\u201ca\u201d", "a b", "a/b"])
def test_a_project_or_region_that_no_path_can_hold_is_refused(value: str) -> None:
    with pytest.raises(SettingError) as caught:
        load("--project", value, GOOGLE_CLOUD_LOCATION=value)
    assert [line.partition(" is ")[0] for line in str(caught.value).splitlines()] == [
        "--project",
        "GOOGLE_CLOUD_LOCATION",
    ]
    with pytest.raises(SettingError, match="api_version in OPENAI_API_VERSION of plain letters"):
        load(TOKENWIRE_MODELS="a=azure:m?endpoint=https://h", OPENAI_API_VERSION=value, AZURE_OPENAI_API_KEY="k")


@pytest.mark.parametrize("option", ["max_input_tokens", "max_output_tokens"])
def test_a_count_that_the_contract_cannot_tell_is_refused(option: str) -> None:
    load(TOKENWIRE_MODELS=f"a=vertex:m?{option}={2**32 - 1}")
    for value in (2**32, 99999999999999999999, "9" * 5000):
        with pytest.raises(SettingError, match="whole number of tokens"):
            load(TOKENWIRE_MODELS=f"a=vertex:m?{option}={value}")


def test_a_model_whose_name_breaks_the_line_is_refused() -> None:
    with pytest.raises(SettingError, match=r"--model is .*without line breaks"):
        load("--model", "a\nb")
    with pytest.raises(SettingError, match="without line breaks"):
        load(TOKENWIRE_MODELS="a=azure:m\nb")


@pytest.mark.parametrize(
    "value",
    [
        "nonsense",
        "h:",
        "\u201ch\u201d:80",
        "[::::]:80",
        "1.2.3.400:80",
        "h:0",
        "h:70000",
        ":8080",
        "http://h:80",
        "h:80/",
        "::1:80",
    ],
)
def test_an_emulator_that_is_no_address_is_refused(value: str) -> None:
    with pytest.raises(SettingError, match="HOST:PORT"):
        Settings.load(["--emulator", value], {}, prog="p")


def test_what_kubernetes_and_others_set_is_left_alone() -> None:
    links = {"TOKENWIRE_PORT": "tcp://10.0.0.1:50051", "TOKENWIRE_WORKERS_PORT": "tcp://10.0.0.2:80"}
    assert Settings.load([], links, prog="p") == Settings()
    # A value of somebody's own is never passed over.
    with pytest.raises(SettingError, match=r"^TOKENWIRE_HOST is 'tcp://h'"):
        load(TOKENWIRE_HOST="tcp://h")
    others = ["TOKENWIRE_SERVICE_HOST", "TOKENWIRE_PORT_50051_TCP_ADDR", "TOKENWIRE_ADDRESS", "TOKENWIRE_CACHE"]
    others += [
        "TOKENWIRE_PAGE_DATA",
        "TOKENWIRE_SERVICE_PORT",
        "TOKENWIRE_SERVICE_PORT_GRPC",
        "TOKENWIRE_PORT_50051_TCP",
    ]
    others += ["TOKENWIRE_PORT_50051_TCP_PROTO", "TOKENWIRE_EMULATOR_SERVICE_HOST", "TOKENWIRE_UI_2_PORT_80_TCP_PORT"]
    assert Settings.load([], dict.fromkeys(others, "x"), prog="p") == Settings()


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ("--insecure", "true or false"),
        ("--workers", "COUNT"),
        ("--grace", "SECONDS"),
        ("--api-keys", "FILE"),
        ("--emulator", "HOST:PORT"),
    ],
)
def test_a_flag_without_its_value_is_told_what_it_wants(flag: str, wanted: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(flag)
    assert str(caught.value) == f"{flag} has no value: {wanted} is wanted"


def test_the_metrics_cannot_have_the_port_of_the_calls() -> None:
    with pytest.raises(SettingError) as caught:
        load("--port", "9464", TOKENWIRE_METRICS_PORT="9464")
    assert str(caught.value) == "TOKENWIRE_METRICS_PORT is 9464: another port than that of --port is wanted"
    with pytest.raises(
        SettingError, match="--metrics-port is 50051: another port than that of TOKENWIRE_PORT is wanted"
    ):
        load("--metrics-port", "50051")
    assert load("--host", "unix:/tmp/socket", "--metrics-port", "50051").metrics_port == 50051
    assert load("--port", "0", "--metrics-port", "0").port == 0
