"""A click does what its button says, once, also where it comes before the session has drawn the button."""

from pathlib import Path
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as some
from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates
from streamlit.testing.v1 import AppTest

import gateway_ui
from gateway_ui import clicks


def page() -> None:
    import streamlit as st  # noqa: PLC0415 - Streamlit runs this function by itself

    from gateway_ui import clicks  # noqa: PLC0415 - Streamlit runs this function by itself
    from gateway_ui.tab import this_tab  # noqa: PLC0415 - Streamlit runs this function by itself

    def note(button: str, field: str = "") -> None:
        said = st.session_state[field] if field else ""
        st.session_state.setdefault("noted", []).append((button, said))

    clicks.follow(this_tab())
    clicks.button("Of itself", "a", note, ("Of itself",))
    with st.form("form"):
        st.text_area("Typed", key="typed")
        clicks.submit("In a form", "b", note, ("In a form", "typed"))


@settings(max_examples=20, deadline=None)
@given(
    some.lists(
        some.tuples(some.sampled_from(["Of itself", "In a form"]), some.text("ab", max_size=2)), min_size=1, max_size=4
    )
)
def test_each_click_is_followed_once_and_with_what_was_typed(clicked: list[tuple[str, str]]) -> None:
    before = AppTest.from_function(page).run()  # the session whose buttons still stand in the browser
    ids = {one.label: one.proto.id for one in before.button}
    typed = before.text_area[0].proto.id
    session = AppTest.from_function(page)
    for button, text in clicked:
        states = [WidgetState(id=ids[button], trigger_value=True), WidgetState(id=typed, string_value=text)]
        cast(Any, session)._run(WidgetStates(widgets=states))
        assert not session.exception
    session.run()
    assert session.session_state.noted == [(one, text if one == "In a form" else "") for one, text in clicked]


def test_every_button_of_the_page_is_drawn_so() -> None:
    """All that call something; a download is the browser's own."""
    folder = Path(gateway_ui.__file__).parent
    others = [one for one in folder.rglob("*.py") if one != Path(clicks.__file__)]
    assert len(others) > 20
    for file in others:
        text = file.read_text()
        assert "st.button" not in text, file
        assert "form_submit_button" not in text, file
