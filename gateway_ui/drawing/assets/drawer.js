// On a phone the drawer lies over the conversation. It closes once one has been chosen in it.
(() => {
  if (window.tokenwireDrawer) return;
  window.tokenwireDrawer = true;
  const OVER = matchMedia("(max-width: 768px)"); // as wide as Streamlit has it
  const CHOOSES = '.st-key-new, .st-key-conversations, .st-key-undeletable, [class*="st-key-undo-"]';
  document.addEventListener("click", ({ target }) => {
    if (!OVER.matches || !target.closest?.("button")?.closest(CHOOSES)) return;
    document.querySelector('[data-testid="stSidebarCollapseButton"] button')?.click();
  });
})();
