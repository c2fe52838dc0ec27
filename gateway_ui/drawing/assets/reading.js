// What the page does for its reader: it follows the answer unless the reader scrolls away, has it read out sentence by
// sentence, puts the cursor into the input, and knows the browser again.

const START_OF_PAGE = '[data-testid="stMain"]';
const INPUT = 'textarea[data-testid="stChatInputTextArea"]';
// Streamlit's lists, menus and dialogs, which Escape closes; one may stand open without having the focus.
const OPEN = '[role="listbox"], [role="dialog"], [role="menu"], [data-testid="stMainMenuPopover"]';
const DIALOG = '[data-testid="stDialog"]';
const CONNECTION_ERROR = "Connection error"; // its title where the page's process is away
const SEND = 'button[data-testid="stChatInputSubmitButton"]';
const HALF = /\p{Cs}/gu; // of a character
const FILE = '[data-testid="stChatInput"] [data-testid="stFileChip"]';
// What opens another conversation.
const OPENS = [".st-key-new", ".st-key-conversations", ".st-key-undeletable", '[class*="st-key-delete-"]',
  '[class*="st-key-undo-"]', '[class*="st-key-back-"]'].map((one) => `${one} button`).join(", ");
const BEGINS = ".st-key-new";
const LEADS = /^st-key-(?:open|undelete|undo|back)-([0-9a-f]{32})$/; // the class of what opens the conversation of this id
const DRAWN = ".tw-drawn"; // behind what opens them, with the session whose script has drawn that
// What begins the edit of a question, and has the class of the form that then stands there.
const EDITS = '[class*="st-key-edit-"]';
// Whatever was sent that long ago without having been taken never will be.
const LOST_MS = 10_000;
const SENT = "tokenwire-sent"; // what has been sent, or is to be, and that the script may not have
const RELEASE_MS = 200;
const COOKIE_MS = 100;
const CONNECTION = "data-test-connection-state"; // of the websocket, as Streamlit tells it
const RUNNING = ".tw-figures[data-running]";
// Under an answer that has come since its conversation was opened.
const NEW = ".tw-figures[data-new]:not([data-running])";
const ANSWER = '[class*="st-key-answer-"]';
const READ_MS = 300;
// So long after an answer has ended, or the page was loaded, its last parts may still come.
const SETTLED_MS = 1000;
const LOADED_MS = 5000;
// The end of a sentence, of a line, or of a list's item, in Western and in Japanese writing.
const SENTENCE = /[.!?…:](?=\s)|[。！？]|\n/g;

const isQuestion = ({ text }) => text !== undefined;

const nonce = () => crypto.getRandomValues(new Uint32Array(2)).join("-");

// Streamlit forgets a question when another is sent before its script has seen the first: the second waits that long.
// What stood in the input when it was sent is put aside, so that the next one can be written.
class Input {
  sent = 0;
  taken = 0;
  // What waits: questions as {text, knowingly}, clicks on what opens another conversation as {key}, and ways back to one
  // as {went}.
  held = [];
  sending = false;
  stale = new WeakSet(); // files that were uploaded to a process of the page that has ended
  lost = ""; // what was refused of a draft's files, once Streamlit has cleared it away with a question that went before
  knowingly = false; // whether a question goes without the refused files
  shown = null; // the conversation that the script shows, as {id, isNew}
  draftOf = ""; // the id of the one whose draft stands there; empty: another one is about to be shown
  lostOf = new Map(); // what was `lost` of the drafts of other conversations
  // The question on its way, until the script says that it has taken it: its words and files' names, the conversation, and
  // which one of the session it is. The connection, the page's process or this page may end before.
  pending = null;
  doubted = false; // whether the script is to say what became of it
  asked = ""; // what it was asked with
  askedAt = 0;
  unmet = false; // whether the connection was lost, and no run of the script has come since
  reachedAt = 0; // when the connection was lost or had again
  enters = false; // whether what stands in the input is to be sent as soon as it is known whether its files are still there
  ahead = ""; // the id of the conversation that is about to be opened, while that is under way; empty: it isn't known
  back = []; // what goes back into the input, since it was never asked; the last one first
  heading = ""; // the id of the conversation that Back or Forward has led to last, until the script has opened it
  corrects = true; // whether the browser's address names what isn't there: another one takes its place, and no step back

