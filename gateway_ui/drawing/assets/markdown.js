// Puts formulas in place: Streamlit's sanitizer leaves no MathML in what st.html draws, so drawing/markdown/ hands it over
// in an attribute. An observer is told before the browser paints, so the source underneath is never seen.
(() => {
  if (window.tokenwireFormulas) return;
  const MATHML = "http://www.w3.org/1998/Math/MathML";
  // As in mathml.py: whatever else may get an attribute past the sanitizer, it gets no more than a formula by it.
  const ELEMENTS = new Set(("math mrow mi mn mo ms mspace mtext mfrac msqrt mroot mstyle mpadded mphantom msub msup msubsup" +
    " munder mover munderover mmultiscripts mprescripts mtable mtr mtd merror").split(" "));
  const ATTRIBUTES = new Set(("accent accentunder class depth display displaystyle fence form height largeop linethickness" +
    " lspace mathvariant maxsize minsize movablelimits rspace scriptlevel separator stretchy symmetric voffset width")
    .split(" "));

  const copied = (from) => {
    if (from.nodeType === Node.TEXT_NODE) return document.createTextNode(from.data);
    if (from.nodeType !== Node.ELEMENT_NODE || !ELEMENTS.has(from.localName)) return document.createTextNode("");
    const to = document.createElementNS(MATHML, from.localName);
    for (const { name, value } of from.attributes) if (ATTRIBUTES.has(name)) to.setAttribute(name, value);
    to.append(...Array.from(from.childNodes, copied));
    return to;
  };
  const draw = (place) => {
    // A document of XML is only read: it runs nothing, and fetches nothing.
    const { documentElement } = new DOMParser().parseFromString(place.dataset.twMath, "application/xml");
    if (documentElement.localName !== "math") return;
    place.title = place.textContent;
    place.replaceChildren(copied(documentElement));
    delete place.dataset.twMath;
  };
  const drawAll = (root) => {
    if (root.matches("[data-tw-math]")) draw(root);
    root.querySelectorAll("[data-tw-math]").forEach(draw);
  };

  // A long block comes in several segments. The items, rows or lines of the later ones, whose elements are of the class
  // tw-more, are moved to where the block begins, so that it is one for eyes, ears and the clipboard.
  const MORE = ".tw-md > .tw-more:first-child";
  const SEGMENT = '[data-testid="stElementContainer"]';
  const moved = (window.tokenwireMoved = new WeakMap()); // by what they were taken out of
  const holder = (block) => block.querySelector(":scope > pre > code") ?? block.querySelector(":scope > table > tbody") ??
    block.querySelector(":scope > table") ?? block;
  const fragment = (nodes) => {
    const made = document.createDocumentFragment();
    made.append(...nodes);
    return made;
  };
  const begin = (more) => {
    for (let segment = more.closest(SEGMENT)?.previousElementSibling; segment; segment = segment.previousElementSibling) {
      const block = segment.querySelector(".tw-md")?.lastElementChild;
      if (!block) return null;
      if (!block.matches(".tw-more")) return block;
    }
    return null;
  };
  const taken = (from) => {
    if (moved.has(from)) return moved.get(from);
    let nodes = [...from.children];
    if (from.localName === "code") {
      const lines = document.createElement("span");
      lines.append(...from.childNodes);
      nodes = [lines];
    }
    for (const one of nodes) one.dataset.twMoved = "";
    moved.set(from, nodes);
    return nodes;
  };
  // What later segments of the block have brought there. One may be drawn anew when those behind it are there already.
  const following = (more) => {
    // Until another block stands below it: what comes then goes on with that.
    for (let last = more; last && !last.nextElementSibling;) {
      last = last.closest(SEGMENT).nextElementSibling?.querySelector(MORE);
      const node = last && moved.get(holder(last))?.find((one) => one.isConnected);
      if (node) return node;
    }
    return null;
  };
  const join = (more) => {
    const block = begin(more);
    if (!block || block.classList[0] !== more.classList[0] && block.localName !== more.localName) return;
    holder(block).insertBefore(fragment(taken(holder(more))), following(more));
    more.classList.add("tw-joined");
  };
  const joinAll = () => {
    for (const more of document.querySelectorAll(MORE)) {
      const nodes = moved.get(holder(more));
      // What was moved goes with the beginning of its block, should that be drawn anew.
      if (!nodes || nodes.some((one) => !one.isConnected)) join(more);
    }
  };
  const takeBack = (root) => {
    for (const more of root.querySelectorAll(".tw-joined")) moved.get(holder(more))?.forEach((one) => one.remove());
  };

  window.tokenwireFormulas = new MutationObserver((changes) => {
    let segments = false;
    for (const { addedNodes, removedNodes } of changes) {
      for (const node of removedNodes) {
        if (node.nodeType !== Node.ELEMENT_NODE || node.isConnected) continue;
        takeBack(node);
      }
      for (const node of addedNodes) {
        if (node.nodeType !== Node.ELEMENT_NODE || !node.isConnected) continue;
        drawAll(node);
        segments ||= node.matches(".tw-md") || node.querySelector(".tw-md") !== null;
      }
    }
    if (segments) joinAll();
  });
  window.tokenwireFormulas.observe(document.body, { childList: true, subtree: true });
  drawAll(document.body);
  joinAll();
})();
