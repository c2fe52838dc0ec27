// What this tab keeps: drafts, and what has been sent. When the page is loaded anew it finds them in its sessionStorage. A
// copy outlives the tab, and the next tab that is opened takes over what closed ones have left. Which tabs are open the
// browser's locks tell; it has them for this machine and over HTTPS, and elsewhere what a tab keeps ends with it.
const TAB = "tokenwire-tab";
const LEAVING_MS = 500; // in which the page that stood in this tab before lets go of the tab's name

// A browser may have been told to keep nothing: then nothing is kept.
const storage = (name) => {
  try {
    return window[name];
  } catch {
    return null;
  }
};

// Until this page ends it has the name; false: another page has it.
const takes = (name) => new Promise((tell) => {
  const held = () => {
    tell(true);
    return new Promise(() => {});
  };
  navigator.locks.request(`${TAB} ${name}`, { signal: AbortSignal.timeout(LEAVING_MS) }, held).catch(() => tell(false));
});

class Kept {
  name = ""; // of this tab
  own = storage("sessionStorage");
  copies = navigator.locks ? storage("localStorage") : null; // of all tabs, as "tokenwire-tab NAME KEY"

  async begin() {
    if (!this.own || !this.copies) return this;
    const before = this.own.getItem(TAB);
    const isSame = before !== null && (await takes(before));
    this.name = isSame ? before : crypto.randomUUID();
    if (isSame) return this;
    if (!(await takes(this.name))) {
      this.name = ""; // locks are refused here
      return this;
    }
    this.setItem(TAB, this.name);
    // A tab that was made from another one has a copy of all that the other one keeps.
    for (const key of this.keys()) this.setItem(key, this.getItem(key));
    if (before === null) await navigator.locks.request(TAB, () => this.inherits()); // one tab after the other
    return this;
  }

  // Of each closed tab all or nothing: where two have left something of the same name, one is for the next new tab.
  async inherits() {
    const open = (await navigator.locks.query()).held.map(({ name }) => name);
    const left = new Map();
    for (const key of Object.keys(this.copies)) {
      const [, tab, name] = key.match(/^(tokenwire-tab \S+) (.+)$/s) ?? [];
      if (tab && !open.includes(tab)) left.set(tab, [...(left.get(tab) ?? []), [key, name]]);
    }
    for (const all of left.values()) {
      const theirs = all.filter(([, name]) => name !== TAB);
      if (theirs.some(([, name]) => this.getItem(name) !== null)) continue;
      for (const [key, name] of theirs) this.setItem(name, this.copies.getItem(key));
      for (const [key] of all) this.copies.removeItem(key);
    }
  }

  getItem(key) {
    return this.own?.getItem(key) ?? null;
  }

  setItem(key, text) {
    try {
      this.own?.setItem(key, text);
      if (this.name) this.copies.setItem(`${TAB} ${this.name} ${key}`, text);
    } catch {
      // There is no room for it.
    }
  }

  removeItem(key) {
    this.own?.removeItem(key);
    if (this.name) this.copies.removeItem(`${TAB} ${this.name} ${key}`);
  }

  keys() {
    return Object.keys(this.own ?? {}).filter((key) => key.startsWith("tokenwire-") && key !== TAB);
  }
}

const kept = await (window.tokenwireKept ??= new Kept().begin());