  constructor() {
    const { pending = null, back = [] } = this.recalls();
    Object.assign(this, { pending, back, doubted: true });
    this.refusal = document.createElement("div");
    this.refusal.className = "tw-refusal tw-problem";
    this.refusal.setAttribute("role", "alert");
    this.without = document.createElement("button");
    this.without.type = "button";
    this.without.textContent = "Ask without it";
    this.without.onclick = () => this.asksWithout();
    document.addEventListener("keydown", (event) => this.pressed(event), true);
    document.addEventListener("click", (event) => {
      if (event.target.closest?.(SEND)) this.passes(event);
      else if (event.target.closest?.(OPENS)) this.opens(event);
    }, true);
    document.addEventListener("input", (event) => this.makesWhole(event), true);
    document.addEventListener("input", ({ target }) => { if (target.matches?.(INPUT)) this.keeps(); }, true);
    document.addEventListener("compositionstart", () => { this.composing = true; }, true);
    document.addEventListener("compositionend", () => { this.composing = false; }, true);
    // It may be over only in a moment that nobody tells: when what is being composed is done, or when one was lost.
    window.addEventListener("popstate", () => this.goesTo(new URLSearchParams(location.search).get("c") ?? ""));
    setInterval(() => this.release(), RELEASE_MS);
    setInterval(() => this.asks(), RELEASE_MS);
    setInterval(() => { if (!this.refused()) this.refusal.remove(); }, RELEASE_MS);
    document.body.classList.add("tw-there");
  }

  // Half of a character, as a text that was cut may have, can't be sent: Streamlit closes its connection. What is typed
  // may come by halves.
  makesWhole({ target, inputType, isComposing }) {
    if (typeof target.value !== "string" || inputType === "insertText" || isComposing) return;
    const whole = target.value.replace(HALF, "\ufffd");
    if (whole === target.value) return;
    const { selectionStart, selectionEnd } = target;
    this.write(target, whole);
    target.setSelectionRange(selectionStart, selectionEnd);
  }

  free() {
    return this.sent <= this.taken || Date.now() - this.sentAt >= LOST_MS;
  }

  // Whether something may be sent. Whether a question that was on its way is lost is to be known before.
  ready() {
    return this.free() && !this.pending && this.met();
  }

  // Whether the script has run since the connection was lost: until then nobody knows whether the page's process is another
  // one, which counts anew and has none of the files.
  met() {
    return !this.unmet || Date.now() - this.reachedAt >= LOST_MS;
  }

  // Whether this session's script has drawn the buttons that open another conversation. Until then those of the page's
  // process before still stand there, and Streamlit drops, unsaid, a click on a button that it hasn't drawn.
  drawn() {
    const drawn = document.querySelector(DRAWN)?.dataset.session === this.session;
    return drawn || Date.now() - this.reachedAt >= LOST_MS;
  }

  // A reload forgets all but this.
  recalls() {
    try {
      return JSON.parse(kept.getItem(SENT)) ?? {};
    } catch {
      return {};
    }
  }

  remembers() {
    const back = [...this.back, ...this.held.filter(isQuestion)];
    // What is typed while another conversation is about to be shown is nobody's draft yet.
    const typed = this.draftOf || this.sending ? "" : document.querySelector(INPUT)?.value;
    if (typed) back.push({ text: typed, of: this.ahead });
    if (this.pending || back.length) kept.setItem(SENT, JSON.stringify({ pending: this.pending, back }));
    else kept.removeItem(SENT);
  }

  reaches(isLost) {
    if (isLost) this.doubted = this.unmet = true;
    this.reachedAt = Date.now();
  }

  // Only a run of the script that begins from now on knows whether the question has come.
  asks() {
    const connected = document.querySelector(`[${CONNECTION}]`)?.getAttribute(CONNECTION) === "CONNECTED";
    if (!this.pending || !connected || !this.shown || !this.tell) return;
    const since = Date.now() - Math.max(this.askedAt, this.sentAt ?? 0);
    if (!this.doubted && since < LOST_MS) return;
    this.doubted = false;
    this.asked = nonce();
    this.askedAt = Date.now();
    const { session, number, of } = this.pending;
    this.tell("asks", [this.asked, session, number, of]);
  }

