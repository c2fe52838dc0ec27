// Puts formulas in place: Streamlit's sanitizer leaves no MathML in what st.html draws, so drawing/markdown.py hands it over
// in an attribute. An observer is told before the browser paints, so the source underneath is never seen.
(() => {
  if (window.tokenwireFormulas) return;
  const MATHML = "http://www.w3.org/1998/Math/MathML";
  // As in markdown.py: whatever else may get an attribute past the sanitizer, it gets no more than a formula by it.
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
  window.tokenwireFormulas = new MutationObserver((changes) => {
    for (const { addedNodes } of changes) {
      for (const node of addedNodes) if (node.nodeType === Node.ELEMENT_NODE && node.isConnected) drawAll(node);
    }
  });
  window.tokenwireFormulas.observe(document.body, { childList: true, subtree: true });
  drawAll(document.body);
})();
