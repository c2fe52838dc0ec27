// Keeps the focus: Streamlit takes a button away when it has done its work, and the focus would fall to the page's
// beginning. It goes to the button that has come instead, else to the input.
(() => {
  if (window.tokenwireFocus) return;
  const INPUT = 'textarea[data-testid="stChatInputTextArea"]';
  const OURS = '[data-testid="stButton"] button, [data-testid="stFormSubmitButton"] button, [data-testid="stForm"] textarea,' +
    '[data-testid="stSidebarCollapseButton"] button, [data-testid="stExpandSidebarButton"]';
  const MESSAGE = '[data-testid="stChatMessage"]';
  // By a button's name: those that may stand in for it. No other does for a button that isn't here.
  const INSTEAD = {
    Earlier: ["Earlier", "Later"], Later: ["Later", "Earlier"], Cancel: ["Edit"], Delete: ["Undo"], Retry: ["Retry"],
    "Collapse sidebar": ["Expand sidebar"], "Expand sidebar": ["Collapse sidebar"],
  };
  // What comes instead may come a moment later. An answer that is being written keeps the script running for longer.
  const WAIT_MS = 500;

  const nameOf = (one) => (one.getAttribute("aria-label") || one.innerText).trim().split("\n").pop();
  const usable = (one) => one.isConnected && !one.disabled && one.checkVisibility({ visibilityProperty: true });
  const messages = () => [...document.querySelectorAll(MESSAGE)];

  let last = null; // what had the focus: the element, its name, and which message it stood in
  let lostAt = 0;
  let finger = false;
  let looking = false;

  const instead = () => {
    const root = last.message < 0 ? document : messages()[last.message];
    const buttons = [...(root?.querySelectorAll("button") ?? [])].filter(usable);
    for (const name of INSTEAD[last.name] ?? []) {
      const found = buttons.find((one) => nameOf(one).split(":")[0] === name);
      if (found) return found;
    }
    return null;
  };
  const look = () => {
    looking = false;
    if (!last || document.activeElement !== document.body || usable(last.element)) {
      lostAt = 0;
      return;
    }
    lostAt ||= performance.now();
    const found = instead();
    const running = document.querySelector('[data-testid="stApp"]')?.dataset.testScriptState !== "notRunning";
    if (!found && running && performance.now() - lostAt < WAIT_MS) return soon();
    lostAt = 0;
    last = null;
    // The input would bring up a phone's keyboard.
    if (found) found.focus({ preventScroll: true });
    else if (!finger) document.querySelector(INPUT)?.focus({ preventScroll: true });
  };
  const soon = () => {
    if (looking) return;
    looking = true;
    requestAnimationFrame(look);
  };

  document.addEventListener("focusin", ({ target }) => {
    const message = target.closest(MESSAGE);
    last = target.matches(OURS) ? { element: target, name: nameOf(target), message: messages().indexOf(message) } : null;
  });
  // Somebody has clicked beside it.
  document.addEventListener("focusout", ({ target }) => requestAnimationFrame(() => {
    if (last?.element === target && usable(target) && document.activeElement === document.body) last = null;
  }));
  document.addEventListener("pointerdown", (event) => { finger = event.pointerType === "touch"; }, true);
  document.addEventListener("keydown", () => { finger = false; }, true);
  window.tokenwireFocus = new MutationObserver(soon);
  window.tokenwireFocus.observe(document.body, { childList: true, subtree: true, attributeFilter: ["disabled", "data-collapsed"] });
})();