  hears(asked, taken) {
    if (!this.pending || asked !== this.asked) return;
    this.asked = ""; // the answer is told with each run from now on, and is of this question alone
    if (!taken) {
      this.back.unshift(this.pending);
      this.sent = this.taken;
    }
    this.pending = null;
    this.remembers();
  }

  // Put what was never asked before what has been typed since.
  putsBack() {
    const input = document.querySelector(INPUT);
    while (this.back.length && this.shown && this.draftOf === this.shown.id) {
      if (this.sending || this.composing || !input || input.disabled) return;
      const one = this.back.at(-1), drafts = window.tokenwireDrafts, to = drafts.placeOf(one, this.shown);
      const lost = (one.files ?? []).map((name) => `${name} can't go along: It was lost on its way.`).join(" ");
      // Nothing leads back to the draft of its conversation either, where another one stands in for that.
      const left = to === one.of ? "" : drafts.question(one.of);
      if (left) drafts.keepQuestion(one.of, "");
      const after = (text) => [one.text, left, text].filter(Boolean).join("\n");
      if (to === this.draftOf) {
        this.write(input, after(input.value));
        this.lost = [lost, this.lost].filter(Boolean).join(" ");
        if (lost) this.tells(this.lost);
      } else {
        drafts.keepQuestion(to, after(drafts.question(to)));
        this.lostOf.set(to, [lost, this.lostOf.get(to)].filter(Boolean).join(" "));
      }
      this.back.pop();
      this.remembers();
    }
  }

