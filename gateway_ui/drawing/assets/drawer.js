// On a phone the drawer lies over the conversation. It closes once one has been chosen in it. And the list is
// scrolled to the conversation that is open.
(() => {
  if (window.tokenwireDrawer) return;
  const FRAMES = 60; // in which the list may still come
  let open = ""; // the id of the conversation
  const scrollTo = (id, frames) => {
    if (id !== open) return;
    const one = document.querySelector(`.st-key-conversations .st-key-open-${id}`);
    const list = one?.closest(".st-key-conversations");
    if (!list) {
      if (frames) requestAnimationFrame(() => scrollTo(id, frames - 1));
      return;
    }
    // Only the list: `scrollIntoView` would move the drawer, too.
    const above = one.getBoundingClientRect().top - list.getBoundingClientRect().top;
    const below = above + one.offsetHeight - list.clientHeight;
    if (above < 0 || below > 0) list.scrollTop += above < 0 ? above : below;
  };
  window.tokenwireDrawer = {
    shows(id) {
      if (id === open) return;
      open = id;
      scrollTo(id, FRAMES);
    },
  };
  const OVER = matchMedia("(max-width: 768px)"); // as wide as Streamlit has it
  const CHOOSES = '.st-key-new, .st-key-conversations, .st-key-undeletable, [class*="st-key-undo-"]';
  document.addEventListener("click", ({ target }) => {
    if (!OVER.matches || !target.closest?.("button")?.closest(CHOOSES)) return;
    document.querySelector('[data-testid="stSidebarCollapseButton"] button')?.click();
  });
})();
