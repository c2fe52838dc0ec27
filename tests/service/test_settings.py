"""Settings: flags, variables, defaults, and what is said of those that can't be taken."""

from dataclasses import fields

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
    other = {"reflection": "false", "langsmith": "true", "log_level": "error", "models": "x,y", "max_deadline": "500"}
    value = other.get(one.name, "7")
    flag = "--" + one.name.replace("_", "-")
    by_flag, by_variable = load(flag, value), load(**{source(one).variable: value})
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


def test_help_tells_every_flag_with_its_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for one in fields(Settings):
        assert f"--{one.name.replace('_', '-')} " in told
        assert f"[{source(one).variable}; " in told


def test_the_default_model_comes_first_and_once() -> None:
    assert Settings(model="b", models=(Offer("a"), Offer("b"), Offer("c"))).offered == ("b", "a", "c")


def test_an_ipv6_host_is_bracketed() -> None:
    assert Settings(host="::1", port=1).address == "[::1]:1"