  // Enter clicks the button, whatever else is held down: which keys send is told here alone, not by Streamlit, too.
  pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || !event.target.matches?.(INPUT)) return;
    event.stopImmediatePropagation();
    if (event.isComposing || event.keyCode === 229) return; // Safari's way to say so: it belongs to the input method
    event.preventDefault();
    document.querySelector(SEND)?.click();
  }

  empty() {
    return !document.querySelector(INPUT)?.value.trim() && !document.querySelector(FILE);
  }

  // A question, or a click, is on its way: nothing else may be until the script has it.
  goes() {
    this.sent = this.taken + 1;
    this.sentAt = Date.now();
  }

  // Why a file can't go along; empty: it can. Streamlit would leave out, unsaid, what it has refused or no longer has.
  wrong(chip) {
    const refused = chip.querySelector('[role="alert"]')?.textContent.replace(/^Error: /, "").replace(/\.?$/, ".");
    const why = refused ?? (this.stale.has(chip) ? "The page was started anew since it was attached." : "");
    return why && `${chip.querySelector('[data-testid="stFileChipName"]')?.title ?? "A file"} can't go along: ${why}`;
  }

  // Which files can't, and why; empty: none.
  refused() {
    const said = Array.from(document.querySelectorAll(FILE), (chip) => this.wrong(chip));
    return [this.lost, ...said].filter(Boolean).join(" ");
  }

  // The question stays where it is until the refused files have been removed, or it is to go without them.
  tells(refused) {
    const files = [...document.querySelectorAll(FILE)].some((chip) => !this.wrong(chip));
    const asksMore = files || document.querySelector(INPUT)?.value.trim();
    this.refusal.textContent = `${refused} ${asksMore ? "Remove it, or ask without it." : "Remove it."}`;
    if (asksMore) this.refusal.append(this.without);
    document.querySelector('[data-testid="stChatInput"]')?.before(this.refusal);
  }

  asksWithout() {
    this.knowingly = true;
    this.lost = "";
    this.refusal.remove();
    document.querySelector(SEND)?.click();
    this.knowingly = false;
    document.querySelector(INPUT)?.focus({ preventScroll: true });
  }

  passes(event) {
    if (document.querySelector(SEND)?.disabled ?? true) return;
    if (!this.sending && !this.met() && document.querySelector(FILE)) {
      event.preventDefault();
      event.stopImmediatePropagation();
      this.enters = true;
      return;
    }
    const refused = this.sending || this.knowingly || this.empty() ? "" : this.refused();
    if (refused) {
      event.preventDefault();
      event.stopImmediatePropagation();
      this.tells(refused);
      return;
    }
    const waits = !this.sending && (this.held.length || !this.ready());
    if (this.empty() || waits) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
    if (this.empty()) return;
    const input = document.querySelector(INPUT);
    if (waits) {
      const isNew = this.draftOf === this.shown?.id && this.shown.isNew;
      this.held.push({ text: input.value, knowingly: this.knowingly, of: this.draftOf || this.ahead, isNew });
      this.remembers();
      this.write(input, "");
      return;
    }
    this.goes();
    const files = Array.from(document.querySelectorAll(FILE)).filter((chip) => !this.wrong(chip))
      .map((chip) => chip.querySelector('[data-testid="stFileChipName"]')?.title ?? "A file");
    const { id: of = "", isNew = true } = this.shown ?? {};
    this.pending = { text: input.value, files, of, isNew, session: this.session, number: this.sent };
    this.doubted = false;
    this.remembers();
    if (this.shown) window.tokenwireDrafts.asked(this.shown.id);
    // What still stands there wasn't sent, for whatever reason: nothing may wait for it.
    drawn().then(() => {
      if (!this.empty()) {
        this.sent = this.taken;
        this.pending = null;
        this.remembers();
      }
      this.keeps();
    });
  }

  // One run of the script may see both, and wouldn't know which came first; or one would end what the other had begun.
  opens(event) {
    if (this.sending) return;
    // What is typed from now on is for the other one. Who begins a new one is about to type.
    this.putsAside();
    this.leavesBehind();
    if (event.target.closest(BEGINS)) focus(document.querySelector(INPUT));
    const key = [...event.target.closest('[class*="st-key-"]').classList].find((name) => name.startsWith("st-key-"));
    this.ahead = LEADS.exec(key)?.[1] ?? "";
    if (!this.held.length && this.ready() && this.drawn()) {
      this.goes();
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
    this.held.push({ key });
  }

  // The browser's address names the conversation that is shown, so that a reload, Back and Forward find it again.
  names() {
    if (!this.shown || this.heading) return;
    const url = new URL(location.href), named = url.searchParams.get("c") ?? "";
    if (named !== this.shown.id) {
      url.searchParams.set("c", this.shown.id);
      history[this.corrects || !named ? "replaceState" : "pushState"]({}, "", url);
    }
    this.corrects = false;
  }

  // The browser's Back and Forward lead from one conversation to another. What its address names by then is told at once
  // only where nothing is on its way, as with clicks.
  goesTo(went) {
    if (!went) return this.names(); // it names none, and leads nowhere
    if (!this.shown || went === (this.heading || this.shown.id)) return;
    window.tokenwireDrafts.leaves();
    this.putsAside();
    this.leavesBehind();
    this.heading = this.ahead = went;
    this.held.push({ went });
    this.release();
  }

  // Tell the script something that may be the same as before.
  says(name, what) {
    this.tell(name, [nonce(), what]);
  }

  // Another process of the page has none of the files that were uploaded before, and counts anew what it takes.
  meets(session) {
    if (this.session && this.session !== session) {
      document.querySelectorAll(FILE).forEach((chip) => this.stale.add(chip));
      this.sent = this.taken = 0;
      this.doubted = true;
    }
    this.session = session;
    this.unmet = false;
  }

  // Each conversation has its own draft.
  keeps() {
    if (this.sending) return; // a question that was held stands in the place of the draft
    if (this.draftOf) window.tokenwireDrafts.keepQuestion(this.draftOf, document.querySelector(INPUT).value);
    else this.remembers();
  }

  putsAside() {
    const input = document.querySelector(INPUT);
    if (!this.draftOf || this.composing || !input) return;
    this.keeps();
    this.lostOf.set(this.draftOf, this.lost);
    this.draftOf = this.lost = "";
    this.enters = false; // what was to be sent stands there no more
    this.refusal.remove(); // it speaks of the words that stood there
    if (input.value) this.write(input, "");
  }

  // What was typed for a conversation that was about to be shown is its draft where yet another one is opened before.
  leavesBehind() {
    const input = document.querySelector(INPUT), drafts = window.tokenwireDrafts;
    if (this.draftOf || !this.ahead || this.sending || this.composing || !input?.value) return;
    drafts.keepQuestion(this.ahead, [drafts.question(this.ahead), input.value].filter(Boolean).join("\n"));
    this.write(input, "");
  }

  // Put the draft of the conversation that is shown into the input. Until a click on another one has been taken, what
  // the script tells is of the one before.
  bringsBack() {
    const input = document.querySelector(INPUT);
    if (!this.shown || this.shown.id === this.draftOf || !input) return;
    if (this.sending || this.composing || !this.free() || !this.held.every(isQuestion)) return;
    const { lost } = this;
    const { value: before, selectionStart, selectionEnd } = input;
    this.putsAside();
    const draft = window.tokenwireDrafts.questionOf(this.shown.id, this.shown.isNew);
    // What has been typed meanwhile goes on from there.
    const text = [draft, input.value].filter(Boolean).join("\n");
    if (text !== input.value) this.write(input, text);
    if (text === before) input.setSelectionRange(selectionStart, selectionEnd);
    this.draftOf = this.shown.id;
    this.lost = this.lostOf.get(this.draftOf) ?? (text === before ? lost : "");
    this.keeps();
    this.remembers();
  }

  shows(id, isNew) {
    this.shown = { id, isNew };
    if (id === this.draftOf) window.tokenwireDrafts.stays(id, isNew);
  }

  took(count) {
    this.taken = Math.max(this.taken, count);
    if (this.pending?.session === this.session && this.pending.number <= this.taken) {
      this.pending = null;
      this.remembers();
    }
    if (this.heading && this.free() && !this.held.some(({ went }) => went)) {
      this.heading = "";
      this.corrects = true;
    }
    this.names();
    this.release();
  }

  // Send the next text that waits, in the place of the draft that stands there meanwhile. No key comes in between.
  async release() {
    this.bringsBack();
    this.putsBack();
    if (this.enters && this.met()) {
      this.enters = false;
      document.querySelector(SEND)?.click();
    }
    const input = document.querySelector(INPUT);
    if (this.sending || !this.held.length || !this.ready() || this.composing || !input || input.disabled) return;
    if (this.held[0].key && !this.drawn()) return;
    this.sending = true;
    if (this.held[0].went) {
      this.goes();
      this.says("went", this.held.shift().went);
      this.sending = false;
      return;
    }
    if (this.held[0].key) {
      const button = document.querySelector(`.${this.held.shift().key} button`);
      if (button) this.goes();
      button?.click();
      this.sending = false;
      this.release();
      return;
    }
    const draft = input.value, { selectionStart, selectionEnd } = input;
    this.write(input, this.held[0].text);
    await drawn();
    const before = this.sentAt, refused = this.refused();
    document.querySelector(SEND)?.click();
    // What was refused after it had been written stood there for the draft.
    if (this.sentAt !== before) this.lost = this.held.shift().knowingly ? "" : refused;
    this.remembers();
    await drawn();
    this.write(input, draft);
    input.setSelectionRange(selectionStart, selectionEnd);
    this.sending = false;
  }

  // Whether these words stand in the input now. They are offered with each run of the script, and taken once at most.
  takesBack(id, text) {
    const input = document.querySelector(INPUT);
    if (!input || id === this.offered) return false;
    this.offered = id;
    if (!this.draftOf || input.value || document.querySelector(FILE) || this.held.length || this.sending) return false;
    this.write(input, text);
    return true;
  }

  // As if it had been typed: React looks at nothing else.
  write(input, text) {
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(input), "value").set.call(input, text);
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

// Where there is a keyboard: a phone's own would cover half of the page.
const focus = (input) => {
  if (innerWidth > 640) input?.focus({ preventScroll: true });
};

// React draws what an event has changed in the microtasks behind it.
const drawn = async () => {
  for (let turn = 0; turn < 5; turn += 1) await null;
};

const wordsIn = (answer) => answer.querySelector('[class*="st-key-words-"]');

const keyOf = (answer) => [...answer.classList].find((name) => name.startsWith("st-key-answer-"));

// What a segment says. Part of a long block may stand in the segment that the block begins in: see markdown.js.
const wordsOf = (segment) => {
  const drawn = segment.querySelector(".tw-md");
  if (!drawn) return segment.innerText;
  const within = (node) => {
    const inside = window.tokenwireMoved?.get(node)?.map((one) => `${within(one)}\n`) ?? Array.from(node.childNodes, said);
    return inside.join("") + (node.className === "tw-language" ? "\n" : "");
  };
  const said = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.data;
    return node.dataset?.twMoved === undefined ? within(node) : "";
  };
  return said(drawn).trimEnd();
};

