"""The default model is one that stays; of others the server says at its start that they don't."""

import pytest

from service import app
from service.providers import registry
from service.providers.spec import DEFAULT_MODEL
from service.settings import Settings

OLD = "gemini-2.5-flash"


def settings(model: str) -> Settings:
    return Settings.load(["--emulator", "127.0.0.1:1", "--model", model], {}, prog="tokenwire serve")


async def test_the_default_model_is_neither_deprecated_nor_a_preview(lines: list[str]) -> None:
    told = settings(DEFAULT_MODEL)
    registry.imported(told.offers)
    async with app._model(told, {}) as model:
        (card,) = model.cards
        assert card.max_input_tokens is not None  # LangChain knows it
        assert not card.deprecated
    assert "preview" not in DEFAULT_MODEL
    assert lines == []


@pytest.mark.parametrize("tells", [True, False])
async def test_a_deprecated_model_is_told_once(lines: list[str], tells: bool) -> None:
    told = settings(OLD)
    registry.imported(told.offers)
    async with app._model(told, {}, tells=tells) as model:
        assert model.cards[0].deprecated
    said = f"{OLD} is deprecated: its provider is about to take it away; offer another one"
    assert lines == [said] * tells
