// Keeps what is being typed into a form, and the draft of each conversation. Streamlit forgets a form as soon as it isn't
// drawn, such as when another conversation is opened, and so does the browser all of it when the page is loaded anew.
(() => {
  if (window.tokenwireDrafts) return;
  const FIELD = '[class*="st-key-edit-"] textarea, [class*="st-key-result-"] textarea';
  const PREFIX = "tokenwire-draft:";
  const FRAMES = 20;
  const OF_EDIT = /^tokenwire-draft:edit-([0-9a-f]+)-words$/;
  const EMPTY = "tokenwire-empty";
  const keyOf = (field) => {
    const { classList } = field.closest('[class*="st-key-edit-"], [class*="st-key-result-"]');
    return PREFIX + [...classList].find((name) => /^st-key-(edit|result)-/.test(name)).slice("st-key-".length);
  };
  const keep = (field) => kept.setItem(keyOf(field), field.value);
  // As if it had been typed: React looks at nothing else.
  const write = (field, text) => {
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  // React may still write what the field says by itself into one that has just come. What is typed there meanwhile is the
  // draft by then, so nothing of it is lost.
  const bringBack = (field, frames = FRAMES) => {
    const draft = field.isConnected ? kept.getItem(keyOf(field)) : null;
    if (draft === null) return;
    if (draft !== field.value) write(field, draft);
    if (frames) requestAnimationFrame(() => bringBack(field, frames - 1));
  };

  document.addEventListener("input", ({ target }) => {
    if (target.matches?.(FIELD)) keep(target);
  }, true);
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes) {
      for (const node of addedNodes) {
        if (node.nodeType !== Node.ELEMENT_NODE || !node.isConnected) continue;
        if (node.matches(FIELD)) bringBack(node);
        else node.querySelectorAll(FIELD).forEach((field) => bringBack(field));
        if (untold.size && (node.matches(IN_DRAWER) || node.querySelector(IN_DRAWER))) retypes();
      }
    }
  }).observe(document.body, { childList: true, subtree: true });
  document.querySelectorAll(FIELD).forEach((field) => bringBack(field));

  // What a field for numbers shows and isn't one ("1e", a lone dash) nobody but the browser would ever know of.
  document.addEventListener("focusout", ({ target }) => {
    if (target.matches?.('input[type="number"]') && target.validity.badInput) write(target, "");
    leave(keyInDrawer(target));
  }, true);

  // Streamlit tells the script what a field of the drawer says only once it is left. So it is kept until then, and typed
  // and left anew when the page was loaded meanwhile.
  const UNTOLD = "tokenwire-untold:";
  const IN_DRAWER = '[data-testid="stSidebar"] :is(textarea, input[type="number"], [class*="st-key-title-"] input)';
  const OF_CONVERSATION = /^st-key-(.+-[0-9a-f]{32})(?:-\d+)?$/;
  const left = new Set(); // the keys of what is told with the next run of the script
  const keyInDrawer = (field) => {
    const names = field.matches?.(IN_DRAWER) ? field.closest('[class*="st-key-"]')?.classList ?? [] : [];
    return Array.from(names, (name) => OF_CONVERSATION.exec(name)?.[1]).find(Boolean) ?? "";
  };
  // What is still to be typed anew is kept, though its reader goes through the field meanwhile.
  const leave = (key) => {
    if (key && !untold.has(key)) left.add(key);
  };
  document.addEventListener("input", ({ target }) => {
    const key = keyInDrawer(target);
    if (!key || retyping) return;
    left.delete(key);
    untold.delete(key);
    kept.setItem(UNTOLD + key, target.value);
  }, true);
  // Enter tells it, too; in a field of several lines with another key.
  document.addEventListener("keydown", ({ key, ctrlKey, metaKey, target }) => {
    const told = key === "Enter" && (ctrlKey || metaKey || target.matches?.("input"));
    if (told) leave(keyInDrawer(target));
  }, true);

  // What had been typed into fields when the page was loaded, by their keys.
  const untold = new Map(
    kept.keys().filter((key) => key.startsWith(UNTOLD)).map((key) => [key.slice(UNTOLD.length), { tries: 0 }]),
  );
  const QUIET_MS = 300, LONGEST_MS = 3000, TRIES = 3;
  let retyping = false; // it is us who type
  let looks = 0;
  const asIfByHand = (act) => {
    retyping = true;
    act();
    retyping = false;
  };
  // Only when the page stands there: a run that begins while it is being drawn would throw away what hasn't come yet. And
  // a run that had begun before may make the field say again what it did; so it is looked at once one has ended since.
  const retypes = () => {
    if (looks || !untold.size) return;
    looks = setInterval(() => {
      const state = document.querySelector("[data-test-script-state]")?.getAttribute("data-test-script-state");
      if (state !== "notRunning") return;
      let more = false;
      for (const field of document.querySelectorAll(IN_DRAWER)) {
        const key = keyInDrawer(field), one = untold.get(key);
        if (!one) continue;
        more = true;
        if (one.tries && !one.ran && Date.now() - one.at < LONGEST_MS) continue;
        if (one.tries && (field.value !== one.before || one.tries >= TRIES)) {
          untold.delete(key);
          kept.removeItem(UNTOLD + key);
          continue;
        }
        Object.assign(one, { tries: one.tries + 1, before: field.value, ran: false, at: Date.now() });
        asIfByHand(() => write(field, kept.getItem(UNTOLD + key) ?? field.value));
        // Only then does Streamlit know what it has to tell.
        setTimeout(() => asIfByHand(() => field.dispatchEvent(new FocusEvent("focusout", { bubbles: true }))));
      }
      if (more) return;
      clearInterval(looks);
      looks = 0;
    }, QUIET_MS);
  };

  retypes();

  // The drafts of questions, as they are in this page: the browser may have no room for them.
  const questions = new Map();
  const question = (id) => questions.get(id) ?? kept.getItem(`${PREFIX}question-${id}`) ?? "";
  const keepQuestion = (id, text) => {
    questions.set(id, text);
    kept.removeItem(`${PREFIX}question-${id}`);
    if (text) kept.setItem(`${PREFIX}question-${id}`, text);
    if (id === empty) keepEmpty();
  };
  // The conversation that was shown last of those in which nothing has been asked. Nothing leads back to such a one, so
  // the next one that is empty, as after a reload, takes its draft.
  let empty = kept.getItem(EMPTY) ?? "";
  const keepEmpty = () => {
    if (empty && question(empty)) kept.setItem(EMPTY, empty);
    else kept.removeItem(EMPTY);
  };
  const setEmpty = (id) => {
    empty = id;
    keepEmpty();
  };

  let forgotten = 0;
  let told = ""; // the session that knows what is being edited
  window.tokenwireDrafts = {
    question,
    keepQuestion,
    // Where the words of a question go that was lost on its way. Nothing leads back to a conversation in which nothing has
    // been asked: see `empty`.
    placeOf({ of, isNew }, shown) {
      if (!of || (isNew && shown.isNew)) return shown.id;
      if (!isNew) return of;
      if (!question(empty)) setEmpty(of);
      return empty;
    },
    // A question has been sent in this conversation: a new one takes no draft of it.
    asked(id) {
      if (id === empty) setEmpty("");
    },
    // Whose draft stands in the input already may have become new, or been asked in.
    stays(id, isNew) {
      if (!isNew) this.asked(id);
      else if (!question(empty)) setEmpty(id);
    },
    // The draft of the conversation that is shown from now on; `isNew`: nothing has been asked in it.
    questionOf(id, isNew) {
      if (!isNew) this.asked(id);
      else if (id !== empty) {
        if (empty && !question(id)) {
          keepQuestion(id, question(empty));
          keepQuestion(empty, "");
        }
        setEmpty(id);
      }
      return question(id);
    },
    // Forget what was sent or cancelled: all of it since the session began, by the beginnings of its keys.
    forget(session, done) {
      if (session !== told) forgotten = 0;
      for (const key of done.slice(forgotten)) {
        const stale = kept.keys().filter((one) => one.startsWith(`${PREFIX}${key}-`));
        for (const one of stale) kept.removeItem(one);
      }
      forgotten = done.length;
    },
    // The script runs, and has been told what was left before.
    runs() {
      for (const key of left) kept.removeItem(UNTOLD + key);
      left.clear();
      for (const one of untold.values()) one.ran = true;
    },
    // Whoever goes elsewhere by Back leaves the field that they were typing into.
    leaves() {
      if (keyInDrawer(document.activeElement)) document.activeElement.blur();
    },
    // The exchanges whose questions are being edited: once for each session. The page's process may be another one.
    edited(session) {
      if (session === told) return [];
      told = session;
      return kept.keys().map((key) => OF_EDIT.exec(key)?.[1]).filter(Boolean);
    },
  };
})();