// Without white space, of which there may be more or less once a segment has ended.
const letters = (text) => text.replace(/\s/g, "").length;
const placeAfter = (text, count) => {
  let place = 0;
  for (let left = count; left > 0 && place < text.length; place += 1) if (/\S/.test(text[place])) left -= 1;
  return place;
};

class Reading {
  following = true;
  growsUntil = Date.now() + LOADED_MS;
  questions = 0;
  begun = ""; // the class of the form for a question whose edit has been begun, and that isn't drawn yet
  answer = null; // the element of the answer that is being written
  known = new Set(); // the keys of the answers that have been read out
  segment = 0; // which of its segments is being read out
  heard = 0; // so many of that one's letters were
  dismissed = false; // whether Streamlit has said that its server is away
  width = 0; // of the page, in pixels

  constructor(main) {
    this.main = main;
    this.top = main.scrollTop;
    this.toEnd = document.createElement("button");
    this.toEnd.type = "button";
    this.toEnd.className = "tw-end";
    this.toEnd.textContent = "To the end";
    this.toEnd.hidden = true;
    this.toEnd.onclick = () => this.follow();
    this.voice = document.createElement("div");
    this.voice.className = "tw-voice";
    this.voice.setAttribute("aria-live", "polite");
    this.voice.setAttribute("role", "status");
    this.lost = document.createElement("div");
    this.lost.className = "tw-lost";
    this.lost.setAttribute("role", "status");
    main.append(this.toEnd, this.voice, this.lost);
    new MutationObserver(() => this.reaches())
      .observe(document.documentElement, { subtree: true, attributeFilter: [CONNECTION] });
    new MutationObserver(() => this.dismisses()).observe(document.body, { childList: true });
    main.addEventListener("scroll", () => this.scrolled(), { passive: true });
    // Asked first of all, while what it closes still stands there.
    document.addEventListener("keydown", (event) => { this.mayStop = this.idle(event.target); }, true);
    document.addEventListener("keydown", (event) => this.pressed(event));
    document.addEventListener("click", ({ target }) => {
      const edits = target.closest?.(`${EDITS} button`)?.closest(EDITS);
      if (edits && !edits.querySelector("textarea")) {
        this.begun = [...edits.classList].find((name) => name.startsWith("st-key-edit-"));
      }
    }, true);
    this.waiting = false;
    new MutationObserver(() => this.soon()).observe(main, { subtree: true, childList: true, characterData: true });
    const sizes = new ResizeObserver(() => this.resized());
    sizes.observe(main);
    sizes.observe(main.firstElementChild);
    this.input();
    this.look();
  }

  // While the page's own process is away, what it said of the service is old.
  reaches() {
    const lost = document.querySelector(`[${CONNECTION}]`)?.getAttribute(CONNECTION) !== "CONNECTED";
    window.tokenwireInput?.reaches(lost);
    document.body.classList.toggle("tw-unreachable", lost);
    this.lost.textContent = lost ? "The page isn't reachable; trying again" : "";
  }

  // Streamlit's own words for that lie over the page, and tell its reader to start a server. Once a loss is enough.
  dismisses() {
    for (const dialog of document.querySelectorAll(DIALOG)) {
      if (dialog.querySelector("h1, h2, h3, [role='heading'], header, p")?.textContent.includes(CONNECTION_ERROR)) {
        dialog.querySelector('[aria-label="Close"]')?.click();
        this.dismissed = true;
      }
    }
  }

  // In a narrower window all is higher.
  resized() {
    if (this.main.clientWidth !== this.width) this.growsUntil = Date.now() + SETTLED_MS;
    this.width = this.main.clientWidth;
    this.soon();
  }

  // One look for all changes of a frame.
  soon() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.look();
    });
  }

  look() {
    const questions = this.main.querySelectorAll(".tw-asked").length;
    if (questions > this.questions) this.following = true;
    // What else grows, such as a question that is being edited, is where the reader looks.
    if (questions > this.questions || this.answer) this.growsUntil = Date.now() + SETTLED_MS;
    this.questions = questions;
    this.edit();
    if (this.key && !this.main.querySelector(`.${this.key}`)) this.voice.replaceChildren(); // another conversation is shown
    this.listen();
    if (this.following && Date.now() < this.growsUntil) this.main.scrollTop = this.main.scrollHeight;
    this.show();
  }

  // A question that is about to be edited comes into sight, with the cursor in it. One whose edit was begun earlier, and
  // whose conversation is opened again, does not.
  edit() {
    const edited = this.begun && this.main.querySelector(`.${this.begun}-words textarea`);
    if (!edited) return;
    this.begun = "";
    this.following = false;
    edited.focus({ preventScroll: true });
    setTimeout(() => edited.scrollIntoView({ block: "center" }), 100); // behind Streamlit's own scrolling
  }

  left() {
    return this.main.scrollHeight - this.main.scrollTop - this.main.clientHeight;
  }

  scrolled() {
    // Only the reader scrolls up.
    if (this.main.scrollTop < this.top - 1 && this.left() > 4) this.following = false;
    else if (this.left() <= 4) this.following = true;
    this.top = this.main.scrollTop;
    this.show();
  }

  follow() {
    this.following = true;
    this.main.scrollTop = this.main.scrollHeight;
    document.querySelector(INPUT)?.focus({ preventScroll: true });
    this.show();
  }

  show() {
    this.toEnd.hidden = this.following || this.left() < 100;
  }

  // Whether Escape has nothing else to do: everywhere else it closes a list, or leaves a field.
  idle(target) {
    return (target === document.body || target.matches?.(INPUT)) && !document.querySelector(OPEN);
  }

  pressed(event) {
    if (event.key !== "Escape" || event.defaultPrevented || event.isComposing || !this.mayStop) return;
    document.querySelector('[class*="st-key-stop-"] button')?.click();
  }

  // Once, when the page has been loaded.
  input() {
    const input = document.querySelector(INPUT);
    if (!input) return setTimeout(() => this.input(), 50);
    if (document.activeElement === document.body) focus(input);
  }

  listen() {
    const running = this.main.querySelector(RUNNING)?.closest(ANSWER) ?? null;
    if (running !== this.answer) {
      if (this.answer) this.ended();
      this.answer = running;
      if (running) this.began();
    }
    if (running) this.watch();
    // What has come at once was never seen running.
    for (const figures of this.main.querySelectorAll(NEW)) {
      const answer = figures.closest(ANSWER);
      if (answer !== this.answer && !this.known.has(keyOf(answer))) this.readWhole(answer);
    }
    // Its words may come behind the line that says that it has ended.
    const unheard = !running && this.key && !this.heard && !this.segment && this.main.querySelector(`.${this.key}`);
    if (unheard && unheard.querySelector(NEW)) {
      this.words = wordsIn(unheard);
      this.read(true);
    }
  }

  begin(answer) {
    this.key = keyOf(answer);
    // Streamlit may draw an answer anew while it is being written.
    if (this.known.has(this.key)) return;
    this.known.add(this.key);
    this.segment = this.heard = this.tallest = 0;
    this.voice.replaceChildren();
  }

  began() {
    this.begin(this.answer);
    // Half a table is lower than the lines that it was before: what stands below must not jump.
    this.height = new ResizeObserver(([{ borderBoxSize }]) => {
      const height = borderBoxSize[0].blockSize;
      if (height <= this.tallest) return;
      this.tallest = height;
      this.words.style.minHeight = `${height}px`;
    });
    this.words = null;
    this.reading = setInterval(() => this.read(false), READ_MS);
  }

  // React may make their element after that of the figures, or a new one for an answer that it keeps.
  watch() {
    const words = wordsIn(this.answer);
    if (words === this.words) return;
    this.height.disconnect();
    this.words = words;
    if (words) this.height.observe(words);
  }

  ended() {
    clearInterval(this.reading);
    this.height.disconnect();
    if (this.words) this.words.style.minHeight = "";
    const answer = this.main.querySelector(`.${this.key}`);
    if (!answer) return; // another conversation has been opened
    if (answer.querySelector(RUNNING)) return; // only its element is another one
    this.words = wordsIn(answer);
    this.read(true);
    this.readCalls(answer);
  }

  readWhole(answer) {
    this.begin(answer);
    this.words = wordsIn(answer);
    this.read(true);
    this.readCalls(answer);
  }

  readCalls(answer) {
    for (const call of answer.querySelectorAll(".tw-call")) this.speak(call.innerText);
  }

  // An answer stands there in segments, of which only the last still changes. What was heard of it may stand in the next
  // one, once it has ended.
  read(all) {
    const segments = this.words?.children ?? [];
    for (; this.segment < segments.length; this.segment += 1) {
      const text = wordsOf(segments[this.segment]);
      const last = this.segment === segments.length - 1;
      this.say(text, all || !last);
      if (last) return;
      this.heard = Math.max(0, this.heard - letters(text));
    }
  }

  say(text, all) {
    const start = placeAfter(text, this.heard);
    let end = all ? text.length : start;
    if (!all) {
      SENTENCE.lastIndex = start;
      for (let found; (found = SENTENCE.exec(text)); ) end = found.index + 1;
    }
    if (end <= start) return;
    this.heard = letters(text.slice(0, end));
    this.speak(text.slice(start, end));
  }

  speak(said) {
    const words = document.createElement("p");
    words.textContent = said.trim();
    if (!words.textContent) return;
    this.voice.append(words);
    while (this.voice.childElementCount > 20) this.voice.firstElementChild.remove();
  }
}

// What the cookie says; empty: there is none of ours.
const known = (name) => {
  const found = document.cookie.split("; ").find((one) => one.startsWith(`${name}=`))?.slice(name.length + 1) ?? "";
  return /^[0-9a-f]{64}$/.test(found) ? found : "";
};

const secret = () => Array.from(crypto.getRandomValues(new Uint8Array(32)), (byte) => byte.toString(16).padStart(2, "0")).join("");

// Every tab of a browser takes the same secret: whichever comes first makes it.
const browser = async (name) => {
  const make = () => {
    if (known(name)) return;
    const secure = location.protocol === "https:" ? "; Secure" : "";
    document.cookie = `${name}=${secret()}; Path=/; Max-Age=31536000; SameSite=Strict${secure}`;
  };
  if (navigator.locks) {
    await navigator.locks.request(name, make);
  } else {
    // Only over plain HTTP from another machine. Other tabs have made theirs by then, and the last one counts.
    make();
    await new Promise((resolve) => setTimeout(resolve, COOKIE_MS));
  }
  return known(name) || secret(); // without cookies it lives as long as this tab
};

window.tokenwireReader ??= ({ data, setStateValue }) => {
  if (!window.tokenwireReading) {
    const main = document.querySelector(START_OF_PAGE);
    if (main) window.tokenwireReading = new Reading(main);
  }
  window.tokenwireInput ??= new Input();
  window.tokenwireInput.tell = setStateValue;
  window.tokenwireInput.meets(data.session);
  if (data.shown) window.tokenwireInput.shows(...data.shown);
  if (data.shown) window.tokenwireDrawer.shows(data.shown[0]);
  if (data.answer) window.tokenwireInput.hears(...data.answer);
  window.tokenwireInput.took(data.taken);
  window.tokenwireDrafts.forget(data.session, data.done);
  window.tokenwireDrafts.runs();
  const edited = window.tokenwireDrafts.edited(data.session);
  if (edited.length) setStateValue("edited", edited);
  if (data.back && window.tokenwireInput.takesBack(...data.back)) setStateValue("returned", data.back[0]);
  if (data.known || window.tokenwireBrowser) return;
  window.tokenwireBrowser = browser(data.cookie).then((found) => setStateValue("browser", found));
};

export default () => {}; // what is called with each run is reader.js
